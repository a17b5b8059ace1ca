"""Image perturbations for probing a detector; every function takes and returns uint8 (H, W, 3)."""

import numpy as np
from PIL import Image, ImageFilter


def add_noise(image: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    """Add Gaussian noise of standard deviation `strength`, as a share of the range of grey levels."""
    noise = np.random.default_rng(seed).standard_normal(image.shape, np.float32)
    return (image + 255 * strength * noise).clip(0, 255).round().astype(np.uint8)


def blur(image: np.ndarray, strength: float) -> np.ndarray:
    """Apply a Gaussian blur with a standard deviation of `strength` times the shorter side."""
    radius = strength * min(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate counter-clockwise about the centre; corners are filled by mirroring the image at its border."""
    height, width = image.shape[:2]
    # The corner farthest outside the frame is half a diagonal from the centre.
    room = int(np.ceil((np.hypot(height, width) - min(height, width)) / 2)) + 1
    framed = np.pad(image, ((room, room), (room, room), (0, 0)), mode="symmetric")
    turned = Image.fromarray(framed).rotate(degrees, Image.Resampling.BICUBIC)
    return np.asarray(turned)[room : room + height, room : room + width]


def square(shape: tuple[int, ...], row: float, column: float, size: float) -> tuple[slice, slice]:
    """Slices of a square centred at (row, column), both in 0…1 of an image of `shape`.

    `size` is its side as a share of the image's shorter side; it is clipped at the border and contains
    at least one pixel.
    """
    side = max(1, round(size * min(shape[:2])))
    slices = []
    for centre, length in zip((row, column), shape[:2], strict=True):
        start = min(max(round(centre * length - side / 2), 0), length - 1)
        slices.append(slice(start, min(max(round(centre * length + side / 2), start + 1), length)))
    return slices[0], slices[1]


def erase(image: np.ndarray, where: tuple[slice, slice]) -> np.ndarray:
    """Replace the pixels `where` by the image's mean colour."""
    changed = image.copy()
    changed[where] = image.mean((0, 1)).round()
    return changed


def paste(image: np.ndarray, where: tuple[slice, slice], other: np.ndarray) -> np.ndarray:
    """Replace the pixels `where` by those of `other` at the same place, after resizing it to the image's size."""
    height, width = image.shape[:2]
    changed = image.copy()
    changed[where] = np.asarray(Image.fromarray(other).resize((width, height), Image.Resampling.BICUBIC))[where]
    return changed
