"""Which score tells anomalies best on *validation* images: `python benchmarks/scores.py`.

The default score of one-vs-rest students is chosen by this table: one score for all teachers, that with the highest
mean. It reads labelled anomalies of two classes of CIFAR-10 as they stand in the validation split; the headline leaves
these two classes out. The test part is not read. `distance` is what the teacher alone says (see
`kdad.detection.mahalanobis`), of its class token, of the mean over its patches, or halfway between.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdad.data.images import in_batches
from kdad.data.loading import load_task
from kdad.detection.detector import Detector
from kdad.detection.discrepancy import distant_error, last_layer_score, layer_errors, mkd_score
from kdad.detection.mahalanobis import Gaussian
from kdad.devices import hardware
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.evaluation.results_file import CHOSEN_ON
from kdad.files import write_json
from kdad.networks.registry import shipped
from kdad.networks.teachers import Teacher, load_teacher
from kdad.storage.layout import DEFAULT_OUT, student_folder

RESULTS = Path(__file__).resolve().parent / "results" / "scores.json"
DATASET = "cifar10"
# The summaries of a teacher's last layer (B, T, D) with so many prefix tokens that a distance may read: (B, D).
SUMMARIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "patches": lambda last, prefix: last[:, prefix:].mean(1),
    "class token": lambda last, prefix: last[:, 0] if prefix else last.mean(1),
    "halfway": lambda last, prefix: (last[:, 0] + last[:, prefix:].mean(1)) / 2 if prefix else last.mean(1),
}


@torch.inference_mode()
def summaries(teacher: Teacher, images: Tensor) -> dict[str, Tensor]:
    """Every summary (N, D) of uint8 images (N, 3, H, W)."""
    last = [teacher(teacher.preprocessing(batch))[-1] for batch in in_batches(images)]
    return {name: torch.cat([summary(layer, teacher.prefix) for layer in last]) for name, summary in SUMMARIES.items()}


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
    candidates = {
        "last layer": last_layer_score(table),
        "published": mkd_score(table, detector.config.recipe.mse_weight),
    }
    train, held_out = summaries(teacher, task.train), summaries(teacher, validation.images)
    for name in SUMMARIES if teacher.prefix else ["patches"]:
        distance = Gaussian.fit([train[name]]).distance(held_out[name]).numpy()
        candidates |= {f"distance, {name}": distance, f"last layer × distance, {name}": distant_error(table, distance)}
    return {name: round(metrics.auroc(values, anomalous), 6) for name, values in candidates.items()}


def main(argv: list[str] | None = None) -> None:
    """Measure, save for `benchmarks/tables.py`, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teachers", nargs="+", default=shipped())
    parser.add_argument("--students", type=Path, default=DEFAULT_OUT, help="where student folders are")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    rows = []
    try:
        for teacher in map(load_teacher, args.teachers):
            for name in CHOSEN_ON:
                folder = student_folder(args.students, DATASET, teacher.name, name, 0)
                figures = measure(name, Detector.load(folder, teacher=teacher, device="cpu"))
                rows.append({"teacher": teacher.name, "normal_class": name, "figures": figures})
                print(rows[-1], flush=True)
    except UserError as error:
        parser.error(str(error))
    write_json(
        args.results, {"dataset": DATASET, "split": "validation", "seed": 0, "hardware": hardware("cpu"), "rows": rows}
    )


if __name__ == "__main__":
    main()
