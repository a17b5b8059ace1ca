"""Which score tells anomalies best on *validation* images: `python benchmarks/scores.py`.

The default score of one-vs-rest students is chosen by this table: one score for all teachers, and for each kind of
network the summary that the distance reads. It reads labelled anomalies of two classes of CIFAR-10 as they stand in the
validation split; the headline leaves these two classes out. The test part is not read. `distance` is what the teacher
alone says (see `kdad.detection.mahalanobis`), of its class token, of the mean over its patches, or halfway between; of
a full-size CNN also of its inner patches, and of means scaled to length one. Rows of other teachers stay.
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
# The summaries of a teacher's last layer (B, T, D) that a distance may read, (B, D), and which teachers have them.
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
    """The patches (B, T, D) of a square grid but for the outermost."""
    side = int(last.shape[1] ** 0.5)
    return last.unflatten(1, (side, side))[:, 1:-1, 1:-1].flatten(1, 2)


def candidates(teacher: Teacher) -> dict[str, Callable[[Tensor], Tensor]]:
    """The summaries that are tried of a teacher: of a compact VGG, as it was chosen first, the mean alone."""
    if teacher.prefix:
        return WITH_TOKEN
    return SUMMARIES if isinstance(teacher.network, TimmFeatures) else {"patches": SUMMARIES["patches"]}


@torch.inference_mode()
def summaries(teacher: Teacher, images: Tensor) -> dict[str, Tensor]:
    """Every summary (N, D) of uint8 images (N, 3, H, W)."""
    last = [teacher(teacher.preprocessing(batch))[-1] for batch in in_batches(images)]
    return {name: torch.cat([summary(layer) for layer in last]) for name, summary in candidates(teacher).items()}


@torch.inference_mode()
def errors(detector: Detector, images: Tensor) -> np.ndarray:
    """The error table (N, L, 2) of uint8 images (N, 3, H, W)."""
    teacher, rows = detector.teacher, []
    for batch in in_batches(images):
        pixels = teacher.preprocessing(batch)
        rows.append(layer_errors(detector.student(pixels), teacher(pixels)))
    return torch.cat(rows).numpy()


def measure(normal_class: str, detector: Detector) -> dict[str, float]:
    """Validation AUROC in 0…1 by each candidate, of one student."""
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
    parser.add_argument("--students", type=Path, default=DEFAULT_OUT, help="where student folders are")
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
