"""Defect detection on photographs of real objects: `python benchmarks/photographs.py FOLDER --source "who made it"`.

For each given teacher, a student is trained as by `kdad train` on the normals of a folder in the layout of MVTec AD,
and evaluated once on its test split. Seconds are measured from the start of training to the figures. Then the
student's own map is measured, and what the sum of both scores would find. Nothing from the images is kept, as the
student's folder is temporary.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from kdad.data.datasets import FOLDER, dataset_slug
from kdad.data.loading import load_task
from kdad.data.task import Task
from kdad.detection.detector import Detector
from kdad.devices import accelerator, hardware
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.evaluation.evaluate import evaluate, pixel_figures, shrunk, shrunk_mask
from kdad.files import read_json_if_there, write_json
from kdad.networks.teachers.loading import load_teacher
from kdad.networks.teachers.registry import LITE0, default_reading
from kdad.training.distillation import train_student

RESULTS = Path(__file__).resolve().parent / "results" / "photographs.json"
KEY = ("dataset", "teacher", "device")
WEIGHTS = (0.25, 1)  # of the student's peak beside the score
FIGURES = ("auroc", "pixel_auroc", "pro", "pixel_ap")


def measure(dataset: str, teacher_name: str, out: Path, device: str) -> dict:
    """Train and evaluate one student of `folder:PATH`, seed 0: figures in 0…1 and seconds."""
    started = time.perf_counter()
    size, layers = default_reading(teacher_name, dataset)
    teacher = load_teacher(teacher_name, image_size=size, layers=layers)
    task = load_task(dataset, "good", teacher.preprocessing)
    folder = train_student(task, teacher, out, device=device)
    detector = Detector.load(folder, teacher=teacher, device=device)
    figures = evaluate(task, detector).figures
    seconds = round(time.perf_counter() - started)
    return {
        "dataset": dataset_slug(dataset),
        "teacher": figures["teacher"],
        "image_size": list(teacher.preprocessing.resize),
        **{name: round(figures[name], 4) for name in FIGURES if name in figures},
        **{name: round(value, 4) for name, value in more_figures(task, detector).items()},
        "normals": len(task.train) + len(task.calibration),
        "n_normal": figures["n_normal"],
        "n_anomalous": figures["n_anomalous"],
        "calibration": f"{figures['n_calibration']} {figures['calibration']}",
        "seconds": seconds,
        "device": device,
        "hardware": hardware(device),
    }


def more_figures(task: Task, detector: Detector) -> dict[str, float]:
    """Figures in 0…1 on the test part beside those of an evaluation.

    What verdicts at the default false-positive rate find, what the student's own map does, and image AUROC of its peak
    added to the score.
    """
    assert task.test is not None
    peaks, scores, called, drawn, masks = [], [], [], [], []
    for index, image in enumerate(task.test.images):
        prediction = detector.predict(image)
        peaks.append(float(prediction.measurement.peak[0]))
        scores.append(float(prediction.score[0]))
        called.append(bool(prediction.is_anomaly[0]))
        mask = task.test.masks[index] if task.test.masks is not None else None
        if mask is not None:
            size = shrunk(*mask.shape)
            drawn.append(prediction.student_heatmap_at(*size)[0])
            masks.append(shrunk_mask(mask, *size))
    anomalous, peak = task.test.anomalous.numpy(), np.array(peaks)
    found = {name: float(np.mean(np.array(called)[of])) for name, of in
             (("found", anomalous), ("false_alarms", ~anomalous))}  # fmt: skip
    found["student_auroc"] = metrics.auroc(peak, anomalous)
    found |= {f"both_auroc_{weight}": metrics.auroc(np.array(scores) + weight * peak, anomalous) for weight in WEIGHTS}
    pixels = pixel_figures(drawn, masks) if drawn else {}
    return found | {f"student_{name}": pixels[name] for name in ("pixel_auroc", "pro") if name in pixels}


def main(argv: list[str] | None = None) -> None:
    """Measure, merge into the results for `benchmarks/tables.py`, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", required=True, help="who made the images, for the table")
    parser.add_argument("--teachers", nargs="+", default=[LITE0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    rows = read_json_if_there(args.results).get("rows", [])
    try:
        device = accelerator(args.device)
        for teacher in args.teachers:
            with tempfile.TemporaryDirectory() as out:
                row = measure(f"{FOLDER}{args.folder}", teacher, Path(out), device) | {"source": args.source}
            rows = [*(other for other in rows if any(other[name] != row[name] for name in KEY)), row]
            write_json(args.results, {"rows": rows})
            print(row, flush=True)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
