import io
import os
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image, ImageFile, TiffImagePlugin

from kdad.data.decoding import MAX_PIXELS, read_image
from kdad.data.images import DECODERS, SUFFIXES, batches_of_one_size, find_images, in_advance
from kdad.data.masks import image_size
from kdad.errors import UserError

LOSSY = {".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".heic", ".heif", ".hif"}
RED, GREEN, WHITE = [255, 0, 0], [0, 255, 0], [255, 255, 255]


def two_colours(left, right, mode: str = "RGB") -> Image.Image:
    """20×10 pixels, the left half of one colour and the right half of another."""
    image = Image.new(mode, (20, 10), left)
    image.paste(right, (10, 0, 20, 10))
    return image


def halves(pixels: torch.Tensor) -> tuple[list[int], list[int]]:
    """The colours in the middle of the left and of the right half of a 20×10 image."""
    assert pixels.shape == (3, 10, 20)
    assert pixels.dtype == torch.uint8
    return pixels[:, 5, 4].tolist(), pixels[:, 5, 15].tolist()


def close_to(colour):
    return pytest.approx(colour, abs=4)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES - LOSSY - {".gif", ".pgm"}))
def test_lossless_formats_keep_every_value(tmp_path, suffix):
    values = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / f"image{suffix}")
    assert np.array_equal(read_image(tmp_path / f"image{suffix}").permute(1, 2, 0).numpy(), values)


def save_heif(file: Path, image: Image.Image, exif: Image.Exif | None = None) -> None:
    """As a telephone does, which turns the picture by a box of the format and says the same in its EXIF."""
    heif = pillow_heif.from_pillow(image)
    if exif:
        heif.info["exif"] = exif.tobytes()
    heif.save(file, quality=95, chroma=444)


@pytest.mark.parametrize("suffix", sorted(LOSSY))
def test_lossy_formats_are_read(tmp_path, suffix):
    file, image = tmp_path / f"image{suffix}", two_colours("red", "white")
    if suffix.startswith(".h"):
        save_heif(file, image)
    else:
        image.save(file, quality=95, subsampling="4:4:4")
    left, right = halves(read_image(tmp_path / f"image{suffix}"))
    assert left == close_to(RED)
    assert right == close_to(WHITE)


def test_an_open_file_is_read_like_its_path(tmp_path):
    two_colours("red", "lime").save(tmp_path / "image.png")
    content = io.BytesIO((tmp_path / "image.png").read_bytes())
    assert torch.equal(read_image(content), read_image(str(tmp_path / "image.png")))


def test_cmyk(tmp_path):
    two_colours((0, 255, 255, 0), (0, 0, 0, 0), "CMYK").save(tmp_path / "image.jpg", quality=95)
    left, right = halves(read_image(tmp_path / "image.jpg"))
    assert left == close_to(RED)
    assert right == close_to(WHITE)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    values = np.full((10, 20), 65535, np.uint16)
    values[:, :10] = 0x4040
    Image.fromarray(values).save(tmp_path / f"image{suffix}")
    assert halves(read_image(tmp_path / f"image{suffix}")) == ([0x40] * 3, WHITE)


def test_big_endian_sixteen_bit_grey(tmp_path):
    image = Image.new("I;16B", (20, 10), 0x4040)
    image.save(tmp_path / "image.tif")
    assert halves(read_image(tmp_path / "image.tif"))[0] == [0x40] * 3


@pytest.mark.parametrize(("mode", "black", "white"), [("L", 0, 255), ("1", 0, 1), ("LA", (0, 255), (255, 255))])
def test_grey_modes(tmp_path, mode, black, white):
    two_colours(black, white, mode).save(tmp_path / "image.png")
    assert halves(read_image(tmp_path / "image.png")) == ([0, 0, 0], WHITE)


def test_palette(tmp_path):
    image = two_colours(0, 1, "P")
    image.putpalette([*RED, *GREEN])
    image.save(tmp_path / "image.png")
    assert halves(read_image(tmp_path / "image.png")) == (RED, GREEN)


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_palette_with_a_transparent_colour_lies_over_white(tmp_path, suffix):
    image = two_colours(0, 1, "P")
    image.putpalette([*RED, *GREEN])
    image.save(tmp_path / f"image{suffix}", transparency=1)
    assert halves(read_image(tmp_path / f"image{suffix}")) == (RED, WHITE)


def test_transparency_lies_over_white(tmp_path):
    two_colours((255, 0, 0, 255), (0, 0, 0, 51), "RGBA").save(tmp_path / "image.png")
    left, right = halves(read_image(tmp_path / "image.png"))
    assert left == RED
    assert right == close_to([204, 204, 204])


def test_rgb_with_a_transparent_colour_lies_over_white(tmp_path):
    two_colours("red", "lime").save(tmp_path / "image.png", transparency=tuple(GREEN))
    assert halves(read_image(tmp_path / "image.png")) == (RED, WHITE)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif", "avif"])
def test_stacks_and_animations_are_refused_and_not_judged_by_their_first_image(tmp_path, suffix):
    first, second = two_colours("red", "lime"), two_colours("blue", "blue")
    first.save(tmp_path / f"image.{suffix}", save_all=True, append_images=[second, first])
    with pytest.raises(UserError, match=rf"image\.{suffix}: it holds 3 images; save each of them as a file of its own"):
        read_image(tmp_path / f"image.{suffix}")
    first.save(tmp_path / f"image.{suffix}", save_all=True)
    assert read_image(tmp_path / f"image.{suffix}").shape[0] == 3


def test_a_preview_in_a_tiff_is_no_second_image(tmp_path):
    image, preview = two_colours("red", "lime"), two_colours("red", "lime").resize((4, 4))
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[254] = 1  # NewSubfileType: a smaller version of another
    preview.encoderinfo = {"tiffinfo": directory}
    image.save(tmp_path / "image.tif", save_all=True, append_images=[preview])
    assert Image.open(tmp_path / "image.tif").n_frames == 2
    assert halves(read_image(tmp_path / "image.tif")) == (RED, GREEN)


def test_jpeg_2000_is_read(tmp_path):
    two_colours("red", "lime").save(tmp_path / "image.jp2")
    assert halves(read_image(tmp_path / "image.jp2")) == (RED, GREEN)


def test_first_picture_of_a_photograph_that_holds_several(tmp_path):
    """Cameras put a preview, a depth map or a gain map behind it, in a file that ends in .jpg."""
    first, second = two_colours("red", "lime"), two_colours("blue", "blue")
    first.save(tmp_path / "image.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    left, right = halves(read_image(tmp_path / "image.jpg"))
    assert (left, right) == (pytest.approx(RED, abs=40), pytest.approx(GREEN, abs=40))


@pytest.mark.parametrize("suffix", [".png", ".heic", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    """An image stored in each of the eight orientations is seen upright: red to the left; a ninth stands for none."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = two_colours("red", "lime")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    file = tmp_path / f"image{suffix}"
    if suffix == ".heic":
        save_heif(file, stored, exif)
    else:
        stored.save(file, exif=exif)
    seen = read_image(file)
    left, right = halves(seen)
    assert (left, right) == (close_to(RED), close_to(GREEN))
    assert image_size(file) == (seen.shape[2], seen.shape[1])
    assert image_size(file) == upright.size


def test_photographs_of_ten_bits_are_read_as_eight(tmp_path):
    levels = np.repeat(np.array([[0, 65535]], np.uint16), 10, 1).repeat(10, 0)
    colours = np.stack([levels] * 3, 2)
    pillow_heif.from_bytes(mode="RGB;16", size=(20, 10), data=colours.tobytes()).save(tmp_path / "image.hif")
    left, right = halves(read_image(tmp_path / "image.hif"))
    assert (left, right) == (close_to([0, 0, 0]), close_to(WHITE))


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").flatten().tolist() == [1, 2, 3]


def png_bytes(size: int = 64) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


BAD_FILES = {
    "zero-byte": b"",
    "text": b"no image at all\n" * 40,
    "truncated": png_bytes()[:3000],
    "only a header": png_bytes()[:33],
    "flipped bytes": png_bytes()[:200] + b"\x00" * 500 + png_bytes()[700:],
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_one_line_with_its_name(tmp_path, content):
    file = tmp_path / "broken.png"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_image(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_directory_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.png: no such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(UserError, match=tmp_path.name):
        read_image(tmp_path)


def test_an_error_names_the_image_as_the_caller_does():
    with pytest.raises(UserError, match=r"^upload 3: "):
        read_image(io.BytesIO(b""), name="upload 3")


def png_claiming(side: int) -> bytes:
    """A tiny 1-bit PNG whose header claims side×side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_001, 12_000, 20_000])
def test_a_decompression_bomb_is_refused_undecoded(tmp_path, monkeypatch, side):
    def decode(self):
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    (tmp_path / "bomb.png").write_bytes(png_claiming(side))
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as raised, pytest.raises(UserError, match="64 million pixels"):
        warnings.simplefilter("always")
        read_image(tmp_path / "bomb.png")
    assert not raised, "a warning would be a second line"
    assert time.perf_counter() - started < 1


def test_an_image_with_a_side_of_more_than_65535_pixels_is_refused(tmp_path):
    Image.new("L", (65_536, 1)).save(tmp_path / "line.png")
    with pytest.raises(UserError, match="65,535 pixels of a side"):
        read_image(tmp_path / "line.png")


def test_the_largest_allowed_image_is_not_refused_for_its_size(tmp_path):
    (tmp_path / "large.png").write_bytes(png_claiming(int(MAX_PIXELS**0.5)))
    with pytest.raises(UserError) as error:
        read_image(tmp_path / "large.png")
    assert "million" not in str(error.value)


def touch(*files: Path) -> list[Path]:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return list(files)


def test_find_images_looks_into_nested_directories_in_order(tmp_path):
    images = touch(
        tmp_path / "a.png",
        tmp_path / "b" / "c" / "deep.JPG",
        tmp_path / "b" / "x.webp",
        tmp_path / "z.tiff",
    )
    touch(tmp_path / "notes.txt", tmp_path / "b" / "table.csv")
    (tmp_path / "folder.png").mkdir()
    assert find_images([tmp_path]) == images


def test_find_images_keeps_the_order_of_its_arguments(tmp_path):
    first, second, other = touch(tmp_path / "z.png", tmp_path / "a" / "a.png", tmp_path / "strange.ending")
    assert find_images([str(first), tmp_path / "a", other]) == [first, second, other]


def test_find_images_reports_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file or directory"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"no image found.*\.png"):
        find_images([tmp_path])


def test_find_images_survives_a_dangling_link(tmp_path):
    (image,) = touch(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    assert find_images([tmp_path]) == [image]


def test_batches_hold_images_of_one_size_in_order():
    sizes = [8, 8, 8, 9, 8, 8]
    images = [(str(i), torch.full((3, size, size), i, dtype=torch.uint8)) for i, size in enumerate(sizes)]
    batches = list(batches_of_one_size(iter(images), most=2))
    assert [names for names, _ in batches] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert [tuple(batch.shape) for _, batch in batches] == [(2, 3, 8, 8), (1, 3, 8, 8), (1, 3, 9, 9), (2, 3, 8, 8)]
    assert [int(name) for names, _ in batches for name in names] == [
        int(i[0, 0, 0]) for _, batch in batches for i in batch
    ]


def test_no_images_make_no_batches():
    assert list(batches_of_one_size([])) == []


def test_images_read_ahead_come_in_order_with_what_cannot_be_read_among_them(tmp_path):
    files = [tmp_path / f"{index}.png" for index in range(3 * DECODERS + 2)]
    for index, file in enumerate(files):
        Image.new("RGB", (4 + index % 3, 2), (index, 0, 0)).save(file)
    files[DECODERS].write_bytes(b"no image")
    seen = list(in_advance(read_image, files))
    for index, image in enumerate(seen):
        if index == DECODERS:
            assert isinstance(image, UserError) and str(files[index]) in str(image)
        else:
            assert torch.equal(image, read_image(files[index]))
    assert list(in_advance(read_image, [])) == []


def test_only_a_few_images_are_read_ahead_and_none_once_nobody_looks():
    opened = []
    images = in_advance(opened.append, (Path(str(index)) for index in range(100)))
    next(images)
    images.close()
    assert len(opened) <= DECODERS + 1


def test_what_no_user_has_given_is_not_found_and_links_are_followed(tmp_path):
    """A checkpoint of a notebook, what macOS leaves behind, and a link that leads in a circle."""
    folder, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    for place in (folder, folder / ".ipynb_checkpoints", folder / "__MACOSX", elsewhere):
        place.mkdir()
        Image.new("L", (2, 2)).save(place / "a.png")
    Image.new("L", (2, 2)).save(folder / "._a.png", "PNG")
    Image.new("L", (2, 2)).save(folder / "b.jfif", "JPEG")
    (folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(folder, target_is_directory=True)
    found = [file.relative_to(folder).as_posix() for file in find_images([folder])]
    assert found == ["a.png", "b.jfif", "linked/a.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        with pytest.raises(UserError, match="closed: cannot be accessed"):
            find_images([tmp_path])
    finally:
        closed.chmod(0o700)


def grey(values, dtype) -> Image.Image:
    return Image.fromarray(np.array(values, dtype))


@pytest.mark.parametrize(
    ("values", "dtype", "max_value"),
    [
        ([[0, 65535], [32768, 257]], np.uint16, 65535),
        ([[0, 4095], [2048, 16]], np.uint16, 4095),
        ([[0, 255], [128, 1]], np.int32, 255),
        ([[0.0, 1.0], [0.5, 0.25]], np.float32, 1),
        ([[0.0, 65535.0], [32768.0, 257.0]], np.float32, 65535),
        ([[0.0, 900.0], [512.0, 0.0]], np.float32, 1023),
    ],
)
def test_deep_grey_values_are_scaled_so_that_the_next_white_is_white(tmp_path, values, dtype, max_value):
    grey(values, dtype).save(tmp_path / "deep.tif")
    expected = np.rint(np.array(values) * 255 / max_value)
    assert np.array_equal(read_image(tmp_path / "deep.tif")[0], expected)


def test_white_can_be_what_it_was_in_training(tmp_path):
    grey([[0, 900], [200, 100]], np.uint16).save(tmp_path / "dark.png")
    assert read_image(tmp_path / "dark.png").max() == round(900 * 255 / 1023)
    assert read_image(tmp_path / "dark.png", max_value=4095).max() == round(900 * 255 / 4095)
    assert read_image(tmp_path / "dark.png", max_value=255)[0].tolist() == [[0, 255], [200, 100]]  # overexposed


@pytest.mark.parametrize(
    ("values", "dtype", "max_value", "said"),
    [
        ([[0.0, np.nan]], np.float32, 0, "not finite"),
        ([[0.0, np.inf]], np.float32, 0, "not finite"),
        ([[-0.5, 0.5]], np.float32, 0, "negative values, down to -0.5"),
        ([[-3, 5]], np.int32, 0, "negative values"),
        ([[0, 7]], np.int32, 0, "up to 7 the value of white is unclear; scale it to 0…255 or 0…65535"),
        ([[0, 70_000]], np.int32, 0, "unclear"),
        ([[60_000, 50_000]], np.uint16, 4095, "up to 60000, where 4095 was white in the images trained on"),
    ],
)
def test_grey_values_without_a_scale_are_refused_by_name(tmp_path, values, dtype, max_value, said):
    grey(values, dtype).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match=said) as refused:
        read_image(tmp_path / "deep.tif", max_value=max_value)
    assert str(refused.value).startswith(str(tmp_path / "deep.tif"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a video, or a damaged HEIC or AVIF file, is not supported; save it as"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "a video, or"),
        (b"\0" * 128 + b"DICM", "a DICOM file is not supported"),
        (b"%PDF-1.7", "a PDF file is not supported"),
        (b"", "an empty file"),
        (b"hello", "not an image"),
    ],
)
def test_a_file_of_another_format_is_told_which(tmp_path, content, said):
    (tmp_path / "photo.jpg").write_bytes(content)
    for source in (tmp_path / "photo.jpg", io.BytesIO(content)):
        with pytest.raises(UserError, match=f"photo.jpg: {said}"):
            read_image(source, name="photo.jpg")


def test_masks_beside_images_and_unknown_endings_of_a_folder_are_told_and_not_scored(tmp_path, capsys):
    for name in ("a (0).png", "a (0)_mask.png", "b.png", "c_mask.png"):
        two_colours("red", "lime").save(tmp_path / name)
    for name in ("x.npy", "notes.txt", ".hidden"):
        (tmp_path / name).write_bytes(b"content")
    assert [file.name for file in find_images([tmp_path])] == ["a (0).png", "b.png", "c_mask.png"]
    unknown, masks = capsys.readouterr().err.splitlines()
    assert unknown.startswith("1 file of another ending than images have, such as") and "x.npy" in unknown
    assert masks.startswith("1 mask beside images, such as") and masks.endswith("was not scored")
    assert find_images([tmp_path / "a (0)_mask.png"]) == [tmp_path / "a (0)_mask.png"]
