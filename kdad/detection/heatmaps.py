"""From the patch errors of every critical layer to one heatmap over the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from kdad.data.preprocessing import Preprocessing, resample

SAMPLE_SIDE = 32  # points a side of each map that weights and colour scales are fitted on


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

    def to(self, device: torch.device | str) -> "PatchReading":
        """The same on another device."""
        return PatchReading(self.mean.to(device), self.std.to(device), self.weights.to(device))

    def standardise(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The patch errors (B, h, w) of all layers in standard deviations above a normal patch."""
        return [
            (errors - mean) / std.clamp(min=1e-12) for errors, mean, std in zip(maps, self.mean, self.std, strict=True)
        ]


@dataclass(frozen=True)
class MapGeometry:
    """Where maps lie on an image: over the crop that the teacher sees or, of tiled images, over all of it."""

    preprocessing: Preprocessing
    tile: int

    def combine(self, maps: Sequence[Tensor], weights: Tensor) -> Tensor:
        """One map (B, h, w): the weighted sum of standardised maps, upsampled bilinearly.

        It is as large as the crop, or as the finest of stitched maps.
        """
        height, width = maps[0].shape[1:] if self.tile else (self.preprocessing.crop, self.preprocessing.crop)
        weighted = (
            weight * resample(layer[:, None], height, width, "bilinear")[:, 0]
            for layer, weight in zip(maps, weights, strict=True)
        )
        return reduce(torch.add, weighted)

    def to_image(self, combined: Tensor, height: int, width: int) -> Tensor:
        """What `combine` made, (B, h, w), over an image of any size: (B, height, width)."""
        if self.tile:
            return resample(combined[:, None], height, width, "bilinear")[:, 0]
        return self.preprocessing.to_input(combined, height, width)


def sampled(maps: Tensor) -> Tensor:
    """The values of maps (N, H, W) at about `SAMPLE_SIDE` points a side, flat."""
    down, across = (max(1, side // SAMPLE_SIDE) for side in maps.shape[1:])
    return maps[:, down // 2 :: down, across // 2 :: across].flatten()
