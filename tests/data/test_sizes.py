"""The size at which a folder of images is read."""

import numpy as np
import pytest
from PIL import Image

from kdad.data.sizes import MAX_AREA, MIN_AREA, MULTIPLE, as_size, fitting_size, need_tiles, size_in_words
from kdad.networks.teachers.registry import default_image_size


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(512, 512)] * 3, (384, 384)),
        ([(1260, 500)] * 3, (608, 256)),
        ([(300, 300)] * 3, (288, 288)),
        ([(32, 32)] * 3, (256, 256)),
        ([(100, 400), (200, 600), (150, 500)], (160, 512)),
    ],
)
def test_images_are_read_at_their_median_size_within_bounds_and_in_their_aspect(sizes, expected):
    assert fitting_size(sizes) == expected
    height, width = expected
    assert height % MULTIPLE == width % MULTIPLE == 0
    assert 0.85 * MIN_AREA <= height * width <= 1.15 * MAX_AREA


def test_very_long_images_keep_a_side():
    height, width = fitting_size([(40, 9000)])
    assert height == MULTIPLE
    assert width > 20 * height


def test_tiles_are_for_images_far_larger_than_the_input():
    assert need_tiles([(4000, 6000)], (384, 384))
    assert not need_tiles([(3024, 4032)], fitting_size([(3024, 4032)]))  # of a phone


def test_a_size_is_given_by_one_number_or_two():
    assert as_size(64) == as_size([64, 64]) == (64, 64)
    assert (size_in_words((64, 64)), size_in_words((64, 96))) == ("64", "64×96")


def save_images(folder, size):
    folder.mkdir(parents=True)
    for index in range(3):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / f"{index}.png")


def test_a_folder_says_the_size_by_its_normals_alone(tmp_path):
    save_images(tmp_path / "train" / "good", (500, 200))
    save_images(tmp_path / "test" / "good", (64, 64))
    (tmp_path / "train" / "good" / "broken.png").write_text("x")
    assert default_image_size("lite0-imagenet", f"folder:{tmp_path}") == fitting_size([(500, 200)])
    assert default_image_size("lite0-imagenet", f"folder:{tmp_path}/nowhere") is None
    assert default_image_size("vgg-cifar10", f"folder:{tmp_path}") is None


def test_categories_of_one_sweep_share_a_size(tmp_path):
    for category in ("nut", "screw"):
        save_images(tmp_path / category / "train" / "good", (500, 200))
        save_images(tmp_path / category / "test" / "bent", (64, 64))
    assert default_image_size("lite0-imagenet", f"folder:{tmp_path}") == fitting_size([(500, 200)])
