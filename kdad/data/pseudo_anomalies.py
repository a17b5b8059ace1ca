"""Pseudo-anomalies: normal images with something blended in, to learn which layers locate an anomaly.

After Li et al. 2021, *CutPaste* (arXiv 2104.04015): patches and thin scars, here at any angle, taken from another
normal image with changed colours, or of one colour. Unlike CutPaste's, they go down to a thousandth of the image, vary
in transparency and in softness of their edges, and half of them keep the hues of the images, as real defects do: large,
opaque regions of a different hue are found by every layer, and do not discriminate between layers. No labelled anomaly
is needed.
"""

import numpy as np

AREA = (0.001, 0.05)  # share of the image, log-uniform
LOG_ASPECT = (0.0, 2.5)  # length over width, natural logarithm
OPACITY = (0.15, 1.0)
SOFTNESS = (0.0, 0.6)  # share of the half-width over which the edge fades
THINNEST = 0.75  # half-width in pixels
CONTRAST = (0.7, 1.3)  # of another image
BRIGHTNESS = (0.3, 1.7)  # of a colour, as a multiple of one from the image


def blend_in(images: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Blend one pseudo-anomaly into each of uint8 images (N, H, W, 3); returns images and masks, bool (N, H, W)."""
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
    """Coverage in 0…1 of each pixel by a rectangle of random area, aspect, angle, position and softness."""
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
    """Filling of the rectangle, float (H, W, 3): one colour, or a shifted other image; half of them in new hues."""
    channels = 3 if rng.random() < 1 / 2 else 1
    if rng.random() < 1 / 2:
        moved = np.roll(other, rng.integers(0, other.shape[:2]), (0, 1)).astype(np.float64)
        return (moved * rng.uniform(*CONTRAST, channels) + rng.uniform(-25, 25)).clip(0, 255)
    if channels == 3:
        return np.broadcast_to(rng.uniform(0, 255, 3), other.shape)
    colour = other[rng.integers(other.shape[0]), rng.integers(other.shape[1])]
    return np.broadcast_to((colour * rng.uniform(*BRIGHTNESS)).clip(0, 255), other.shape)
