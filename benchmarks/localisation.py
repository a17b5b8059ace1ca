"""All localisation methods on `patterns-defects`, whose masks are exact: `python benchmarks/localisation.py`.

For each given teacher, a student of one texture (trained first if missing) maps test images by every method
that its networks support. Figures are on the test split, on which nothing was selected. Rows of other
teachers are kept.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from kdad.data.loading import load_task
from kdad.detection.detector import Detector
from kdad.detection.localisation import localise, methods_for
from kdad.devices import hardware
from kdad.evaluation import metrics
from kdad.evaluation.evaluate import evaluate, pixel_figures
from kdad.files import read_json_if_there, write_json
from kdad.networks.teachers.loading import load_teacher
from kdad.networks.teachers.registry import LITE0, default_image_size
from kdad.storage import layout, student_folder
from kdad.training.distillation import train_student

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "localisation.json"
DATASET = "patterns-defects"
SLOW = ("smoothgrad",)


def student_of(teacher_name: str, texture: str, out: Path) -> Detector:
    """Load the seed-0 student of a texture below `out`; trains and evaluates it if it is missing."""
    teacher, task = (
        load_teacher(teacher_name, image_size=default_image_size(teacher_name, DATASET)),
        load_task(DATASET, texture),
    )
    folder = layout.student_folder(out, DATASET, teacher_name, texture, 0)
    if not student_folder.is_complete(folder):
        train_student(task, teacher, out)
        evaluate(task, Detector.load(folder, teacher=teacher)).save(folder)
    return Detector.load(folder, teacher=teacher)


def measure(detector: Detector, method: str, images, masks: np.ndarray) -> dict:
    """Measure one method's accuracy and time; `auroc` is computed from each map's maximum."""
    localise(detector, images[:2], method)  # warm-up
    started = time.perf_counter()
    maps = localise(detector, images, method)
    seconds = time.perf_counter() - started
    anomalous = masks.any((1, 2))
    figures = {"auroc": metrics.auroc(maps.max((1, 2)), anomalous), **pixel_figures(maps, masks)}
    alone = pixel_figures(maps[anomalous], masks[anomalous])
    figures |= {f"{name}_without_good": value for name, value in alone.items()}
    return {name: round(value, 4) for name, value in figures.items()} | {"ms": round(1000 * seconds / len(images), 2)}


def run(teachers: list[str], texture: str, count: int, out: Path) -> dict:
    """Measure all methods with these teachers on all test images, slow methods on `count` evenly spaced ones."""
    test = load_task(DATASET, texture).test
    masks = np.stack(test.masks)
    rows = []
    for teacher in teachers:
        detector = student_of(teacher, texture, out)
        for method in methods_for(detector):
            shown = _evenly(len(test.images), count if method in SLOW else len(test.images))
            figures = measure(detector, method, test.images[shown], masks[shown])
            about = {"teacher": teacher, "method": method, "images": len(shown), "hardware": hardware("cpu")}
            rows.append(about | figures)
            print(rows[-1], flush=True)
    return {
        "dataset": DATASET,
        "texture": texture,
        "split": "test",
        "seed": 0,
        "rows": rows,
    }


def _evenly(of: int, count: int) -> np.ndarray:
    """`count` evenly spaced indices from 0 to `of` − 1."""
    return np.linspace(0, of - 1, count).round().astype(int)


def with_other_teachers(file: Path, measured: dict) -> dict:
    """`measured`, and before its rows those of other teachers that a results file has of the same setting."""
    before, again = read_json_if_there(file), {row["teacher"] for row in measured["rows"]}
    same = all(before.get(name) == value for name, value in measured.items() if name != "rows")
    kept = [row for row in before.get("rows", []) if same and row["teacher"] not in again]
    return measured | {"rows": kept + measured["rows"]}


def main() -> None:
    """Measure, and save for `benchmarks/tables.py`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teachers", nargs="+", default=["vgg-cifar10", "vit-cifar10", LITE0])
    parser.add_argument("--texture", default="bricks")
    parser.add_argument("--images", type=int, default=100, help=f"for {', '.join(SLOW)}")
    parser.add_argument("--out", type=Path, default=ROOT / "trained_students")
    args = parser.parse_args()
    measured = run(args.teachers, args.texture, args.images, args.out)
    write_json(RESULTS, with_other_teachers(RESULTS, measured))


if __name__ == "__main__":
    main()
