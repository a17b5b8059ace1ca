"""Defect detection on photographs of real objects: `python benchmarks/photographs.py FOLDER --source "who made it"`.

For each given teacher, a student is trained as by `kdad train` on the normals of a folder in the layout of MVTec AD,
and evaluated once on its test split. Seconds are measured from the start of training to the figures. Nothing from the
images is kept, as the student's folder is temporary.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from kdad.data.datasets import FOLDER, dataset_slug
from kdad.data.loading import load_task
from kdad.detection.detector import Detector
from kdad.devices import accelerator, hardware
from kdad.errors import UserError
from kdad.evaluation.evaluate import evaluate
from kdad.files import write_json
from kdad.networks.teachers.loading import load_teacher
from kdad.networks.teachers.registry import LITE0, default_image_size, default_layers
from kdad.training.distillation import train_student

RESULTS = Path(__file__).resolve().parent / "results" / "photographs.json"
KEY = ("dataset", "teacher", "device")
FIGURES = ("auroc", "pixel_auroc", "pro", "pixel_ap")


def measure(dataset: str, teacher_name: str, out: Path, device: str) -> dict:
    """Train and evaluate one student of `folder:PATH`, seed 0: figures in 0…1 and seconds."""
    started = time.perf_counter()
    size, layers = (default(teacher_name, dataset) for default in (default_image_size, default_layers))
    teacher = load_teacher(teacher_name, image_size=size, layers=layers)
    task = load_task(dataset, "good", teacher.preprocessing)
    folder = train_student(task, teacher, out, device=device)
    figures = evaluate(task, Detector.load(folder, teacher=teacher, device=device)).figures
    return {
        "dataset": dataset_slug(dataset),
        "teacher": figures["teacher"],
        "image_size": list(teacher.preprocessing.resize),
        **{name: round(figures[name], 4) for name in FIGURES if name in figures},
        "normals": len(task.train),
        "n_normal": figures["n_normal"],
        "n_anomalous": figures["n_anomalous"],
        "calibration": f"{figures['n_calibration']} {figures['calibration']}",
        "seconds": round(time.perf_counter() - started),
        "device": device,
        "hardware": hardware(device),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, merge into the results for `benchmarks/tables.py`, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", required=True, help="who made the images, for the table")
    parser.add_argument("--teachers", nargs="+", default=[LITE0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    rows = json.loads(args.results.read_text())["rows"] if args.results.is_file() else []
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
