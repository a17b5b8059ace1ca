"""From heatmaps to pictures: colours, overlays, masks and outlines."""

from functools import cache
from pathlib import Path

import numpy as np

from kdad.files import write_atomically

COLOUR_MAP = "inferno"
TOP_PERCENTILE = 99
OPENING = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)  # an ellipse of 3×3 pixels


def colour_range(quantiles: np.ndarray | None) -> tuple[float, float]:
    """The fixed ends of the colour scale, from the percentiles (101,) of calibration heatmaps.

    Dark is the median normal patch; the bright end lies as far above the normals' 99th
    percentile as that lies above the median, so normal images stay dark. Without calibration
    the scale is 0…2, the range of a patch error.
    """
    if quantiles is None:
        return 0.0, 2.0
    low, top = float(quantiles[50]), float(quantiles[TOP_PERCENTILE])
    return low, top + (top - low)


def mask_of(heatmap: np.ndarray, above: float) -> np.ndarray:
    """The anomalous pixels of a heatmap (H, W), bool: those above a threshold, after a 3×3 elliptic opening."""
    from scipy.ndimage import binary_opening

    return binary_opening(heatmap > above, OPENING)


def outline(pixels: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """uint8 (H, W, 3) with the inner border of a mask (H, W) drawn two pixels wide."""
    from scipy.ndimage import binary_erosion

    drawn = pixels.copy()
    drawn[mask & ~binary_erosion(mask, OPENING, iterations=2, border_value=1)] = colour
    return drawn


def colourise(heatmap: np.ndarray, low: float, high: float) -> np.ndarray:
    """A heatmap (H, W) as uint8 (H, W, 3) in matplotlib's inferno between `low` and `high`."""
    level = ((heatmap - low) / max(high - low, 1e-12)).clip(0, 1)
    colours = _colours()
    return colours[(level * len(colours)).astype(np.intp).clip(max=len(colours) - 1)]


@cache
def _colours() -> np.ndarray:
    """The colour map as uint8 (256, 3): asked pixel by pixel, it would answer with four float64 each."""
    from matplotlib import colormaps

    colour_map = colormaps[COLOUR_MAP]
    return (colour_map(np.arange(colour_map.N))[:, :3] * 255).round().astype(np.uint8)


def overlay(image: np.ndarray, heatmap: np.ndarray, low: float, high: float, opacity: float = 0.6) -> np.ndarray:
    """The heatmap (H, W) over its image, both as uint8 (H, W, 3)."""
    mixed = (1 - opacity) * image + opacity * colourise(heatmap, low, high)
    return mixed.round().astype(np.uint8)


def resized_map(heatmap: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map (h, w) at another size (height, width), bilinear."""
    import torch

    from kdad.data.preprocessing import resample

    if heatmap.shape == (height, width):
        return heatmap
    return resample(torch.from_numpy(heatmap)[None, None], height, width, "bilinear")[0, 0].numpy()


def save_png(file: Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as PNG, whole or not at all."""
    from PIL import Image

    write_atomically(file, lambda path: Image.fromarray(pixels).save(path, format="PNG"))
