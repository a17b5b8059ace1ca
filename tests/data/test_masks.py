"""Masks as different tools write them, and what is wrong with some."""

import numpy as np
import pytest
from PIL import Image

from kdad.data.masks import joint_mask, read_mask
from kdad.errors import UserError

MARKED = np.zeros((6, 8), bool)
MARKED[2:4, 1:5] = True


def rgba(colour, background) -> Image.Image:
    values = np.full((6, 8, 4), background, np.uint8)
    values[MARKED] = colour
    return Image.fromarray(values)


def palette() -> Image.Image:
    image = Image.fromarray(MARKED.astype(np.uint8))
    image.putpalette([0, 0, 0, 128, 0, 0])
    return image.convert("P") if image.mode != "P" else image


WRITTEN = {
    "8 bits, white": Image.fromarray(MARKED.astype(np.uint8) * 255),
    "8 bits, one": Image.fromarray(MARKED.astype(np.uint8)),
    "16 bits, one": Image.fromarray(MARKED.astype(np.uint16)),
    "32 bits": Image.fromarray(MARKED.astype(np.int32) * 3),
    "fractions": Image.fromarray(MARKED.astype(np.float32) / 8),
    "bilevel": Image.fromarray(MARKED.astype(np.uint8) * 255).convert("1"),
    "a colour": Image.fromarray(np.where(MARKED[..., None], [200, 0, 0], 0).astype(np.uint8)),
    "palette": palette(),
    "transparent white around": rgba((255, 255, 255, 255), (255, 255, 255, 0)),
    "transparent black around": rgba((255, 0, 0, 255), (0, 0, 0, 0)),
    "opaque black around": rgba((255, 255, 255, 255), (0, 0, 0, 255)),
    "black paint": rgba((0, 0, 0, 255), (0, 0, 0, 0)),
}


@pytest.mark.parametrize("image", WRITTEN.values(), ids=WRITTEN.keys())
def test_what_is_marked_is_read_whatever_the_depth(tmp_path, image):
    image.save(tmp_path / "mask.tif" if image.mode in ("F", "I") else tmp_path / "mask.png")
    (file,) = tmp_path.iterdir()
    assert np.array_equal(read_mask(file), MARKED)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_what_compression_leaves_around_marks_does_not_count(tmp_path, suffix):
    marked = np.zeros((64, 96), bool)
    marked[13:45, 21:70] = True
    Image.fromarray(marked.astype(np.uint8) * 255).save(tmp_path / f"mask.{suffix}", quality=60)
    stored = np.asarray(Image.open(tmp_path / f"mask.{suffix}").convert("L"))
    assert (stored > 0).sum() > marked.sum()
    off = read_mask(tmp_path / f"mask.{suffix}") != marked
    assert off.mean() < 0.01
    Image.fromarray(stored).save(tmp_path / "saved_again.png")
    if len(np.unique(stored)) > 32:
        assert (read_mask(tmp_path / "saved_again.png") != marked).mean() < 0.01


@pytest.mark.parametrize("value", [1, 2])
def test_lossy_masks_of_small_values_mark_as_before(tmp_path, value):
    Image.fromarray(MARKED.astype(np.uint8) * value).save(tmp_path / "mask.webp", lossless=True)
    assert np.array_equal(read_mask(tmp_path / "mask.webp"), MARKED)


def test_labels_of_many_regions_all_count(tmp_path):
    labels = np.arange(48).reshape(6, 8).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), labels > 0)


def test_the_first_colour_of_a_palette_without_black_is_the_background(tmp_path):
    image = palette()
    image.putpalette([255, 255, 255, 128, 0, 0])
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), MARKED)


def test_a_mask_is_turned_as_its_image_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise to be shown
    Image.fromarray(MARKED.astype(np.uint8) * 255).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), np.rot90(MARKED, -1))


def test_an_empty_mask_marks_nothing(tmp_path):
    for name, image in (("grey", Image.new("L", (8, 6))), ("clear", Image.new("RGBA", (8, 6))),
                        ("black", Image.new("RGBA", (8, 6), "black"))):  # fmt: skip
        image.save(tmp_path / f"{name}.png")
        assert not read_mask(tmp_path / f"{name}.png").any(), name


def test_masks_of_one_image_add_up_and_must_be_of_one_size(tmp_path):
    other = np.roll(MARKED, 2, axis=1)
    for index, mask in enumerate((MARKED, other)):
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f"{index}.png")
    files = sorted(tmp_path.iterdir())
    assert np.array_equal(joint_mask(files), MARKED | other)
    Image.new("L", (8, 7)).save(files[1])
    with pytest.raises(UserError, match="differ in size"):
        joint_mask(files)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    Image.fromarray(np.where(MARKED, np.nan, 0).astype(np.float32)).save(tmp_path / "mask.tif")
    with pytest.raises(UserError, match=r"mask\.tif: a mask with values that are not finite"):
        read_mask(tmp_path / "mask.tif")
