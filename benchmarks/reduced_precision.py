"""Effect of bfloat16 in student and teacher on accuracy: `python benchmarks/reduced_precision.py`.

The same student is trained in three ways, for several seeds: in float32 throughout, as published; as by `kdad train`,
in mixed precision on targets cached in float32; and as by `kdad train` when these do not fit in memory, on targets in
bfloat16. Figures are AUROCs on held-out training images, scored in float32: nothing is selected here, but the
comparison does not need the test split. Rows of other teachers are kept if they are of the same class, as many
seeds, and weights that have not changed since. It takes a processor with bfloat16 products.
"""

import argparse
import statistics
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

from kdad.data.loading import load_task
from kdad.data.task import Task
from kdad.detection.detector import Detector
from kdad.devices import hardware
from kdad.errors import UserError
from kdad.evaluation.metrics import auroc
from kdad.files import read_json_if_there, write_json
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.networks.teachers.registry import default_image_size
from kdad.training.distillation import train_student
from kdad.training.loop import half_precision

RESULTS = Path(__file__).resolve().parent / "results" / "reduced_precision.json"
TEACHERS = ("vgg-cifar10", "vit-cifar10")
FLOAT32, REMEMBERED, ASKED = "float32 throughout", "targets remembered", "targets in bfloat16"
WAYS = {  # patches that control half precision and the feature cache
    FLOAT32: {"kdad.training.loop.half_precision": lambda device: False},
    REMEMBERED: {},
    ASKED: {"kdad.training.distillation.cache_features": lambda teacher, views: teacher},
}


def figure(task: Task, teacher: Teacher, seed: int, way: str) -> float:
    """Train a student in one `way`; returns its validation AUROC in per cent."""
    patches = [patch(name, stand_in) for name, stand_in in WAYS[way].items()]
    with tempfile.TemporaryDirectory() as folder:
        for patched in patches:
            patched.start()
        try:
            student = train_student(task, teacher, Path(folder), seed=seed, device="cpu")
        finally:
            for patched in patches:
                patched.stop()
        detector = Detector.load(student, teacher=teacher, device="cpu")
    held_out = task.validation
    return 100 * auroc(detector.predict(held_out.images).score, held_out.anomalous.numpy())  # type: ignore[arg-type]


def measure(task: Task, name: str, seeds: int) -> dict:
    """AUROCs of every way, and their difference from float32, averaged over seeds."""
    teacher = load_teacher(name, image_size=default_image_size(name, task.dataset))
    aurocs = {way: [round(figure(task, teacher, seed, way), 3) for seed in range(seeds)] for way in WAYS}
    means = {way: statistics.mean(values) for way, values in aurocs.items()}
    return {
        "dataset": task.dataset,
        "normal_class": task.normal_class,
        "split": "validation",
        "teacher_sha256": teacher.sha256,
        "aurocs": aurocs,
        "off_by": {way: round(mean - means[FLOAT32], 3) for way, mean in means.items() if way != FLOAT32},
        "hardware": hardware("cpu"),
    }


def measured_before(file: Path, task: Task, seeds: int) -> dict[str, dict]:
    """The rows of a results file, of teachers as they are now, that compare with those of this task and these seeds."""
    rows = read_json_if_there(file)
    return {
        name: row
        for name, row in rows.items()
        if (row["dataset"], row["normal_class"]) == (task.dataset, task.normal_class)
        and len(row["aurocs"][FLOAT32]) == seeds
        and row.get("teacher_sha256") == _sha256_now(name)
    }


def _sha256_now(name: str) -> str | None:
    """SHA-256 of a teacher's weights as they are now; None if the teacher is gone."""
    with suppress(UserError):
        return load_teacher(name).sha256
    return None


def main(argv: list[str] | None = None) -> None:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--normal-class", default="cat")
    parser.add_argument("--teacher", action="append", help=f"default: {' and '.join(TEACHERS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if not half_precision("cpu"):
        parser.error("this processor has no bfloat16 products (avx512_bf16): all ways would be float32")
    try:
        task = load_task(args.dataset, args.normal_class)
        results = measured_before(args.results, task, args.seeds)
        for name in args.teacher or TEACHERS:
            results[name] = measure(task, name, args.seeds)
            write_json(args.results, results)
            print(name, results[name], flush=True)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
