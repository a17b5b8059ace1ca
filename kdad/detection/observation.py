"""What a student and its teacher show of a batch of images, whole or tile by tile."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdad.detection.discrepancy import all_errors
from kdad.detection.tiles import Tiler, in_chunks
from kdad.devices import full_float32
from kdad.networks.features import in_parts
from kdad.networks.teachers.loading import Teacher


class Observation(NamedTuple):
    """The networks' view of B images, before any normalisation."""

    errors: Tensor  # the error table (B, L, 2); of tiles, their mean
    summaries: Tensor  # (B, T, D), the teacher's own of each piece, see `FeatureNetwork.summary`; T is 1 without tiles
    maps: list[Tensor]  # the patch errors (B, h, w) of every critical layer


@torch.inference_mode()
def observe(
    student: nn.Module, teacher: Teacher, images: Tensor, tiler: Tiler, features: Sequence[Tensor] | None = None
) -> Observation:
    """Compare a student's features with its teacher's on one batch of uint8 images (B, 3, H, W).

    Args:
        tiler: how images become pieces; see `tiler_for`.
        features: the teacher's features of all pieces, if they are known.
    """

    def look(pieces: Tensor) -> tuple[Tensor, ...]:
        pixels = teacher.preprocessing(pieces)
        with full_float32(pixels.device):
            copied, target = in_parts(student, pixels), teacher(pixels) if features is None else features
            errors, maps = all_errors(copied, target, teacher.prefix, teacher.grids)
            return errors, teacher.network.summary(target), *maps

    pieces = tiler.split(images)
    errors, summary, *maps = in_chunks(look, pieces) if features is None else look(pieces)
    errors, summaries = (of_pieces.unflatten(0, (images.shape[0], -1)) for of_pieces in (errors, summary))
    return Observation(errors.mean(1), summaries, [tiler.merge(layer, *images.shape[2:]) for layer in maps])
