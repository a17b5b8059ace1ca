"""How far a student's copy is from its teacher: every loss, score and heatmap is read from here.

Features are lists with one tensor (B, T, D) per critical layer. After Salehi et al. 2020
(arXiv 2011.11108), equations 1 to 4. The scores read a numpy table as well, without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from kdad.storage.layout import DISTANT_ERROR, DISTANT_PEAK, LAST_LAYER, MKD, PEAK

if TYPE_CHECKING:
    from torch import Tensor

    from kdad.detection.lengths import Lengths

    Array = TypeVar("Array", np.ndarray, Tensor)

MSE_WEIGHT = 0.01
SCORED_LAYERS = 3
SMALLEST_SCORE = 1e-12  # what is copied without any error still has a logarithm


def layer_errors(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The error table (B, L, 2), float32: 1 − cosine of the flattened maps, and their mean squared error.

    Raises:
        ValueError: the two sides have not the same number of layers or not the same shapes.
    """
    return _table(_compared(student, teacher))


def all_errors(
    student: Sequence[Tensor], teacher: Sequence[Tensor], prefix: int, grids: Sequence[tuple[int, int]]
) -> tuple[Tensor, list[Tensor]]:
    """The error table of `layer_errors`, and the patch errors: one (B, h, w) float32 tensor per layer.

    A patch error is 1 − cosine of a token, 0…2, of every token but the first `prefix`.
    """
    compared = _compared(student, teacher)
    maps = [lengths.cosine_error[:, prefix:] for lengths in compared]
    return _table(compared), [errors.unflatten(1, grid) for errors, grid in zip(maps, grids, strict=True)]


def _compared(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Lengths]:
    from kdad.detection.lengths import Lengths

    return [Lengths.of(copied, target) for copied, target in zip(student, teacher, strict=True)]


def _table(compared: list[Lengths]) -> Tensor:
    import torch

    maps = [lengths.of_maps for lengths in compared]
    return torch.stack([torch.stack([of_map.cosine_error, of_map.squared_error], 1) for of_map in maps], 1)


def layer_scores(errors: Array, mse_weight: float) -> Array:
    """Each layer's contribution (B, L) = (1 − cosine) + λ · MSE, from the error table (B, L, 2)."""
    return errors[..., 0] + mse_weight * errors[..., 1]


def distillation_loss(errors: Tensor, mse_weight: float) -> Tensor:
    """The training loss: all layers summed, mean over the batch; a scalar."""
    return layer_scores(errors, mse_weight).sum(1).mean()


def mkd_score(errors: Array, mse_weight: float) -> Array:
    """The published anomaly score (B,): the loss of an image over the last three critical layers."""
    return published_score(layer_scores(errors, mse_weight))


def published_score(layer_scores: Array) -> Array:
    """The same (B,) from each layer's contribution (B, L)."""
    return layer_scores[:, -SCORED_LAYERS:].sum(1)


def last_layer_score(errors: Array) -> Array:
    """1 − cosine of the last critical layer (B,)."""
    return errors[:, -1, 0]


def distant_error(errors: Array, distances: Array) -> Array:
    """The logarithm (B,) of the last layer's error times the teacher's own distance from normals (B,).

    Both spread over orders of magnitude. As logarithms they count alike, whatever their units.
    """
    return _log(last_layer_score(errors) * distances)


def distant_peak(peaks: Array, distances: Array, distance_weight: Array) -> Array:
    """The heatmap's peak plus the weighted logarithm of the teacher's own distance, all (B,), in standard deviations.

    A sum, so that constants which only few held-out normals tell, such as the level of a normal patch, change no rank.
    """
    return peaks + distance_weight * _log(distances)


def _log(values: Array) -> Array:
    """The logarithm of numbers that are not negative; of zero, that of `SMALLEST_SCORE`."""
    values = values.clip(min=SMALLEST_SCORE)
    return np.log(values) if isinstance(values, np.ndarray) else values.log()


# Each from what is measured of images, in numpy or torch, and λ: `layer_errors` (B, L, 2), `distances` (B,) as of
# `kdad.detection.mahalanobis` and their `distance_weight`, and `peaks` (B,), the highest values of their heatmaps. An
# image of another kind is unusual as a whole, which the last layer shows; a defect is in one place, which the peak
# shows; and either more surely so where the teacher, too, sees nothing normal.
SCORES: dict[str, Callable[[Mapping[str, Any], float], Any]] = {
    DISTANT_ERROR: lambda measured, mse_weight: distant_error(measured["layer_errors"], measured["distances"]),
    DISTANT_PEAK: lambda measured, mse_weight: distant_peak(
        measured["peaks"], measured["distances"], measured["distance_weight"]
    ),
    LAST_LAYER: lambda measured, mse_weight: last_layer_score(measured["layer_errors"]),
    MKD: lambda measured, mse_weight: mkd_score(measured["layer_errors"], mse_weight),
    PEAK: lambda measured, mse_weight: measured["peaks"],
}


def _published_parts(measured: Mapping[str, Any], mse_weight: float) -> dict[str, Any]:
    parts = layer_scores(measured["layer_errors"], mse_weight)
    count = parts.shape[1]
    return {f"layer {index + 1}": parts[:, index] for index in range(max(0, count - SCORED_LAYERS), count)}


ERROR, DISTANCE, HIGHEST = "error", "distance", "peak"  # parts of scores
# What each score is the sum of, by name, each (B,); from the same as `SCORES`.
PARTS: dict[str, Callable[[Mapping[str, Any], float], dict[str, Any]]] = {
    DISTANT_ERROR: lambda measured, _: {
        ERROR: _log(last_layer_score(measured["layer_errors"])),
        DISTANCE: _log(measured["distances"]),
    },
    DISTANT_PEAK: lambda measured, _: {
        HIGHEST: measured["peaks"],
        DISTANCE: measured["distance_weight"] * _log(measured["distances"]),
    },
    LAST_LAYER: lambda measured, _: {ERROR: last_layer_score(measured["layer_errors"])},
    MKD: _published_parts,
    PEAK: lambda measured, _: {HIGHEST: measured["peaks"]},
}
