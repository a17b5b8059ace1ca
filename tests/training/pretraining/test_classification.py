"""How training images of teachers are changed."""

import torch

from kdad.training.pretraining.classification import random_shift


def test_random_shift_moves_each_image_by_its_own_whole_pixels():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 16, 16)).byte()
    shifted = random_shift(image.expand(100, -1, -1, -1), 4)
    assert shifted.shape == (100, 3, 16, 16)
    assert shifted.dtype == torch.uint8
    # A shift by at most 4 leaves the inner 8×8 somewhere within 4 pixels of its place.
    inner = shifted[:, :, 4:12, 4:12]
    windows = image[0].unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    found = (inner[:, None] == windows[None]).flatten(2).all(2)
    assert (found.sum(1) == 1).all()
    assert len(set(found.int().argmax(1).tolist())) > 40
