"""What the app shows without any image of one's own."""

import pytest

from kdad.data.photo_textures import DEFECTS
from ui.shared import samples


@pytest.mark.parametrize("name", samples.NAMES)
def test_every_sample_has_a_name_of_its_own_and_is_an_image(name):
    made = samples.pictures(name, 0)
    assert len({picture.name for picture in made}) == len(made) >= 8
    assert all(picture.pixels.ndim == 3 and picture.pixels.dtype == "uint8" for picture in made)
    assert samples.label(name).startswith(name)


def test_defects_of_a_photographed_texture_have_masks_and_another_draw_makes_others():
    made = samples.pictures("brick", 0)
    assert [picture.name for picture in made if picture.truth == "defect"] == list(DEFECTS)
    assert all((picture.mask is not None) == (picture.truth == "defect") for picture in made)
    others = samples.pictures("brick", 1)
    assert not {picture.digest for picture in made} & {picture.digest for picture in others}


def test_photographs_come_in_full_and_as_cifar_images_are():
    sizes = {picture.name: picture.pixels.shape[:2] for picture in samples.pictures(samples.PHOTOGRAPHS, 0)}
    assert sizes["cat"] == (300, 451)
    assert sizes["cat, 32 px"] == sizes["rocket, 32 px"] == (32, 32)
