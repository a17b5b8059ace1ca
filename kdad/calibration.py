"""Watching a student fail to copy its teacher, and learning from normals how to read that."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from kdad.discrepancy import layer_errors, patch_errors
from kdad.heatmaps import PatchReading, combine, layer_weights, sampled
from kdad.images import in_batches
from kdad.pseudo import cut_and_paste
from kdad.teachers import Teacher
from kdad.tiles import Tiling, map_tiles

PSEUDO_ANOMALIES = 300


@torch.inference_mode()
def observe(
    student: nn.Module, teacher: Teacher, images: Tensor, tile: int, taught: Sequence[Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Where a student fails to copy its teacher on one batch of uint8 images (B, 3, H, W).

    Args:
        tile: the side of the tiles to look at one by one, in pixels; 0 for whole images.
        taught: the teacher's features of the images, or of all their tiles, if they are known.

    Returns:
        The error table (B, L, 2), of tiles the mean, and the patch errors (B, h, w) of every layer.
    """

    def look(pieces: Tensor) -> tuple[Tensor, ...]:
        pixels = teacher.preprocessing(pieces)
        copied, right = student(pixels), teacher(pixels) if taught is None else taught
        return layer_errors(copied, right), *patch_errors(copied, right, teacher.prefix, teacher.grids)

    if not tile:
        errors, *maps = look(images)
        return errors, maps
    tiling = Tiling.over(images, tile, teacher.preprocessing)
    tiles, side = tiling.cut(images), tiling.side
    errors, *maps = map_tiles(look, tiles) if taught is None else look(tiles)
    stitched = [tiling.stitch(teacher.preprocessing.to_input(layer, side, side)) for layer in maps]
    return errors.unflatten(0, (len(images), -1)).mean(1), stitched


@torch.inference_mode()
def calibrate(
    student: nn.Module,
    teacher: Teacher,
    held_out: Sequence[tuple[nn.Module, Tensor | Sequence[Tensor]]],
    train: Tensor,
    tile: int = 0,
) -> dict[str, Tensor]:
    """What normals say of a student, to read its scores and heatmaps by.

    Args:
        held_out: normals that had no part in training: pairs of a network and the images that it never
            saw. One pair with the student itself, or several where folds of the data were left out in turn.
        train: training images (N, 3, H, W), some of which become pseudo-anomalies to weigh the layers by.
        tile: see `observe`.

    Returns:
        `layer_errors` (N, L, 2) and `peaks` (N,) of the held-out normals, `patch_mean` and `patch_std`
        (L,) of their patches, `layer_weights` (L,), and `heatmap_quantiles` (101,), the percentiles of
        their heatmaps, for colour scales.
    """
    device = next(student.parameters()).device

    def observed() -> Iterator[tuple[Tensor, list[Tensor]]]:
        for network, images in held_out:
            yield from (observe(network, teacher, batch.to(device), tile) for batch in in_batches(images))

    mean, std = _moments(maps for _, maps in observed())
    reading = PatchReading(mean, std, torch.ones_like(mean))
    reading = replace(reading, weights=_weigh_layers(student, teacher, reading, train))
    errors, peaks, levels = [], [], []
    for table, maps in observed():
        combined = combined_map(reading.standardise(maps), reading.weights, teacher.preprocessing.crop, tile)
        errors.append(table)
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
    }


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
        maps = reading.standardise(observe(student, teacher, batch.to(reading.mean.device), tile=0)[1])
        shown = [teacher.preprocessing.to_input(layer, *mask.shape[1:]) for layer in maps]
        points.append(torch.stack([sampled(layer) for layer in shown], 1).cpu())
        truth.append(sampled(mask))
    return layer_weights(torch.cat(points).numpy(), torch.cat(truth).numpy()).to(reading.mean)


def combined_map(maps: Sequence[Tensor], weights: Tensor, crop: int, tile: int) -> Tensor:
    """All layers in one map (B, h, w): over the crop that the teacher sees, or as large as stitched tiles."""
    height, width = maps[0].shape[1:] if tile else (crop, crop)
    return combine(maps, weights, height, width)
