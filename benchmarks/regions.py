"""Defects that a frozen teacher's statistics find without any student: `python -m benchmarks.regions FOLDER…`.

Every method compares regions of an image with the same regions of the training normals, in the features of
EfficientNet-Lite0, and is standardised on these normals, each compared with the others alone: nothing is learned from
test images, and nothing needs to be held out. What the default score has to beat stands here.

FOLDER is in the layout of MVTec AD. The test parts have been looked at while the methods were designed.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from kdad.data.datasets import FOLDER
from kdad.data.folders import FolderTask, ImageFiles
from kdad.data.preprocessing import resample
from kdad.devices import hardware
from kdad.evaluation import metrics
from kdad.evaluation.evaluate import pixel_figures, shrunk, shrunk_mask
from kdad.files import write_json
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.networks.teachers.registry import LITE0, default_image_size

RESULTS = Path(__file__).resolve().parent / "results" / "regions.json"
LAYERS = ("blocks.2", "blocks.4", "blocks.6")  # strides 8, 16 and 32
GRIDS = (3, 4, 6, 8)  # cells a side of the regional Gaussians
DIMENSIONS = 128  # of patch features, after a principal component analysis
WINDOW = 1  # patches within which a normal patch may lie
TOP = 0.01  # of a map's positions: their mean is the image's value
OWN_SHARE = 0.5  # of a position's own mean and variance in its scale


class Distances(NamedTuple):
    """Log distances (N, P) of regions from normals on one grid (h, w): of training images, from the others alone."""

    train: Tensor
    test: Tensor
    grid: tuple[int, int]

    def standardised(self) -> tuple[Tensor, Tensor]:
        """Both in standard deviations of training normals, half of the scale by position and half over all."""
        mean = OWN_SHARE * self.train.mean(0) + (1 - OWN_SHARE) * self.train.mean()
        variance = OWN_SHARE * self.train.var(0, correction=0) + (1 - OWN_SHARE) * self.train.var(correction=0)
        std = variance.sqrt().clamp(min=1e-6)
        return (self.train - mean) / std, (self.test - mean) / std


def gaussian_distances(train: Tensor, test: Tensor, grid: tuple[int, int]) -> Distances:
    """Log squared Mahalanobis distances from one Gaussian per position, shrunk after Ledoit and Wolf (2004).

    The distance of a left-out image has a closed form: with the shrinkage kept, leaving x out is a rank-one downdate of
    the covariance, and moves the mean by 1/(n − 1) of x's offset.

    Args:
        train, test: features (N, P, D).
    """
    parts = [_gaussian_distances(train[:, p : p + 32], test[:, p : p + 32]) for p in range(0, train.shape[1], 32)]
    left_out, others = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    return Distances(left_out, others, grid)


def _gaussian_distances(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    n, _, size = train.shape
    mean = train.mean(0)
    off = (train - mean).permute(1, 2, 0)  # P, D, n
    covariance = off @ off.mT / n
    scale = covariance.diagonal(dim1=1, dim2=2).mean(1)
    shrinkage = _shrinkage(off)[:, None, None]
    ridge = (shrinkage * scale[:, None, None]).clamp(min=1e-8) * torch.eye(size)
    one_less = (1 - shrinkage) * n / (n - 1) * covariance + ridge
    q = _squared_lengths(one_less, off)
    left_out = (n / (n - 1)) ** 2 * q / (1 - (1 - shrinkage[..., 0]) * n / (n - 1) ** 2 * q).clamp(min=1e-6)
    others = _squared_lengths((1 - shrinkage) * covariance + ridge, (test - mean).permute(1, 2, 0))
    return left_out.T.clamp(min=1e-12).log(), others.T.clamp(min=1e-12).log()


def _shrinkage(off: Tensor) -> Tensor:
    """Shares (P,) by which covariances of offsets (P, D, N) shrink to spheres."""
    return torch.tensor([ledoit_wolf_shrinkage(position.T.numpy(), assume_centered=True) for position in off])


def _squared_lengths(covariance: Tensor, off: Tensor) -> Tensor:
    """Squared Mahalanobis lengths (P, N) of offsets (P, D, N)."""
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), off, upper=False).square().sum(1)


def neighbour_distances(train: Tensor, test: Tensor, grid: tuple[int, int]) -> Distances:
    """Log squared distances from the nearest patch of normals within `WINDOW`; after PatchCore (arXiv 2106.08265).

    Args:
        train, test: features (N, P, D).
    """
    memory = train.permute(1, 2, 0).contiguous()  # P, D, n
    lengths = memory.square().sum(1, keepdim=True)
    shifts = list(_shifts(grid))

    def nearest(images: Tensor, first: int | None) -> Tensor:
        wanted, best = images.transpose(0, 1).contiguous(), None
        for shift in shifts:
            found = torch.baddbmm(lengths[shift], wanted, memory[shift], alpha=-2)  # P, B, n
            if first is not None:
                own = torch.arange(len(images))
                found[:, own, first + own] = torch.inf
            lowest = found.amin(2)
            best = lowest if best is None else torch.minimum(best, lowest)
        return (best + wanted.square().sum(2)).clamp(min=1e-6).log().T

    batches = range(0, len(train), 32)
    left_out = torch.cat([nearest(train[start : start + 32], start) for start in batches])
    return Distances(left_out, torch.cat([nearest(batch, None) for batch in test.split(32)]), grid)


def _shifts(grid: tuple[int, int]) -> Iterator[Tensor]:
    """For every shift within `WINDOW`, the index (P,) of the position that each is compared with."""
    height, width = grid
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for down in range(-WINDOW, WINDOW + 1):
        for across in range(-WINDOW, WINDOW + 1):
            moved = (rows + down).clamp(0, height - 1) * width + (columns + across).clamp(0, width - 1)
            yield moved.flatten()


class Features(NamedTuple):
    """Maps (N, D, h, w) of each of `LAYERS`, half precision, of training normals and of test images."""

    train: list[Tensor]
    test: list[Tensor]


def features(teacher: Teacher, task: FolderTask) -> Features:
    """The teacher's features of all normals to train on, and of the test part."""

    @torch.inference_mode()
    def maps(images: ImageFiles) -> list[Tensor]:
        parts = [teacher(teacher.preprocessing(image[None])) for image in images]
        layers = [torch.cat([part[index] for part in parts]).half() for index in range(len(LAYERS))]
        return [layer.mT.unflatten(2, grid) for layer, grid in zip(layers, teacher.grids, strict=True)]

    assert task.test is not None
    return Features(maps(ImageFiles(task.layout.normals, task.max_value)), maps(task.test.images))


def patches(found: Features, layers: Sequence[int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Patch features (N, P, `DIMENSIONS`) of some layers on the grid of the second, and that grid.

    Every layer counts as much as another, however wide, and each of its channels by its spread over normals.
    """
    grid = found.train[1].shape[2], found.train[1].shape[3]
    columns = []
    for index in layers:
        train, test = (_on_grid(of_part[index].float(), grid) for of_part in found)
        mean, std = train.mean((0, 1)), train.std((0, 1)).clamp(min=1e-6) * train.shape[2] ** 0.5
        columns.append(((train - mean) / std, (test - mean) / std))
    train, test = (torch.cat(part, 2) for part in zip(*columns, strict=True))
    flat = train.flatten(0, 1)
    axes = torch.linalg.eigh((flat.T @ flat).double()).eigenvectors[:, -DIMENSIONS:].float()
    return train @ axes, test @ axes, grid


def _on_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    if maps.shape[2] > grid[0]:
        maps = adaptive_avg_pool2d(maps, grid)
    elif maps.shape[2:] != grid:
        maps = interpolate(maps, size=grid, mode="bilinear", align_corners=False)
    return maps.flatten(2).mT


def regional_gaussians(found: Features) -> list[Distances]:
    """Gaussians of mean and standard deviation over the cells of grids, one `Distances` per grid."""
    return [
        gaussian_distances(*(_cells(of_part[1].float(), side) for of_part in found), (side, side)) for side in GRIDS
    ]


def _cells(maps: Tensor, side: int) -> Tensor:
    mean, squares = (adaptive_avg_pool2d(of, side) for of in (maps, maps.square()))
    std = ((squares - mean.square()).clamp(min=0) + 1e-6).sqrt()
    return torch.cat([mean, std], 1).flatten(2).mT


METHODS: dict[str, Callable[[Features], list[Distances]]] = {
    "regional Gaussians": regional_gaussians,
    "position Gaussians": lambda found: [gaussian_distances(*patches(found, (0, 1, 2)))],
    "neighbours, fine": lambda found: [neighbour_distances(*patches(found, (0, 1)))],
    "neighbours, coarse": lambda found: [neighbour_distances(*patches(found, (1, 2)))],
}
SUMS = {
    "neighbours, coarse + position Gaussians": ("neighbours, coarse", "position Gaussians"),
    "all four": tuple(METHODS),
}


def measure(folder: Path) -> list[dict]:
    """One row per method and sum of methods, with figures on the test part in per cent."""
    name = f"{FOLDER}{folder}"
    teacher = load_teacher(LITE0, image_size=default_image_size(LITE0, name), layers=LAYERS)
    task = FolderTask(folder, teacher.preprocessing)
    started = time.perf_counter()
    found = features(teacher, task)
    shared, values, maps, seconds = time.perf_counter() - started, {}, {}, {}
    for method, distances in METHODS.items():
        started = time.perf_counter()
        values[method], maps[method] = _judged(distances(found), task)
        seconds[method] = time.perf_counter() - started
    rows = []
    for method, parts in {**{name: (name,) for name in METHODS}, **SUMS}.items():
        figures = _figures(task, sum(values[part] for part in parts), [maps[part] for part in parts])
        spent = round(shared + sum(seconds[part] for part in parts))
        about = {"folder": folder.name, "method": method, "image_size": list(teacher.preprocessing.resize)}
        rows.append({**about, **figures, "seconds": spent, "hardware": hardware("cpu")})
    return rows


def _judged(levels: list[Distances], task: FolderTask) -> tuple[np.ndarray, list[np.ndarray]]:
    """The value of each test image (N,), in standard deviations of normals, and its map at the size of its mask."""
    value, standardised = np.zeros(0), []
    for level in levels:
        train, test = level.standardised()
        of_train, of_test = _highest(train), _highest(test)
        value = (of_test - of_train.mean()) / of_train.std() + (value if len(value) else 0)
        standardised.append(test.unflatten(1, level.grid))
    masks = task.test.masks if task.test else None
    if masks is None:
        return value, []
    sizes = [None if mask is None else shrunk(*mask.shape) for mask in masks]
    maps = [
        np.zeros(0) if size is None
        else sum(resample(of_level[index][None, None], *size, "bilinear")[0, 0] for of_level in standardised).numpy()
        for index, size in enumerate(sizes)
    ]  # fmt: skip
    return value, maps


def _highest(values: Tensor) -> np.ndarray:
    """The mean (N,) of the highest hundredth of each row."""
    return values.topk(max(1, round(TOP * values.shape[1])), 1).values.mean(1).numpy()


def _figures(task: FolderTask, value: np.ndarray, maps: list[list[np.ndarray]]) -> dict[str, float]:
    assert task.test is not None
    figures = {"auroc": metrics.auroc(value, task.test.anomalous.numpy())}
    if task.test.masks is not None:
        kept = [index for index, mask in enumerate(task.test.masks) if mask is not None]
        summed = [sum(of_method[index] for of_method in maps) for index in kept]
        masks = [shrunk_mask(task.test.masks[index], *summed[at].shape) for at, index in enumerate(kept)]
        found = pixel_figures(summed, masks)
        figures |= {name: found[name] for name in ("pixel_auroc", "pro")}
    return {name: round(100 * figure, 2) for name, figure in figures.items()}


def main(argv: list[str] | None = None) -> None:
    """Measure folders, and replace their rows in the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    for folder in args.folders:
        rows = measure(folder.resolve())
        known = json.loads(args.results.read_text())["rows"] if args.results.is_file() else []
        kept = [row for row in known if row["folder"] != folder.resolve().name]
        write_json(args.results, {"rows": [*kept, *rows]})
        for row in rows:
            print(row)


if __name__ == "__main__":
    main()
