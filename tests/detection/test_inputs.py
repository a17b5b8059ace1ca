"""What people pass to `predict`: what is clear is taken, what is not gets one line that says what to pass."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdad.detection.inputs import to_batch
from kdad.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)
EXPECTED = torch.from_numpy(COLOUR).permute(2, 0, 1)


@pytest.fixture
def file(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.mark.parametrize(
    "image",
    [
        COLOUR,
        Image.fromarray(COLOUR),
        EXPECTED,
        COLOUR.astype(np.float32) / 255,
        COLOUR.astype(np.float64) / 255,
        EXPECTED.float() / 255,
        EXPECTED.half() / 255,
        np.dstack([COLOUR, np.full((8, 6), 255, np.uint8)]),
        Image.fromarray(COLOUR).convert("RGBA"),
    ],
    ids=["array", "PIL", "tensor", "float32", "float64", "float tensor", "half", "opaque array", "opaque PIL"],
)
def test_one_image_alone_in_a_list_in_a_generator_and_in_a_batch_is_the_same(image):
    for passed in (image, [image], (image,), (each for each in [image])):
        batch = to_batch(passed)
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, EXPECTED[None])
    if not isinstance(image, Image.Image):
        assert torch.equal(to_batch(image[None]), EXPECTED[None])


def test_paths_are_read(file):
    for passed in (file, str(file), [file, str(file)]):
        assert torch.equal(to_batch(passed)[0], EXPECTED)


def test_what_is_grey_or_transparent_becomes_colour():
    grey = COLOUR[..., 0]
    expected = EXPECTED[:1].expand(3, -1, -1)
    for image in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)[None]):
        assert torch.equal(to_batch([image])[0], expected)
    clear = np.dstack([COLOUR, np.zeros((8, 6), np.uint8)])
    assert (to_batch(clear) == 255).all()
    assert torch.equal(to_batch(clear), to_batch(Image.fromarray(clear)))


def test_images_keep_their_order():
    images = [COLOUR, 255 - COLOUR]
    for passed in (images, np.stack(images), iter(images), torch.stack([EXPECTED, 255 - EXPECTED])):
        assert torch.equal(to_batch(passed), torch.stack([EXPECTED, 255 - EXPECTED]))


def test_deep_images_have_the_white_of_the_student():
    deep = Image.fromarray(np.array([[0, 1000]], np.uint16))
    assert to_batch(deep, max_value=4095).max() == round(1000 * 255 / 4095)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "no image to judge"),
        (iter([]), "no image to judge"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "no image to judge"),
        (None, "an image is a path, a PIL image, .* not NoneType"),
        (7, "not int"),
        (b"bytes", "not bytes"),
        ({"image": COLOUR}, "not dict"),
        ([None], "not NoneType"),
        (torch.zeros(1, 3, 0, 8, dtype=torch.uint8), "must be uint8 or float"),
        (torch.zeros(2, 5, 8, 8, dtype=torch.uint8), "must be uint8 or float"),
        (COLOUR.transpose(2, 0, 1), r"must be uint8 or float \(B, H, W, 3\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "must be uint8 or float .* not torch.int64"),
        (np.zeros((8, 8, 3), bool), "must be uint8 or float"),
        (np.zeros(8, np.uint8), r"not ndarray of shape \(8,\)"),
        (torch.full((2, 3, 8, 8), 200.0), "must lie in 0…1, not 200…200; pass uint8 for 0…255"),
        (torch.full((3, 8, 8), float("nan")), "must lie in 0…1"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], "one size"),
        ("nowhere.png", "no such file"),
    ],
)
def test_anything_else_is_a_clear_error(images, said):
    with pytest.raises(UserError, match=said) as refused:
        to_batch(images)
    assert "\n" not in str(refused.value)


def test_a_directory_is_for_the_command_line(tmp_path):
    with pytest.raises(UserError, match="is a directory; `kdad score`"):
        to_batch(tmp_path)
