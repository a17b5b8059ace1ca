"""From patch errors to heatmaps, and from heatmaps to pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdad.files import write_atomically
from kdad.preprocessing import resample

COLOUR_MAP = "inferno"
TOP_PERCENTILE = 99
SAMPLE_SIDE = 32  # points a side of each map that weights and colour scales are fitted on
OPENING = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)  # an ellipse of 3×3 pixels


@dataclass(frozen=True)
class PatchReading:
    """How a student's patch errors are read: what normal patches show, and how much each layer counts.

    `mean` and `std` (L,) are those of the patch errors of held-out normals, so that a standardised
    error of 2 lies two standard deviations above a normal patch; `weights` (L,) combine the layers.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor

    @classmethod
    def plain(cls, layers: int, device: torch.device | None = None) -> "PatchReading":
        """Without calibration: patch errors as they are, 0…2, all layers alike."""
        ones = torch.ones(layers, device=device)
        return cls(torch.zeros_like(ones), ones, ones / layers)

    def standardise(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The patch errors (B, h, w) of all layers in standard deviations above a normal patch."""
        return [
            (errors - mean) / std.clamp(min=1e-12) for errors, mean, std in zip(maps, self.mean, self.std, strict=True)
        ]


def combine(maps: Sequence[Tensor], weights: Tensor, height: int, width: int) -> Tensor:
    """One map (B, height, width): the weighted sum of standardised maps (B, h, w), upsampled bilinearly."""
    return sum(
        weight * resample(layer[:, None], height, width, "bilinear")[:, 0]
        for layer, weight in zip(maps, weights, strict=True)
    )


def layer_weights(points: np.ndarray, pasted: np.ndarray) -> Tensor:
    """How much each layer tells about where an image is odd: (L,), from points of pseudo-anomalies.

    The weights of a logistic regression from the standardised patch errors (N, L) at each point to
    whether something was pasted there (N,) bool. A layer may count against the others: a coarse one
    that says the whole image is unusual explains what the fine ones see.
    """
    from sklearn.linear_model import LogisticRegression

    return torch.from_numpy(LogisticRegression(max_iter=500).fit(points, pasted).coef_[0]).float()


def sampled(maps: Tensor) -> Tensor:
    """The values of maps (N, H, W) at about `SAMPLE_SIDE` points a side, flat."""
    down, across = (max(1, side // SAMPLE_SIDE) for side in maps.shape[1:])
    return maps[:, down // 2 :: down, across // 2 :: across].flatten()


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
