"""All classes of a data set over several seeds: the numbers of a results table."""

from pathlib import Path

import numpy as np

from kdad import store
from kdad.catalogue import class_names
from kdad.data import image_format, load_task
from kdad.detector import Detector
from kdad.distillation import train_student
from kdad.errors import one_of
from kdad.evaluation import evaluate
from kdad.history import read_history
from kdad.recipes import with_overrides
from kdad.results import SCORES, Figure
from kdad.students import preset
from kdad.teachers import Teacher, load_teacher


def run_sweep(
    dataset: str, teacher_name: str, normal_class: str, *, seeds: int, out: Path, device: str, overrides: dict
) -> dict:
    """Train what is missing, evaluate everything, and return per-class and mean figures over seeds.

    Students that are complete are kept and unfinished ones resumed, so an interrupted sweep
    continues.
    """
    classes = class_names(dataset)
    wanted = classes if normal_class == "all" else (one_of(f"class of {dataset}", normal_class, classes),)
    teacher = load_teacher(teacher_name)
    runs = [_figures(dataset, name, teacher, seed, out, device, overrides) for name in wanted for seed in range(seeds)]
    per_class = {name: _summary([run for run in runs if run["normal_class"] == name]) for name in wanted}
    means = {score: np.mean([figures[score]["values"] for figures in per_class.values()], 0) for score in SCORES}
    return {
        "dataset": dataset,
        "image_format": image_format(dataset),
        "teacher": teacher.name,
        "teacher_sha256": teacher.sha256,
        "family": runs[0]["family"],
        "label_overlap": runs[0]["label_overlap"],
        "split": "test",
        "score": runs[0]["score"],
        "seeds": seeds,
        "classes": per_class,
        "mean": {score: float(values.mean()) for score, values in means.items()},
        "mean_deviation": {score: _deviation(values) for score, values in means.items()},
        **_cost(runs),
    }


def _figures(dataset, normal_class, teacher: Teacher, seed: int, out: Path, device: str, overrides: dict) -> dict:
    task = load_task(dataset, normal_class)
    folder = store.student_folder(out, dataset, teacher.name, normal_class, seed)
    if not store.is_complete(folder):
        recipe = with_overrides(preset(teacher)[1], **overrides)
        train_student(task, teacher, out, recipe=recipe, seed=seed, device=device)
    detector = Detector.load(folder, teacher=teacher, device=device)
    return {
        **evaluate(folder, task, detector),
        "family": detector.config.architecture["kind"].split("-")[-1],
        "hardware": detector.config.hardware,
        "seconds": sum(row["seconds"] for row in read_history(folder) if row["split"] == "train"),
    }


def _cost(runs: list[dict]) -> dict:
    """Mean training time of a student whose history is known, and the hardware of all."""
    seconds = [run["seconds"] for run in runs if run["seconds"]]
    return {
        "seconds_per_student": round(float(np.mean(seconds)), 1) if seconds else None,
        "hardware": sorted({run["hardware"] for run in runs}),
    }


def _summary(runs: list[dict]) -> dict:
    """Mean and, over several seeds, sample deviation of each score."""
    summary = {}
    for score in SCORES:
        values = [run[score] for run in runs]
        summary[score] = {"mean": float(np.mean(values)), "deviation": _deviation(values), "values": values}
    return summary


def _deviation(values) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def render(results: dict) -> str:
    """The figures as a Markdown table, AUROC in per cent."""
    lines = ["| class | AUROC (default) | AUROC (mkd) |", "|---|---|---|"]
    for name, figures in results["classes"].items():
        lines.append(f"| {name} | {' | '.join(_percent(figures[score]) for score in SCORES)} |")
    means = (str(Figure(results["mean"][score], results["mean_deviation"][score])) for score in SCORES)
    lines.append(f"| **mean** | {' | '.join(means)} |")
    caption = (
        f"{results['dataset']}, {results['split']} split, {results['seeds']} seed(s), teacher {results['teacher']}, "
        f"label overlap: {results['label_overlap']}"
    )
    return "\n".join([*lines, "", caption])


def _percent(figures: dict) -> str:
    return str(Figure(figures["mean"], figures["deviation"]))
