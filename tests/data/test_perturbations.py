"""Small changes to an image."""

import numpy as np
import pytest

from kdad.data import perturbations


def picture(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: perturbations.add_noise(image, 0.2),
        lambda image: perturbations.blur(image, 0.1),
        lambda image: perturbations.rotate(image, 30),
        lambda image: perturbations.erase(image, perturbations.square(image.shape, 0.5, 0.5, 0.5)),
        lambda image: perturbations.paste(image, perturbations.square(image.shape, 0.5, 0.5, 0.5), picture(7, 9, 1)),
    ],
    ids=["noise", "blur", "rotate", "erase", "paste"],
)
@pytest.mark.parametrize("size", [(20, 30), (30, 20), (2, 50)])
def test_a_change_keeps_size_and_type_and_leaves_its_input_alone(change, size):
    image = picture(*size)
    before = image.copy()
    changed = change(image)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    "nothing",
    [
        lambda image: perturbations.add_noise(image, 0),
        lambda image: perturbations.blur(image, 0),
        lambda image: perturbations.rotate(image, 0),
    ],
    ids=["noise", "blur", "rotate"],
)
def test_at_zero_nothing_changes(nothing):
    assert np.array_equal(nothing(picture()), picture())


def test_noise_has_the_deviation_asked_for_and_is_the_same_for_a_seed():
    grey = np.full((100, 100, 3), 128, np.uint8)
    noisy = perturbations.add_noise(grey, 0.1)
    assert noisy.std() == pytest.approx(25.5, rel=0.05)
    assert np.array_equal(noisy, perturbations.add_noise(grey, 0.1))
    assert not np.array_equal(noisy, perturbations.add_noise(grey, 0.1, seed=1))


def test_a_quarter_turn_of_a_square_image_is_exact():
    image = picture(16, 16)
    assert np.array_equal(perturbations.rotate(image, 90), np.rot90(image))


def test_a_turn_brings_in_no_colour_that_was_not_there():
    plain = np.full((20, 40, 3), 77, np.uint8)
    assert np.array_equal(perturbations.rotate(plain, 33), plain)


def test_a_square_lies_where_it_was_asked_for():
    rows, columns = perturbations.square((100, 200, 3), 0.5, 0.25, 0.2)
    assert (rows.start, rows.stop, columns.start, columns.stop) == (40, 60, 40, 60)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (32, 32, 3)])
@pytest.mark.parametrize("place", [(0, 0), (1, 1), (0.06, 0.94)])
def test_a_square_at_the_border_holds_at_least_one_pixel_inside(shape, place):
    where = perturbations.square(shape, *place, 0.05)
    assert np.zeros(shape)[where].size > 0
    for part, length in zip(where, shape, strict=False):
        assert 0 <= part.start < part.stop <= length


def test_erasing_and_pasting_touch_only_the_square():
    image, other = picture(), picture(seed=1)
    where = perturbations.square(image.shape, 0.5, 0.5, 0.5)
    outside = np.ones(image.shape[:2], bool)
    outside[where] = False
    erased, pasted = perturbations.erase(image, where), perturbations.paste(image, where, other)
    assert np.array_equal(erased[outside], image[outside])
    assert np.array_equal(pasted[outside], image[outside])
    assert (erased[where] == image.mean((0, 1)).round()).all()
    assert np.array_equal(pasted[where], other[where])
