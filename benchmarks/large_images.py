"""Detection of 20 px defects in 1024 px images with teachers of 32 and 256 px: `python -m benchmarks.large_images`.

Creates a folder of large procedural images in the layout of MVTec AD, trains a student of each teacher on it once with
whole images and once with tiles, and saves the test figures for `benchmarks/tables.py`.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.localisation import with_other_teachers
from kdad.data.datasets import FOLDER
from kdad.data.loading import load_task
from kdad.detection.detector import Detector
from kdad.devices import hardware
from kdad.errors import UserError
from kdad.evaluation.evaluate import evaluate
from kdad.files import write_json
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.training.distillation import train_student

TEACHERS = ("vgg-cifar10", "lite0-imagenet")
SIDE, DEFECT = 1024, 20
TILE = 128  # pixels, or the teacher's input size if that is larger
COUNTS = {"train/good": 24, "test/good": 10, "test/spot": 10}
RESULTS = Path(__file__).resolve().parent / "results" / "large_images.json"


def weave(rng: np.random.Generator) -> np.ndarray:
    """Woven texture with sensor noise, uint8 (SIDE, SIDE, 3)."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    phases = rng.uniform(0, 2 * np.pi, 2)
    grey = rng.uniform(90, 130) + 30 * np.sin(x / 9 + phases[0]) * np.sin(y / 9 + phases[1])
    grey = grey + rng.normal(0, 4, grey.shape)
    return np.stack([grey, 0.9 * grey, 0.8 * grey], 2).clip(0, 255).astype(np.uint8)


def make_folder(root: Path) -> None:
    """Create good images, and images with a semi-transparent coloured square and its mask."""
    rng = np.random.default_rng(0)
    for place, count in COUNTS.items():
        for index in range(count):
            image, mask = weave(rng), np.zeros((SIDE, SIDE), bool)
            if place == "test/spot":
                row, column = rng.integers(DEFECT, SIDE - 2 * DEFECT, 2)
                mask[row : row + DEFECT, column : column + DEFECT] = True
                image[mask] = 0.5 * image[mask] + 0.5 * rng.integers(0, 256, 3)
                _save(mask.astype(np.uint8) * 255, root / "ground_truth" / "spot" / f"{index:03d}_mask.png")
            _save(image, root / place / f"{index:03d}.png")


def _save(pixels: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def measure(dataset: str, teacher: Teacher, tile_size: int, out: Path) -> dict:
    """Train and evaluate a student, and measure the time."""
    task = load_task(dataset, "good", teacher.preprocessing, tile_size)
    started = time.perf_counter()
    folder = train_student(task, teacher, out, device="cpu")
    trained = time.perf_counter()
    figures = evaluate(task, Detector.load(folder, teacher=teacher, device="cpu")).figures
    spent = {
        "train_s": trained - started,
        "ms_an_image": 1000 * (time.perf_counter() - trained) / len(task.test.labels),
    }
    chosen = {name: figures[name] for name in ("auroc", "pixel_auroc", "pro", "pixel_ap")}
    return {"teacher": teacher.name, "side": teacher.preprocessing.resize[0], "tile": task.tile_size, **chosen, **spent}


def main(argv: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", action="append", help=f"default: {' and '.join(TEACHERS)}")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "weave"
        make_folder(root)
        dataset = f"{FOLDER}{root}"
        try:
            for teacher in [load_teacher(name) for name in args.teacher or TEACHERS]:
                for tile_size in (0, max(TILE, *teacher.preprocessing.resize)):
                    figures = measure(dataset, teacher, tile_size, Path(temporary) / f"tile-{tile_size}")
                    memory = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
                    rows.append(figures | {"hardware": hardware("cpu"), "memory_gb": memory})
                    print(rows[-1], flush=True)
        except UserError as error:
            parser.error(str(error))
    measured = {
        "split": "test",
        "seed": 0,
        "side": SIDE,
        "defect": DEFECT,
        "train_images": COUNTS["train/good"],
        "test_images": COUNTS["test/good"] + COUNTS["test/spot"],
        "rows": rows,
    }
    write_json(args.results, with_other_teachers(args.results, measured))


if __name__ == "__main__":
    main()
