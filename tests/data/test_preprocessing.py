from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kdad.data import preprocessing
from kdad.data.preprocessing import (
    SIZES_KEPT,
    Preprocessing,
    _resize_bands,
    random_mirror,
    resample,
    resize_matrix,
)
from kdad.networks.teachers.registry import IMAGENET_MEAN, IMAGENET_STD

PIL_FILTERS = {"lanczos": Image.LANCZOS, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
PLAIN = Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def noise_image(height: int, width: int) -> np.ndarray:
    """Noise and saturated hard edges: the worst case for a kernel that overshoots."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2, : width // 2] = 255
    image[height // 2 :, : width // 3] = 0
    return image


def to_batch(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def random_batch(n: int, size: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [12, 32, 100], ids=["down", "near", "up"])
@pytest.mark.parametrize("interpolation", PIL_FILTERS)
def test_resize_equals_pil_within_two_grey_levels(interpolation, size):
    image = noise_image(40, 56)
    ours = replace(PLAIN, resize=size, crop=size, interpolation=interpolation)(to_batch(image)) * 255
    pil = np.asarray(Image.fromarray(image).resize((size, size), PIL_FILTERS[interpolation]), np.float32)
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - pil).max() < 2


def test_the_full_size_preset_equals_its_pil_pipeline():
    image = noise_image(32, 32)
    ours = Preprocessing(256, 224, IMAGENET_MEAN, IMAGENET_STD)(to_batch(image))
    resized = Image.fromarray(image).resize((256, 256), Image.LANCZOS).crop((16, 16, 240, 240))
    pil = (np.asarray(resized, np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    assert ours.shape == (1, 3, 224, 224)
    assert ours.dtype == torch.float32
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - pil).max() < 2 / 255 / min(IMAGENET_STD)


def test_an_image_of_the_right_size_is_only_scaled_and_normalised():
    images = random_batch(2)
    pixels = replace(PLAIN, mean=(0.5, 0.25, 0.0), std=(0.5, 2.0, 1.0))(images)
    scaled = images.double() / 255
    expected = torch.stack([(scaled[:, 0] - 0.5) / 0.5, (scaled[:, 1] - 0.25) / 2, scaled[:, 2]], 1)
    torch.testing.assert_close(pixels.double(), expected, atol=1e-6, rtol=1e-6)


def test_a_one_pixel_image_becomes_one_colour():
    pixels = PLAIN(torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1))
    expected = torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1).expand(3, 8, 8) / 255
    torch.testing.assert_close(pixels[0], expected)


def test_the_centre_is_cropped():
    images = random_batch(2, size=12)
    expected = images[:, :, 2:10, 2:10].float() / 255
    torch.testing.assert_close(replace(PLAIN, resize=12)(images), expected)


def test_images_keep_their_order_in_a_batch():
    images = random_batch(3, size=20)
    preprocessing = replace(PLAIN, resize=12)
    torch.testing.assert_close(preprocessing(images)[2:], preprocessing(images[2:]))


@pytest.mark.parametrize("interpolation", PIL_FILTERS)
@pytest.mark.parametrize(("size_in", "size_out"), [(7, 7), (5, 13), (224, 32), (1, 4), (4, 1)])
def test_resize_rows_sum_to_one(interpolation, size_in, size_out):
    matrix = resize_matrix(size_in, size_out, interpolation)
    assert matrix.shape == (size_out, size_in)
    torch.testing.assert_close(matrix.sum(1), torch.ones(size_out))


@pytest.mark.parametrize("interpolation", PIL_FILTERS)
@pytest.mark.parametrize("size", [(40, 300), (300, 40), (16, 16), (33, 90)])
def test_a_resize_that_leaves_out_zeros_equals_the_whole_matrices(interpolation, size):
    images = random_batch(2, size=250)[:, :, :210]
    down, across = (resize_matrix(*sizes, interpolation) for sizes in ((210, size[0]), (250, size[1])))
    expected = down.double() @ images.double() @ across.double().T
    for layout in (images, images.contiguous(memory_format=torch.channels_last), images.float()):
        torch.testing.assert_close(resample(layout, *size, interpolation).double(), expected, atol=1e-3, rtol=1e-5)


def test_a_long_side_costs_no_more_than_what_is_read_of_it(monkeypatch):
    made = []
    weights = preprocessing._weights
    monkeypatch.setattr(preprocessing, "_weights", lambda *about: made.append(weights(*about)) or made[-1])
    assert replace(PLAIN, resize=64)(torch.zeros(1, 3, 2, 61_234, dtype=torch.uint8)).shape == (1, 3, 8, 8)
    assert max(band.numel() for band in made) < 64 * 61_234 / 3


def test_only_some_sizes_are_kept():
    for size in range(100, 200):
        resample(torch.zeros(1, 1, 1, size), 1, 8, "bilinear")
    assert _resize_bands.cache_info().currsize <= SIZES_KEPT


@pytest.mark.parametrize("interpolation", PIL_FILTERS)
def test_resampling_to_the_same_size_changes_nothing(interpolation):
    images = torch.rand(2, 3, 9, 6)
    torch.testing.assert_close(resample(images, 9, 6, interpolation), images, atol=1e-6, rtol=1e-5)


def test_augmentation_without_choices_equals_the_plain_call():
    images, preprocessing = random_batch(4, size=20), replace(PLAIN, resize=12)
    augmented = preprocessing.augmented(images, flip=False, random_crop=False)
    torch.testing.assert_close(augmented, preprocessing(images))


def test_random_crops_lie_within_the_image_and_differ_between_images():
    torch.manual_seed(0)
    size, crop = 12, 8
    # Every pixel tells its own position: red is the row, green the column.
    rows = torch.arange(size, dtype=torch.uint8)[:, None].expand(size, size)
    image = torch.stack([rows, rows.T, torch.zeros_like(rows)])
    cropped = replace(PLAIN, resize=size).augmented(image.expand(200, -1, -1, -1), flip=False, random_crop=True) * 255
    assert cropped.shape == (200, 3, crop, crop)
    corners = cropped[:, :2, 0, 0].round().int()
    assert {tuple(corner) for corner in corners.tolist()} == {(r, c) for r in range(5) for c in range(5)}
    steps = torch.arange(crop)
    assert torch.equal(
        cropped[:, 0].round().int(), (corners[:, :1, None] + steps[:, None]).expand(-1, crop, crop).int()
    )
    assert torch.equal(cropped[:, 1].round().int(), (corners[:, 1:, None] + steps).expand(-1, crop, crop).int())


def test_random_flips_mirror_some_images_and_keep_the_others():
    torch.manual_seed(0)
    images = random_batch(64)
    pixels = PLAIN.augmented(images, flip=True, random_crop=False) * 255
    kept = (pixels - images).abs().amax((1, 2, 3)) < 0.01
    mirrored = (pixels - images.flip(3)).abs().amax((1, 2, 3)) < 0.01
    assert torch.equal(kept, ~mirrored)
    assert 16 < kept.sum() < 48


def test_random_mirror_keeps_shape_and_type():
    images = random_batch(5)
    assert random_mirror(images).shape == images.shape
    assert random_mirror(images).dtype == torch.uint8


def test_randomness_follows_the_torch_seed():
    images, preprocessing = random_batch(16, size=12), replace(PLAIN, resize=12)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return preprocessing.augmented(images, flip=True, random_crop=True)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def centre_of_mass(heatmap: torch.Tensor) -> tuple[float, float]:
    rows, columns = torch.arange(heatmap.shape[0]) + 0.5, torch.arange(heatmap.shape[1]) + 0.5
    total = heatmap.sum()
    return ((heatmap.sum(1) * rows).sum() / total).item(), ((heatmap.sum(0) * columns).sum() / total).item()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (60, 60), (24, 90), (500, 40)])
@pytest.mark.parametrize(("resize", "crop"), [(32, 32), (40, 32), (41, 32)], ids=["whole", "cropped", "odd border"])
def test_a_peak_over_the_crop_lands_where_the_pixels_came_from(resize, crop, height, width):
    preprocessing = Preprocessing(resize, crop, PLAIN.mean, PLAIN.std)
    heatmap = torch.zeros(1, crop, crop)
    heatmap[0, 20, 9] = 1
    placed = preprocessing.to_input(heatmap, height, width)
    assert placed.shape == (1, height, width)
    before = (resize - crop) // 2
    expected = ((20.5 + before) * height / resize, (9.5 + before) * width / resize)
    row, column = centre_of_mass(placed[0])
    assert row == pytest.approx(expected[0], abs=0.05 * height / resize + 0.1)
    assert column == pytest.approx(expected[1], abs=0.05 * width / resize + 0.1)


def test_a_bright_spot_is_found_again_through_preprocessing_and_back():
    preprocessing = Preprocessing(40, 32, PLAIN.mean, PLAIN.std)
    image = torch.zeros(1, 3, 60, 120, dtype=torch.uint8)
    image[:, :, 21:27, 78:90] = 255
    seen = preprocessing(image).mean(1)
    back = preprocessing.to_input(seen, 60, 120)[0]
    assert centre_of_mass(back) == pytest.approx((24, 84), abs=0.5)
    assert torch.unravel_index(back.argmax(), back.shape)[0] in range(21, 27)


def test_a_heatmap_is_zero_where_the_crop_never_looked():
    placed = Preprocessing(40, 32, PLAIN.mean, PLAIN.std).to_input(torch.ones(2, 32, 32), 80, 80)
    assert placed[:, 20:60, 20:60].min() == pytest.approx(1)
    assert placed[:, :6].max() == placed[:, :, -6:].max() == 0


def test_a_coarse_map_is_stretched_over_the_whole_input():
    placed = PLAIN.to_input(torch.tensor([[[1.0, 3.0], [1.0, 3.0]]]), 20, 20)[0]
    assert placed[:, 0].tolist() == pytest.approx([1.0] * 20)
    assert placed[:, -1].tolist() == pytest.approx([3.0] * 20)
    assert (placed.diff(dim=1) >= -1e-6).all()


def test_preprocessing_survives_json():
    import json

    preprocessing = Preprocessing(256, 224, IMAGENET_MEAN, IMAGENET_STD, "bicubic")
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.as_dict()))) == preprocessing


def test_training_under_autocast_sees_the_pixels_that_are_judged_later():
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    preprocessing = Preprocessing(32, 32, PLAIN.mean, PLAIN.std)
    with torch.autocast("cpu", torch.bfloat16):
        inside = preprocessing(images)
    assert torch.equal(inside, preprocessing(images))


def test_an_oblong_size_equals_pil_within_two_grey_levels():
    image = noise_image(70, 90)
    size = (24, 64)
    oblong = replace(PLAIN, resize=size, crop=size, interpolation="bicubic")
    ours = oblong(to_batch(image))[0] * 255
    pil = np.asarray(Image.fromarray(image).resize((64, 24), Image.BICUBIC), np.float32)
    assert ours.shape == (3, 24, 64)
    assert np.abs(ours.permute(1, 2, 0).numpy() - pil).max() < 2


def test_an_oblong_crop_lies_in_the_middle_and_a_map_over_it_too():
    oblong = replace(PLAIN, resize=(12, 20), crop=(8, 10))
    image = torch.zeros(1, 3, 12, 20, dtype=torch.uint8)
    image[:, :, 2:10, 5:15] = 255
    assert (oblong(image) == 1).all()
    framed = oblong.to_input(torch.ones(1, 4, 5), 12, 20)
    torch.testing.assert_close(framed, image[:, 0].float() / 255)


def test_a_size_that_holds_no_crop_is_refused(refusal):
    assert "cannot crop 8×20 pixels out of 12" in refusal(replace, PLAIN, resize=12, crop=(8, 20))
