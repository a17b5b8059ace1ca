"""Pseudo-anomalies: normal images with something blended in, to learn which layers locate an anomaly.

After Li et al. 2021, *CutPaste* (arXiv 2104.04015): patches and thin scars, here turned by any angle, taken from
another normal image in other colours, or of one colour. Unlike CutPaste's, they are of any size down to a thousandth of
the image, more or less transparent, their edges more or less soft, and half of them of no other hues than the images
have, as real defects are: what is large, opaque and of another hue is found by any layer, which tells nothing. No
labelled anomaly is needed.
"""

import numpy as np

AREA = (0.001, 0.05)  # share of the image, log-uniform
LOG_ASPECT = (0.0, 2.5)  # length over width, natural logarithm
OPACITY = (0.15, 1.0)
SOFTNESS = (0.0, 0.6)  # share of the half-width over which the edge fades
THINNEST = 0.75  # half-width in pixels
CONTRAST = (0.7, 1.3)  # of another image
BRIGHTNESS = (0.3, 1.7)  # of a colour, as a multiple of one that is there


def blend_in(images: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Each of uint8 images (N, H, W, 3) with one thing blended in, and where: bool (N, H, W)."""
    rng = np.random.default_rng(seed)
    blended, masks = images.copy(), np.zeros(images.shape[:3], bool)
    for image, mask in zip(blended, masks, strict=True):
        cover = _turned_rectangle(mask.shape, rng)
        mask[:] = cover >= cover.max() / 2
        opacity = (rng.uniform(*OPACITY) * cover)[..., None]
        filling = _filling(images[rng.integers(len(images))], rng)
        image[:] = (image * (1 - opacity) + filling * opacity).round()
    return blended, masks


def _turned_rectangle(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """How much a rectangle of random area, aspect, angle, place and softness covers each pixel, 0…1."""
    height, width = shape
    area = np.exp(rng.uniform(*np.log(AREA))) * height * width
    stretch = np.exp(rng.uniform(*LOG_ASPECT) / 2)
    half_length, half_breadth = (max(side / 2, THINNEST) for side in (np.sqrt(area) * stretch, np.sqrt(area) / stretch))
    angle, (y, x) = rng.uniform(0, np.pi), rng.uniform(0.1, 0.9, 2) * shape
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    along = abs(np.cos(angle) * (columns - x) + np.sin(angle) * (rows - y)) / half_length
    across = abs(np.cos(angle) * (rows - y) - np.sin(angle) * (columns - x)) / half_breadth
    softness = max(rng.uniform(*SOFTNESS), 1e-6)
    return ((1 - np.maximum(along, across)) / softness).clip(0, 1)


def _filling(other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What shows inside the rectangle, float (H, W, 3): one colour, or another image moved; half in new hues."""
    channels = 3 if rng.random() < 1 / 2 else 1
    if rng.random() < 1 / 2:
        moved = np.roll(other, rng.integers(0, other.shape[:2]), (0, 1)).astype(np.float64)
        return (moved * rng.uniform(*CONTRAST, channels) + rng.uniform(-25, 25)).clip(0, 255)
    if channels == 3:
        return np.broadcast_to(rng.uniform(0, 255, 3), other.shape)
    colour = other[rng.integers(other.shape[0]), rng.integers(other.shape[1])]
    return np.broadcast_to((colour * rng.uniform(*BRIGHTNESS)).clip(0, 255), other.shape)
