"""Comparison of candidate scores on *validation* images: `python benchmarks/scores.py`.

The default score of one-vs-rest students is selected by this table: one score for all teachers, and for each kind of
network the summary on which the distance is computed. It uses labelled anomalies of two CIFAR-10 classes from the
validation split; the headline excludes these two classes. The test split is not read. `distance` is the teacher's own
Mahalanobis distance (see `kdad.detection.mahalanobis`), on its class token, the mean over its patches, or halfway
between; for a full-size CNN also on its inner patches, and on means scaled to unit length. Rows of other teachers are
kept.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kdad.data.images import in_batches
from kdad.data.loading import load_task
from kdad.detection.detector import Detector
from kdad.detection.discrepancy import layer_errors
from kdad.detection.mahalanobis import Gaussian
from kdad.devices import hardware
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.files import write_json
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.networks.teachers.registry import LITE0, default_image_size, shipped
from kdad.networks.teachers.timm_backbones import TimmFeatures
from kdad.scores import SELECTION_CLASSES, last_layer_error, logarithm, published_score
from kdad.storage.layout import DEFAULT_OUT, student_folder

RESULTS = Path(__file__).resolve().parent / "results" / "scores.json"
DATASET = "cifar10"
# Candidate summaries (B, D) of a teacher's last layer (B, T, D) for the distance, without and with a class token.
SUMMARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "patches": lambda last: last.mean(1),
    "unit length": lambda last: normalize(last.mean(1), dim=1),
    "inner patches": lambda last: inner(last).mean(1),
    "inner patches, unit length": lambda last: normalize(inner(last).mean(1), dim=1),
}
WITH_TOKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "patches": lambda last: last[:, 1:].mean(1),
    "class token": lambda last: last[:, 0],
    "halfway": lambda last: (last[:, 0] + last[:, 1:].mean(1)) / 2,
}


def inner(last: Tensor) -> Tensor:
    """Patches (B, T, D) of a square grid without its outermost rows and columns."""
    side = int(last.shape[1] ** 0.5)
    return last.unflatten(1, (side, side))[:, 1:-1, 1:-1].flatten(1, 2)


def candidates(teacher: Teacher) -> dict[str, Callable[[Tensor], Tensor]]:
    """Candidate summaries of a teacher; the mean alone for a compact VGG, for which it was selected first."""
    if teacher.prefix:
        return WITH_TOKEN
    return SUMMARIES if isinstance(teacher.network, TimmFeatures) else {"patches": SUMMARIES["patches"]}


@torch.inference_mode()
def summaries(teacher: Teacher, images: Tensor) -> dict[str, Tensor]:
    """Candidate summaries (N, D) of uint8 images (N, 3, H, W)."""
    last = [teacher(teacher.preprocessing(batch))[-1] for batch in in_batches(images)]
    return {name: torch.cat([summary(layer) for layer in last]) for name, summary in candidates(teacher).items()}


@torch.inference_mode()
def errors(detector: Detector, images: Tensor) -> np.ndarray:
    """Error table (N, L, 2) of uint8 images (N, 3, H, W)."""
    teacher, rows = detector.teacher, []
    for batch in in_batches(images):
        pixels = teacher.preprocessing(batch)
        rows.append(layer_errors(detector.student(pixels), teacher(pixels)))
    return torch.cat(rows).numpy()


def measure(normal_class: str, detector: Detector) -> dict[str, float]:
    """Validation AUROC in 0…1 of one student by each candidate score."""
    task = load_task(DATASET, normal_class)
    validation, teacher = task.validation, detector.teacher
    anomalous, table = validation.anomalous.numpy(), errors(detector, validation.images)
    found = {
        "last layer": last_layer_error(table),
        "published": published_score(table, detector.config.recipe.mse_weight),
    }
    train, held_out = summaries(teacher, task.train), summaries(teacher, validation.images)
    for name in candidates(teacher):
        distance = Gaussian.fit([train[name]]).distance(held_out[name]).numpy()
        found |= {
            f"distance, {name}": distance,
            f"last layer × distance, {name}": logarithm(last_layer_error(table)) + logarithm(distance),
        }
    return {name: round(metrics.auroc(values, anomalous), 6) for name, values in found.items()}


def main(argv: list[str] | None = None) -> None:
    """Measure, save for `benchmarks/tables.py`, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teachers", nargs="+", default=[*shipped(), LITE0])
    parser.add_argument("--students", type=Path, default=DEFAULT_OUT, help="root of the student folders")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    known = json.loads(args.results.read_text())["rows"] if args.results.is_file() else []
    rows: list[dict] = []
    try:
        for teacher in (load_teacher(name, image_size=default_image_size(name, DATASET)) for name in args.teachers):
            for name in SELECTION_CLASSES:
                folder = student_folder(args.students, DATASET, teacher.name, name, 0)
                figures = measure(name, Detector.load(folder, teacher=teacher, device="cpu"))
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
