"""Watching a student fail to copy its teacher, and learning from normals how to read that."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kdad.discrepancy import DISTANT_ERROR, layer_errors, patch_errors
from kdad.heatmaps import PatchReading, combine, layer_weights, sampled
from kdad.images import in_batches
from kdad.normality import Gaussian, pooled
from kdad.pseudo import cut_and_paste
from kdad.teachers import Teacher
from kdad.tiles import Tiling, map_tiles

PSEUDO_ANOMALIES = 300


class Observation(NamedTuple):
    """What is seen of B images."""

    errors: Tensor  # the error table (B, L, 2); of tiles, their mean
    summary: Tensor  # (B, D), the teacher's own, see `kdad.normality.pooled`; of tiles, the mean
    maps: list[Tensor]  # the patch errors (B, h, w) of every critical layer


@torch.inference_mode()
def observe(
    student: nn.Module, teacher: Teacher, images: Tensor, tile: int, taught: Sequence[Tensor] | None = None
) -> Observation:
    """Where a student fails to copy its teacher on one batch of uint8 images (B, 3, H, W).

    Args:
        tile: the side of the tiles to look at one by one, in pixels; 0 for whole images.
        taught: the teacher's features of the images, or of all their tiles, if they are known.
    """

    def look(pieces: Tensor) -> tuple[Tensor, ...]:
        pixels = teacher.preprocessing(pieces)
        copied, right = student(pixels), teacher(pixels) if taught is None else taught
        maps = patch_errors(copied, right, teacher.prefix, teacher.grids)
        return layer_errors(copied, right), pooled(right, teacher.prefix), *maps

    if not tile:
        errors, summary, *maps = look(images)
        return Observation(errors, summary, maps)
    tiling = Tiling.over(images, tile, teacher.preprocessing)
    tiles, side = tiling.cut(images), tiling.side
    errors, summary, *maps = map_tiles(look, tiles) if taught is None else look(tiles)
    stitched = [tiling.stitch(teacher.preprocessing.to_input(layer, side, side)) for layer in maps]
    return Observation(*(of_tiles.unflatten(0, (len(images), -1)).mean(1) for of_tiles in (errors, summary)), stitched)


@torch.inference_mode()
def calibrate(
    student: nn.Module,
    teacher: Teacher,
    held_out: Sequence[tuple[nn.Module, Tensor | Sequence[Tensor]]],
    train: Tensor,
    score: str,
    tile: int,
) -> dict[str, Tensor]:
    """What normals say of a student, to read its scores and heatmaps by.

    Args:
        held_out: normals that had no part in training: pairs of a network and the images that it never
            saw. One pair with the student itself, or several where folds of the data were left out in turn.
        train: training images (N, 3, H, W), some of which become pseudo-anomalies to weigh the layers by.
        score: the name in `kdad.discrepancy.SCORES` of what will be read.
        tile: see `observe`.

    Returns:
        `layer_errors` (N, L, 2) and `peaks` (N,) of the held-out normals, `patch_mean` and `patch_std`
        (L,) of their patches, `layer_weights` (L,), and `heatmap_quantiles` (101,), the percentiles of
        their heatmaps, for colour scales; where the score asks for it, `distances` (N,) and the Gaussian
        that they are measured by, as `kdad.normality.Gaussian.packed`.
    """
    device = next(student.parameters()).device

    def observed() -> Iterator[Observation]:
        for network, images in held_out:
            yield from (observe(network, teacher, batch.to(device), tile) for batch in in_batches(images))

    mean, std = _moments(seen.maps for seen in observed())
    reading = PatchReading(mean, std, torch.ones_like(mean))
    reading = replace(reading, weights=_weigh_layers(student, teacher, reading, train))
    errors, summaries, peaks, levels = [], [], [], []
    for seen in observed():
        combined = combined_map(reading.standardise(seen.maps), reading.weights, teacher.preprocessing.crop, tile)
        errors.append(seen.errors)
        summaries.append(seen.summary)
        peaks.append(combined.amax((1, 2)))
        levels.append(sampled(combined))
    levels = torch.cat(levels).cpu()
    unit = levels.std().clamp(min=1e-12)  # so that the heatmap, too, is in standard deviations
    return {
        "layer_errors": torch.cat(errors).cpu(),
        "peaks": torch.cat(peaks).cpu() / unit,
        "patch_mean": mean.cpu(),
        "patch_std": std.cpu(),
        "layer_weights": reading.weights.cpu() / unit,
        "heatmap_quantiles": torch.from_numpy(np.quantile(levels / unit, np.linspace(0, 1, 101))).float(),
        **(_distances(teacher, train, torch.cat(summaries)) if score == DISTANT_ERROR else {}),
    }


def _distances(teacher: Teacher, train: Tensor, held_out: Tensor) -> dict[str, Tensor]:
    """The Gaussian of training images, and how far from it held-out normals lie, by their pooled features (N, D)."""
    batches = (batch.to(held_out.device) for batch in in_batches(train))
    gaussian = Gaussian.fit(pooled(teacher(teacher.preprocessing(batch)), teacher.prefix) for batch in batches)
    return {"distances": gaussian.distance(held_out).cpu(), **gaussian.packed()}


def _moments(batches: Iterable[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (L,) of the patch errors of each layer."""
    sums = torch.zeros(1, 3, dtype=torch.float64)
    for maps in batches:
        values = [layer.cpu().double() for layer in maps]
        sums = sums + torch.tensor([[v.numel(), v.sum(), v.square().sum()] for v in values], dtype=torch.float64)
    count, total, squares = sums.T
    mean = total / count
    device = maps[0].device
    return mean.float().to(device), (squares / count - mean.square()).clamp(min=0).sqrt().float().to(device)


def _weigh_layers(student: nn.Module, teacher: Teacher, reading: PatchReading, train: Tensor) -> Tensor:
    """The weights (L,) of the layers by which pseudo-anomalies made of training images stand out best."""
    images = train[:PSEUDO_ANOMALIES].permute(0, 2, 3, 1).contiguous().numpy()
    pasted, masks = (torch.from_numpy(part) for part in cut_and_paste(images))
    points, truth = [], []
    for batch, mask in zip(pasted.permute(0, 3, 1, 2).split(64), masks.split(64), strict=True):
        maps = reading.standardise(observe(student, teacher, batch.to(reading.mean.device), tile=0).maps)
        shown = [teacher.preprocessing.to_input(layer, *mask.shape[1:]) for layer in maps]
        points.append(torch.stack([sampled(layer) for layer in shown], 1).cpu())
        truth.append(sampled(mask))
    return layer_weights(torch.cat(points).numpy(), torch.cat(truth).numpy()).to(reading.mean)


def combined_map(maps: Sequence[Tensor], weights: Tensor, crop: int, tile: int) -> Tensor:
    """All layers in one map (B, h, w): over the crop that the teacher sees, or as large as stitched tiles."""
    height, width = maps[0].shape[1:] if tile else (crop, crop)
    return combine(maps, weights, height, width)
