"""Defects that a frozen teacher's statistics find without any student: `python -m benchmarks.regions FOLDER…`.

Each method compares patches or regions of an image with those of all training normals, in the features of
EfficientNet-Lite0. Scales come from these normals, each compared with the others alone: nothing is learned from test
images. The last but one row is what the default score reads.

FOLDER is in the layout of MVTec AD. The test parts have been looked at while the methods were designed. So every sum of
methods, read at every share of an image's patches, is a candidate, and is measured twice: on the test part, and without
it, on pseudo-anomalies that are drawn into a fifth of the normals, which the other four fifths have not seen.
`benchmarks/tables.py` compares what each protocol would have chosen.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from kdad.data.datasets import FOLDER
from kdad.data.folders import FolderTask, ImageFiles
from kdad.data.preprocessing import resample
from kdad.data.pseudo_anomalies import KINDS, draw_pseudo_anomalies
from kdad.detection.normal_patches import (
    WORST_SHARE,
    NearestPatches,
    PositionGaussians,
    Projection,
    Scale,
    worst_places,
)
from kdad.devices import hardware
from kdad.evaluation import metrics
from kdad.evaluation.evaluate import pixel_figures, shrunk, shrunk_mask
from kdad.files import read_json_if_there, write_json
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.networks.teachers.registry import LITE0, default_image_size

RESULTS = Path(__file__).resolve().parent / "results" / "regions.json"
LAYERS = ("blocks.2", "blocks.4", "blocks.6")  # strides 8, 16 and 32
FINE, COARSE = (0, 1), (1, 2)  # read on the grid of stride 16
GRIDS = (3, 4, 6, 8)  # cells a side of the regional Gaussians
DEFAULT = "Gaussians and nearest patch, coarse"  # of `SUMS`: what the default score reads
AT_ONCE = 16  # images
HELD_OUT = 5  # one normal in so many is held out, for pseudo-anomalies to be drawn into
SHARES = (0.0, 0.005, 0.01, 0.02, 0.05)  # of the patches, whose mean is a score; at least one patch


class Features(NamedTuple):
    """Maps (N, C, h, w) of each of `LAYERS`, half precision, of normals to compare with, and of images to judge."""

    train: list[Tensor]
    test: list[Tensor]

    @property
    def grid(self) -> tuple[int, int]:
        """The grid of stride 16, (h, w)."""
        return self.train[1].shape[2], self.train[1].shape[3]


@torch.inference_mode()
def layer_maps(teacher: Teacher, images: Sequence[Tensor]) -> list[Tensor]:
    """Maps (N, C, h, w) of each of `LAYERS` of uint8 images (3, H, W), half precision."""
    parts = [teacher(teacher.preprocessing(image[None])) for image in images]
    layers = [torch.cat([part[index] for part in parts]).half() for index in range(len(LAYERS))]
    return [layer.mT.unflatten(2, grid) for layer, grid in zip(layers, teacher.grids, strict=True)]


def with_pseudo_anomalies(teacher: Teacher, normals: Sequence[Tensor], known: list[Tensor]) -> Features:
    """Four fifths of the normals, and of the others one and one more of each of `KINDS`, at the size that is read.

    Args:
        known: the maps of all normals.
    """
    held_out = torch.arange(len(normals)) % HELD_OUT == 0
    size, interpolation = teacher.preprocessing.resize, teacher.preprocessing.interpolation
    chosen = (normals[int(index)][None].float() for index in held_out.nonzero())
    images = torch.cat([resample(image, *size, interpolation) for image in chosen]).round().clamp(0, 255).byte()
    repeated = images.repeat_interleave(len(KINDS), 0).permute(0, 2, 3, 1).numpy()
    drawn = torch.from_numpy(draw_pseudo_anomalies(repeated).images).permute(0, 3, 1, 2)
    return Features([layer[~held_out] for layer in known], layer_maps(teacher, [*images, *drawn]))


def patches(found: Features, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Patches (N, P, D) of some layers on the grid of stride 16, of training normals and of test images."""

    def batches(maps: list[Tensor]) -> list[list[Tensor]]:
        chosen = [maps[index].float() for index in layers]
        pooled = [adaptive_avg_pool2d(layer, found.grid) if index == 0 else layer
                  for index, layer in zip(layers, chosen, strict=True)]  # fmt: skip
        return [list(batch) for batch in zip(*(layer.split(AT_ONCE) for layer in pooled), strict=True)]

    projection = Projection.fit(batches(found.train))
    train, test = (torch.cat([projection(batch) for batch in batches(part)]) for part in found)
    return train, test


def gaussians(train: Tensor, test: Tensor) -> Tensor:
    """Standardised distances (N, P) of test images from one Gaussian per position."""
    fitted, left_out = PositionGaussians.fit(train)
    everywhere = torch.arange(left_out.shape[1])
    return Scale.fit(left_out, everywhere).standardise(fitted.distances(test))


def nearest(train: Tensor, test: Tensor, grid: tuple[int, int]) -> Tensor:
    """Standardised distances (N, P) of test images from the nearest patch of normals."""
    fitted = NearestPatches.fit(train, grid)
    found = torch.cat([fitted.distances(batch) for batch in test.split(AT_ONCE)])
    left_out = fitted.left_out(train)
    return Scale.fit(left_out, torch.arange(left_out.shape[1])).standardise(found)


def regional_gaussians(found: Features) -> Tensor:
    """The sum over grids of distances from the Gaussian of a cell's mean and standard deviation, (N, h, w)."""
    maps = []
    for side in GRIDS:
        distances = gaussians(*(_cells(of_part[1].float(), side) for of_part in found))
        grid = distances.unflatten(1, (1, side, side))
        maps.append(interpolate(grid, size=found.grid, mode="bilinear", align_corners=False)[:, 0])
    return torch.stack(maps).sum(0)


def _cells(maps: Tensor, side: int) -> Tensor:
    mean, squares = (adaptive_avg_pool2d(of, side) for of in (maps, maps.square()))
    std = ((squares - mean.square()).clamp(min=0) + 1e-6).sqrt()
    return torch.cat([mean, std], 1).flatten(2).mT


METHODS: dict[str, Callable[[Features], Tensor]] = {
    "regional Gaussians": regional_gaussians,
    "Gaussians, fine": lambda found: gaussians(*patches(found, FINE)).unflatten(1, found.grid),
    "nearest patch, fine": lambda found: nearest(*patches(found, FINE), found.grid).unflatten(1, found.grid),
    "Gaussians, coarse": lambda found: gaussians(*patches(found, COARSE)).unflatten(1, found.grid),
    "nearest patch, coarse": lambda found: nearest(*patches(found, COARSE), found.grid).unflatten(1, found.grid),
}
SUMS = {
    DEFAULT: ("Gaussians, coarse", "nearest patch, coarse"),
    "all five": tuple(METHODS),
}


def measure(folder: Path) -> tuple[list[dict], dict]:
    """One row per method and sum of methods, with figures on the test part in per cent, and the folder's candidates."""
    name = f"{FOLDER}{folder}"
    teacher = load_teacher(LITE0, image_size=default_image_size(LITE0, name), layers=LAYERS)
    task = FolderTask(folder, teacher.preprocessing)
    assert task.test is not None
    started = time.perf_counter()
    normals = ImageFiles(task.layout.normals, task.max_value)
    known = layer_maps(teacher, normals)
    found = Features(known, layer_maps(teacher, task.test.images))
    shared = time.perf_counter() - started
    maps, seconds = measured_maps(found)
    rows = []
    for method, parts in {**{name: (name,) for name in METHODS}, **SUMS}.items():
        summed = torch.stack([maps[part] for part in parts]).sum(0)
        of_method = figures_of(task, worst_places(summed[:, None])[:, 0].numpy(), summed)
        figures = {name: round(100 * figure, 2) for name, figure in of_method.items()}
        spent = round(shared + sum(seconds[part] for part in parts))
        about = {"folder": folder.name, "method": method, "image_size": list(teacher.preprocessing.resize)}
        rows.append({**about, **figures, "seconds": spent, "hardware": hardware("cpu")})
    pseudo, _ = measured_maps(with_pseudo_anomalies(teacher, normals, known))
    held_out = len(range(0, len(normals), HELD_OUT))
    drawn = np.arange(held_out * (1 + len(KINDS))) >= held_out
    on_test, on_pseudo = candidates(maps, task.test.anomalous.numpy()), candidates(pseudo, drawn)
    return rows, {"folder": folder.name, "test": on_test, "pseudo": on_pseudo}


def measured_maps(found: Features) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The map (N, h, w) by each of `METHODS`, and the seconds that it took."""
    maps, seconds = {}, {}
    for method, distances in METHODS.items():
        started = time.perf_counter()
        maps[method] = distances(found)
        seconds[method] = time.perf_counter() - started
    return maps, seconds


def candidates(maps: dict[str, Tensor], anomalous: np.ndarray) -> dict[str, float]:
    """Image AUROC in per cent of every sum of methods at every one of `SHARES`."""
    figures = {}
    for size in range(1, len(maps) + 1):
        for parts in combinations(maps, size):
            flat = torch.stack([maps[part] for part in parts]).sum(0).flatten(1)
            highest = flat.sort(1, descending=True).values
            for share in SHARES:
                score = highest[:, : max(1, round(share * flat.shape[1]))].mean(1).numpy()
                figures[candidate_name(parts, share)] = round(100 * metrics.auroc(score, anomalous), 2)
    return figures


def candidate_name(parts: Sequence[str], share: float) -> str:
    """Name of the sum of methods that reads this share of the patches."""
    return f"{' + '.join(parts)}; {f'worst {share:.1%}' if share else 'worst patch'}"


def figures_of(task: FolderTask, score: np.ndarray, maps: Sequence[Tensor]) -> dict[str, float]:
    """Figures in 0…1 of the scores (N,) and maps, (h, w) each, of the test images."""
    assert task.test is not None
    figures = {"auroc": metrics.auroc(score, task.test.anomalous.numpy())}
    if task.test.masks is not None:
        kept = [index for index, mask in enumerate(task.test.masks) if mask is not None]
        drawn = [_drawn(maps[index], task.test.masks[index]) for index in kept]
        masks = [shrunk_mask(task.test.masks[index], *map_.shape) for index, map_ in zip(kept, drawn, strict=True)]
        found = pixel_figures(drawn, masks)
        figures |= {name: found[name] for name in ("pixel_auroc", "pro")}
    return figures


def _drawn(map_: Tensor, mask: np.ndarray) -> np.ndarray:
    return resample(map_[None, None], *shrunk(*mask.shape), "bilinear")[0, 0].numpy()


def main(argv: list[str] | None = None) -> None:
    """Measure folders, and replace their rows in the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    for folder in args.folders:
        rows, choice = measure(folder.resolve())
        default = candidate_name(SUMS[DEFAULT], WORST_SHARE)
        replace_rows(args.results, {"rows": rows, "candidates": [choice]}, {"default": default})
        for row in rows:
            print(row, flush=True)


def replace_rows(file: Path, found: dict[str, list[dict]], about: dict[str, Any]) -> None:
    """Write lists of rows of one folder to a results file, in place of those it had, and facts about all of them."""
    known = read_json_if_there(file)
    lists = {
        name: [row for row in known.get(name, []) if row["folder"] != rows[0]["folder"]] + rows
        for name, rows in found.items()
    }
    write_json(file, {**lists, **about})


if __name__ == "__main__":
    main()
