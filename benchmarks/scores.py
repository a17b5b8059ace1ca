"""Which score tells anomalies best on *validation* images: `python benchmarks/scores.py --teacher vgg-cifar10`.

The default score was chosen by this table, on two classes only; the test part is not read. `distance` is what the
teacher alone says, see `kdad.detection.mahalanobis`.
"""

import argparse
from pathlib import Path

import numpy as np

from kdad.data.loading import load_task
from kdad.detection.detector import Detector
from kdad.detection.discrepancy import DISTANT_ERROR, LAST_LAYER, MKD, SCORES
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.networks.teachers import load_teacher
from kdad.storage.layout import DEFAULT_OUT, student_folder

READ = (DISTANT_ERROR, LAST_LAYER, MKD)
CHOSEN_ON = ("cat", "airplane")


def measure(dataset: str, normal_class: str, detector: Detector) -> dict[str, float]:
    """Validation AUROC in 0…1 by each score of one student."""
    validation = load_task(dataset, normal_class).validation
    predictions = list(detector.predict_each(validation.images))
    measured = {
        "layer_errors": np.concatenate([prediction.layer_errors for prediction in predictions]),
        "distances": np.concatenate([prediction.distance for prediction in predictions]),
    }
    read = {name: SCORES[name](measured, detector.config.recipe.mse_weight) for name in READ}
    anomalous = validation.anomalous.numpy()
    return {
        name: metrics.auroc(score, anomalous) for name, score in {**read, "distance": measured["distances"]}.items()
    }


def render(figures: dict[str, dict[str, float]]) -> str:
    """One row per score, one column per class, in per cent, as Markdown."""
    rows = [f"| score | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
    for name in (*READ, "distance"):
        rows.append(f"| {name} | {' | '.join(f'{100 * of_class[name]:.2f}' for of_class in figures.values())} |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--classes", nargs="+", default=CHOSEN_ON)
    parser.add_argument("--students", type=Path, default=DEFAULT_OUT, help="where student folders are")
    args = parser.parse_args(argv)
    try:
        teacher = load_teacher(args.teacher)
        figures = {}
        for name in args.classes:
            folder = student_folder(args.students, args.dataset, teacher.name, name, 0)
            figures[name] = measure(args.dataset, name, Detector.load(folder, teacher=teacher))
    except UserError as error:
        parser.error(str(error))
    print(render(figures))


if __name__ == "__main__":
    main()
