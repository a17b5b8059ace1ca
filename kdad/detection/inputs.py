"""Convert anything that people pass to a detector into one batch of uint8 images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdad.data.decoding import read_image, to_rgb_tensor
from kdad.errors import UserError

ACCEPTED = "a path, a PIL image, a tensor (3, H, W), an array (H, W, 3), a batch, or a sequence of images"
CHANNELS = (1, 3, 4)


def to_batch(images: Any, max_value: int = 0) -> Tensor:
    """Convert images of one size to uint8 (B, 3, H, W).

    Args:
        images: one or more of paths, PIL images, tensors (C, H, W) and arrays (H, W) or (H, W, C); or a tensor
            (B, C, H, W) or an array (B, H, W, C). Of C = 1, 3 or 4 channels, a fourth is opacity, over white; numbers
            are uint8, or floats in 0…1.
        max_value: as of `kdad.data.decoding.read_image`.

    Raises:
        UserError: it is anything else, empty or unreadable, or the sizes differ.
    """
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        if not images.shape[0]:
            raise UserError("no image to judge")
        return _from_numbers(images)
    if isinstance(images, Tensor | np.ndarray | str | Path | Image.Image):
        return to_image(images, max_value)[None]
    if not isinstance(images, Iterable) or isinstance(images, bytes | dict):
        raise UserError(f"an image is {ACCEPTED}; not {type(images).__name__}")
    each = [to_image(image, max_value) for image in images]
    if not each:
        raise UserError("no image to judge")
    if len({image.shape for image in each}) > 1:
        raise UserError("predict takes images of one size; call it once for every size")
    return torch.stack(each)


def to_image(image: Any, max_value: int = 0) -> Tensor:
    """Convert one image to uint8 (3, H, W).

    Raises:
        UserError: it is no image, or cannot be read.
    """
    if isinstance(image, str | Path):
        if Path(image).is_dir():
            raise UserError(f"{image} is a directory; `kdad score` judges all images in one")
        return read_image(image, max_value=max_value)
    if isinstance(image, Image.Image):
        return to_rgb_tensor(image, "the image", max_value)
    if isinstance(image, Tensor) and image.ndim == 3:
        return _from_numbers(image[None])[0]
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        return _from_numbers(image[None] if image.ndim == 3 else image[None, :, :, None])[0]
    shape = f" of shape {tuple(image.shape)}" if isinstance(image, Tensor | np.ndarray) else ""
    raise UserError(f"an image is {ACCEPTED}; not {type(image).__name__}{shape}")


def _from_numbers(batch: Tensor | np.ndarray) -> Tensor:
    """Convert a batch of numbers: channels first in tensors and last in arrays, as is usual for each."""
    expected = "uint8 or float (B, 3, H, W)" if isinstance(batch, Tensor) else "uint8 or float (B, H, W, 3)"
    wrong = UserError(f"images must be {expected}, not {batch.dtype} {tuple(batch.shape)}")
    tensor = (
        batch
        if isinstance(batch, Tensor)
        else torch.from_numpy(np.require(batch, requirements=["C", "W"])).permute(0, 3, 1, 2)
    )
    if tensor.shape[1] not in CHANNELS or not tensor.numel():
        raise wrong
    if tensor.is_floating_point():
        low, high = float(tensor.min()), float(tensor.max())
        if not 0 <= low <= high <= 1:  # not so for NaN either
            raise UserError(f"images of floats must lie in 0…1, not {low:g}…{high:g}; pass uint8 for 0…255")
        tensor = (tensor * 255).round().byte()
    if tensor.dtype != torch.uint8:
        raise wrong
    if tensor.shape[1] == 4:
        opacity = tensor[:, 3:].float() / 255
        tensor = (tensor[:, :3] * opacity + 255 * (1 - opacity)).round().byte()
    return tensor.expand(-1, 3, -1, -1) if tensor.shape[1] == 1 else tensor
