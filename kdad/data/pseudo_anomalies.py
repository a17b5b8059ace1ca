"""Pseudo-anomalies: normal images with something pasted in, to learn which layers locate an anomaly.

After Li et al. 2021, *CutPaste* (arXiv 2104.04015): patches and thin scars, here turned by any angle, taken from
another normal image in other colours, or of one colour. No labelled anomaly is needed.
"""

import numpy as np

PATCH, SCAR, PLAIN = range(3)
AREA = {PATCH: (0.02, 0.15), SCAR: (0.01, 0.05), PLAIN: (0.01, 0.05)}  # share of the image
LOG_ASPECT = {PATCH: (0.0, 1.2), SCAR: (1.2, 2.5), PLAIN: (0.0, 2.5)}  # length over width, natural logarithm


def cut_and_paste(images: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Each of uint8 images (N, H, W, 3) with one thing pasted in, and where: bool (N, H, W)."""
    rng = np.random.default_rng(seed)
    pasted, masks = images.copy(), np.zeros(images.shape[:3], bool)
    for image, mask in zip(pasted, masks, strict=True):
        kind = int(rng.integers(3))
        mask[:] = _turned_rectangle(mask.shape, kind, rng)
        image[mask] = _filling(images[rng.integers(len(images))], kind, rng)[mask]
    return pasted, masks


def _turned_rectangle(shape: tuple[int, int], kind: int, rng: np.random.Generator) -> np.ndarray:
    """A rectangle of random area, aspect, angle and place, at least a pixel and a half wide."""
    height, width = shape
    area = rng.uniform(*AREA[kind]) * height * width
    stretch = np.exp(rng.uniform(*LOG_ASPECT[kind]) / 2)
    length, breadth = np.sqrt(area) * stretch, np.sqrt(area) / stretch
    angle, (y, x) = rng.uniform(0, np.pi), rng.uniform(0.15, 0.85, 2) * shape
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    along = np.cos(angle) * (columns - x) + np.sin(angle) * (rows - y)
    across = np.cos(angle) * (rows - y) - np.sin(angle) * (columns - x)
    return (abs(along) < max(length / 2, 0.75)) & (abs(across) < max(breadth / 2, 0.75))


def _filling(other: np.ndarray, kind: int, rng: np.random.Generator) -> np.ndarray:
    """What shows inside the rectangle, uint8 (H, W, 3): one colour, or another image moved and recoloured."""
    if kind == PLAIN:
        return np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), other.shape)
    moved = np.roll(other, rng.integers(0, other.shape[:2]), (0, 1)).astype(np.float64)
    return (moved * rng.uniform(0.7, 1.3, 3) + rng.uniform(-25, 25)).clip(0, 255).astype(np.uint8)
