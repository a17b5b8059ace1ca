"""From the patch errors of every critical layer to one heatmap over the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from kdad.data.preprocessing import resample
from kdad.detection.tiles import Tiler
from kdad.scores import Measurement

SAMPLES_PER_SIDE = 32  # points of each map that weights and colour scales are fitted on


@dataclass(frozen=True)
class MapNormalization:
    """The mean, standard deviation and weight (L,) of each layer's patch errors.

    `mean` and `std` are those of held-out normals, so that a standardised error of 2 lies two standard deviations above
    a normal patch; `weights` combine the layers.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor

    @classmethod
    def identity(cls, layers: int, device: torch.device | None = None) -> "MapNormalization":
        """Without calibration: patch errors as they are, 0…2, all layers alike."""
        ones = torch.ones(layers, device=device)
        return cls(torch.zeros_like(ones), ones, ones / layers)

    def to(self, device: torch.device | str) -> "MapNormalization":
        """The same on another device."""
        return MapNormalization(self.mean.to(device), self.std.to(device), self.weights.to(device))

    def standardise(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The patch errors (B, h, w) of all layers in standard deviations above a normal patch."""
        return [
            (errors - mean) / std.clamp(min=1e-12) for errors, mean, std in zip(maps, self.mean, self.std, strict=True)
        ]


@dataclass(frozen=True)
class HeatmapRenderer:
    """Combines the maps of the layers into one, and draws it at any size."""

    tiler: Tiler
    weights: Tensor  # (L,)

    def combine(self, maps: Sequence[Tensor]) -> Tensor:
        """One map (B, h, w): the weighted sum of standardised maps, upsampled bilinearly.

        It is as large as the crop that the teacher sees, or as the finest of stitched maps.
        """
        height, width = self.tiler.resolution(maps)
        weighted = (
            weight * resample(layer[:, None], height, width, "bilinear")[:, 0]
            for layer, weight in zip(maps, self.weights, strict=True)
        )
        return reduce(torch.add, weighted)

    def render(self, maps: Sequence[Tensor], height: int, width: int) -> Tensor:
        """The heatmap (B, height, width) over images of any size."""
        return self.tiler.to_image(self.combine(maps), height, width)

    def render_score(self, measurement: Measurement, height: int, width: int) -> Tensor:
        """The heatmap (B, height, width) of what the score reads: of distances from normals, or else patch errors."""
        if not measurement.distance_maps:
            return self.render(list(map(torch.as_tensor, measurement.patch_maps)), height, width)
        return self.tiler.to_image(reduce(torch.add, map(torch.as_tensor, measurement.distance_maps)), height, width)


def sampled(maps: Tensor) -> Tensor:
    """The values of maps (N, H, W) at about `SAMPLES_PER_SIDE` points a side, flat."""
    down, across = (max(1, side // SAMPLES_PER_SIDE) for side in maps.shape[1:])
    return maps[:, down // 2 :: down, across // 2 :: across].flatten()
