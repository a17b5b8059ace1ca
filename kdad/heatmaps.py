"""From patch errors to heatmaps, and from heatmaps to pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdad.files import write_atomically
from kdad.preprocessing import resample

COLOUR_MAP = "inferno"
TOP_PERCENTILE = 99


def in_normal_units(maps: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
    """The patch errors (B, h, w) of all layers divided by their `scale` (L,), the mean error of a normal patch."""
    return [errors / unit.clamp(min=1e-12) for errors, unit in zip(maps, scale, strict=True)]


def combine(maps: Sequence[Tensor], scale: Tensor, side: int) -> Tensor:
    """One map (B, side, side) from the patch errors (B, h, w) of all layers.

    Each layer is divided by its mean error on calibration normals, so that layers speak alike,
    upsampled bilinearly, and averaged.
    """
    layers = [resample(errors[:, None], side, side, "bilinear") for errors in in_normal_units(maps, scale)]
    return torch.cat(layers, 1).mean(1)


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


def colourise(heatmap: np.ndarray, low: float, high: float) -> np.ndarray:
    """A heatmap (H, W) as uint8 (H, W, 3) in matplotlib's inferno between `low` and `high`."""
    from matplotlib import colormaps

    level = ((heatmap - low) / max(high - low, 1e-12)).clip(0, 1)
    return (colormaps[COLOUR_MAP](level)[..., :3] * 255).round().astype(np.uint8)


def overlay(image: np.ndarray, heatmap: np.ndarray, low: float, high: float, opacity: float = 0.6) -> np.ndarray:
    """The heatmap (H, W) over its image, both as uint8 (H, W, 3)."""
    mixed = (1 - opacity) * image + opacity * colourise(heatmap, low, high)
    return mixed.round().astype(np.uint8)


def save_png(file: Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as PNG, whole or not at all."""
    from PIL import Image

    write_atomically(file, lambda path: Image.fromarray(pixels).save(path, format="PNG"))
