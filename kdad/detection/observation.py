"""What a student and its teacher show of a batch of images, whole or tile by tile."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdad.detection.discrepancy import all_errors
from kdad.detection.tiles import Tiling, map_tiles
from kdad.devices import full_float32
from kdad.networks.features import in_parts
from kdad.networks.teachers import Teacher


class Observation(NamedTuple):
    """What is measured of B images."""

    errors: Tensor  # the error table (B, L, 2); of tiles, their mean
    summaries: Tensor  # (B, T, D), the teacher's own of each tile, see `FeatureNetwork.summary`; T is 1 without tiles
    maps: list[Tensor]  # the patch errors (B, h, w) of every critical layer


@torch.inference_mode()
def observe(
    student: nn.Module, teacher: Teacher, images: Tensor, tile: int, features: Sequence[Tensor] | None = None
) -> Observation:
    """Where a student fails to copy its teacher on one batch of uint8 images (B, 3, H, W).

    Args:
        tile: the side of the tiles to look at one by one, in pixels; 0 for whole images.
        features: the teacher's features of the images, or of all their tiles, if they are known.
    """

    def look(pieces: Tensor) -> tuple[Tensor, ...]:
        pixels = teacher.preprocessing(pieces)
        with full_float32(pixels.device):
            copied, target = in_parts(student, pixels), teacher(pixels) if features is None else features
            errors, maps = all_errors(copied, target, teacher.prefix, teacher.grids)
            return errors, teacher.network.summary(target), *maps

    if not tile:
        errors, summary, *maps = look(images)
        return Observation(errors, summary[:, None], maps)
    tiling = Tiling.over(images, tile, teacher.preprocessing)
    tiles, side = tiling.cut(images), tiling.side
    errors, summary, *maps = map_tiles(look, tiles) if features is None else look(tiles)
    stitched = [tiling.stitch(teacher.preprocessing.to_input(layer, side, side)) for layer in maps]
    errors, summaries = (of_tiles.unflatten(0, (images.shape[0], -1)) for of_tiles in (errors, summary))
    return Observation(errors.mean(1), summaries, stitched)
