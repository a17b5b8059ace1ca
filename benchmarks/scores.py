"""Comparison of candidate scores on *validation* images: `python benchmarks/scores.py`.

The default score of one-vs-rest students is selected by this table: one score for all teachers, and for each kind of
network the summary on which the distance is computed. It uses labelled anomalies of two CIFAR-10 classes from the
validation split; the headline excludes these two classes. The test split is not read. `distance` is the teacher's own
Mahalanobis distance (see `kdad.detection.mahalanobis`), on its class token, the mean over its patches, or halfway
between, as they are or scaled to unit length; for a full-size CNN also on its inner patches. What else could be read is
measured beside: deviations, quarters of the image, a second layer, and how far the image is from pictures of any kind.
Rows of other teachers are kept.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdad.data.images import in_batches
from kdad.data.loading import load_task
from kdad.data.sources import load_source
from kdad.detection.detector import Detector
from kdad.detection.discrepancy import layer_errors
from kdad.detection.mahalanobis import Gaussian
from kdad.devices import hardware
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.files import read_json_if_there, write_json
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.networks.teachers.registry import LITE0, default_image_size, shipped
from kdad.networks.teachers.timm_backbones import TimmFeatures
from kdad.scores import SELECTION_CLASSES, last_layer_error, logarithm, published_score
from kdad.storage.layout import DEFAULT_OUT, student_folder

RESULTS = Path(__file__).resolve().parent / "results" / "scores.json"
DATASET = "cifar10"
PICTURES, PICTURES_SHOWN = "tiny-imagenet-32", 10_000  # of all kinds, to compare distances from normals with
PICTURES_WEIGHT = 0.5
Summary = Callable[[Sequence[Tensor]], Tensor]  # from critical layers (B, T, D) to (B, D')


@dataclass(frozen=True)
class Distance:
    """A candidate for the teacher's own distance: the sum, over summaries, of the logarithms of their distances.

    Args:
        summaries: what is read of an image; each has a Gaussian of its own.
        relative: whether half of the same from pictures of all kinds is taken off, as in the relative Mahalanobis
            distance of Ren et al. 2021 (arXiv 2106.09022).
    """

    summaries: tuple[Summary, ...]
    relative: bool = False


def inner(last: Tensor) -> Tensor:
    """Patches (B, T, D) of a square grid without its outermost rows and columns."""
    side = int(last.shape[1] ** 0.5)
    return last.unflatten(1, (side, side))[:, 1:-1, 1:-1].flatten(1, 2)


# Summaries of the last layer by name: of any network without a class token, of a full-size CNN beside, and with one.
SUMMARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "patches": lambda last: last.mean(1),
    "unit length": lambda last: normalize(last.mean(1), dim=1),
}
OF_INNER_PATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "inner patches": lambda last: inner(last).mean(1),
    "inner patches, unit length": lambda last: normalize(inner(last).mean(1), dim=1),
}
WITH_TOKEN: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: lambda last, summary=summary: summary(last[:, 1:]) for name, summary in SUMMARIES.items()},
    "class token": lambda last: last[:, 0],
    "halfway": lambda last: (last[:, 0] + last[:, 1:].mean(1)) / 2,
    "halfway, unit length": lambda last: normalize(last[:, 0] + last[:, 1:].mean(1), dim=1),
}


def candidates(teacher: Teacher) -> dict[str, Distance]:
    """Candidate distances under a teacher."""
    plain = SUMMARIES | (OF_INNER_PATCHES if isinstance(teacher.network, TimmFeatures) else {})
    named = WITH_TOKEN if teacher.prefix else plain
    found = {name: Distance((partial(_of_last, summary),)) for name, summary in named.items()}
    own = teacher.network.summary
    quarters = [partial(_quarter, teacher, rows, columns) for rows in (0, 1) for columns in (0, 1)]
    return found | {
        "mean and deviation": Distance((partial(_mean_and_deviation, teacher),)),
        "levels 1 and 2": Distance((own, *quarters)),
        "last two layers": Distance((own, partial(_layer_before, teacher))),
        f"relative to {PICTURES}": Distance((own,), relative=True),
    }


def _of_last(summary: Callable[[Tensor], Tensor], layers: Sequence[Tensor]) -> Tensor:
    return summary(layers[-1])


def _mean_and_deviation(teacher: Teacher, layers: Sequence[Tensor]) -> Tensor:
    patches = _grid(teacher, layers, -1).flatten(1, 2)
    return torch.cat([_as_read(teacher, of) for of in (patches.mean(1), patches.std(1))], 1)


def _quarter(teacher: Teacher, row: int, column: int, layers: Sequence[Tensor]) -> Tensor:
    """The mean over a quarter of the grid; of an odd number of rows, the middle one belongs to both halves."""
    grid = _grid(teacher, layers, -1)
    height, width = ((side + 1) // 2 for side in grid.shape[1:3])
    top, left = row * (grid.shape[1] - height), column * (grid.shape[2] - width)
    return _as_read(teacher, grid[:, top : top + height, left : left + width].mean((1, 2)))


def _layer_before(teacher: Teacher, layers: Sequence[Tensor]) -> Tensor:
    return _as_read(teacher, _grid(teacher, layers, -2).mean((1, 2)))


def _grid(teacher: Teacher, layers: Sequence[Tensor], index: int) -> Tensor:
    """The patches (B, h, w, D) of one layer, in float32."""
    return layers[index][:, teacher.prefix :].float().unflatten(1, teacher.grids[index])


def _as_read(teacher: Teacher, summary: Tensor) -> Tensor:
    """A summary (B, D) at unit length where the teacher's own is."""
    return normalize(summary, dim=1) if teacher.network.unit_length else summary


@torch.inference_mode()
def summaries(teacher: Teacher, images: Tensor) -> dict[str, list[Tensor]]:
    """Summaries (N, D) that each candidate distance reads of uint8 images (N, 3, H, W)."""
    wanted, parts = candidates(teacher), []
    for batch in in_batches(images):
        layers = teacher(teacher.preprocessing(batch))
        parts.append({name: [of(layers) for of in distance.summaries] for name, distance in wanted.items()})
    return {name: [torch.cat(of) for of in zip(*(part[name] for part in parts), strict=True)] for name in wanted}


def log_distances(known: list[Tensor], judged: list[Tensor]) -> np.ndarray:
    """The sum of logarithms of distances (N,) of summaries from those that are known."""
    pairs = zip(known, judged, strict=True)
    return sum(logarithm(Gaussian.fit([of]).distance(other).numpy()) for of, other in pairs)


@functools.cache
def pictures() -> Tensor:
    """Pictures of all kinds, uint8 (N, 3, 32, 32), evenly chosen."""
    source = load_source(PICTURES)
    count = len(source.labels("train"))
    return source.images("train", torch.linspace(0, count - 1, min(count, PICTURES_SHOWN)).round().long())


@torch.inference_mode()
def errors(detector: Detector, images: Tensor) -> np.ndarray:
    """Error table (N, L, 2) of uint8 images (N, 3, H, W)."""
    teacher, rows = detector.teacher, []
    for batch in in_batches(images):
        pixels = teacher.preprocessing(batch)
        rows.append(layer_errors(detector.student(pixels), teacher(pixels)))
    return torch.cat(rows).numpy()


def measure(normal_class: str, detector: Detector, of_pictures: dict[str, list[Tensor]]) -> dict[str, float]:
    """Validation AUROC in 0…1 of one student by each candidate score.

    Args:
        of_pictures: the `summaries` of pictures of all kinds.
    """
    task = load_task(DATASET, normal_class)
    validation, teacher = task.validation, detector.teacher
    anomalous, table = validation.anomalous.numpy(), errors(detector, validation.images)
    found = {
        "last layer": last_layer_error(table),
        "published": published_score(table, detector.config.recipe.mse_weight),
    }
    train, held_out = summaries(teacher, task.train), summaries(teacher, validation.images)
    for name, distance in candidates(teacher).items():
        far = log_distances(train[name], held_out[name])
        if distance.relative:
            far = far - PICTURES_WEIGHT * log_distances(of_pictures[name], held_out[name])
        found |= {f"distance, {name}": far, f"last layer × distance, {name}": logarithm(last_layer_error(table)) + far}
    return {name: round(metrics.auroc(values, anomalous), 6) for name, values in found.items()}


def main(argv: list[str] | None = None) -> None:
    """Measure, save for `benchmarks/tables.py`, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teachers", nargs="+", default=[*shipped(), LITE0])
    parser.add_argument("--students", type=Path, default=DEFAULT_OUT, help="root of the student folders")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    known = read_json_if_there(args.results).get("rows", [])
    rows: list[dict] = []
    try:
        for teacher in (load_teacher(name, image_size=default_image_size(name, DATASET)) for name in args.teachers):
            detectors = {
                name: Detector.load(
                    student_folder(args.students, DATASET, teacher.name, name, 0), teacher=teacher, device="cpu"
                )
                for name in SELECTION_CLASSES
            }
            of_pictures = summaries(teacher, pictures())
            for name, detector in detectors.items():
                figures = measure(name, detector, of_pictures)
                rows.append({"teacher": teacher.name, "normal_class": name, "figures": figures})
                print(rows[-1], flush=True)
    except UserError as error:
        parser.error(str(error))
    rows = [row for row in known if row["teacher"] not in {new["teacher"] for new in rows}] + rows
    write_json(
        args.results, {"dataset": DATASET, "split": "validation", "seed": 0, "hardware": hardware("cpu"), "rows": rows}
    )


if __name__ == "__main__":
    main()
