"""All classes of a data set over several seeds: the numbers of a results table."""

from pathlib import Path

import numpy as np

from kdad import store
from kdad.data import class_names, load_task
from kdad.detector import Detector
from kdad.distillation import train_student
from kdad.errors import one_of
from kdad.evaluation import evaluate
from kdad.students import preset, with_overrides
from kdad.teachers import Teacher, load_teacher

SCORES = ("auroc", "auroc_mkd")


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
    return {
        "dataset": dataset,
        "teacher": teacher.name,
        "teacher_sha256": teacher.sha256,
        "label_overlap": runs[0]["label_overlap"],
        "split": "test",
        "seeds": seeds,
        "classes": per_class,
        "mean": {score: float(np.mean([figures[score]["mean"] for figures in per_class.values()])) for score in SCORES},
    }


def _figures(dataset, normal_class, teacher: Teacher, seed: int, out: Path, device: str, overrides: dict) -> dict:
    task = load_task(dataset, normal_class)
    folder = store.student_folder(out, dataset, teacher.name, normal_class, seed)
    if not store.is_complete(folder):
        recipe = with_overrides(preset(teacher)[1], **overrides)
        train_student(task, teacher, out, recipe=recipe, seed=seed, device=device)
    return evaluate(folder, task, Detector.load(folder, teacher=teacher, device=device))


def _summary(runs: list[dict]) -> dict:
    """Mean and, over several seeds, sample deviation of each score."""
    summary = {}
    for score in SCORES:
        values = [run[score] for run in runs]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        summary[score] = {"mean": float(np.mean(values)), "deviation": spread, "values": values}
    return summary


def render(results: dict) -> str:
    """The figures as a Markdown table, AUROC in per cent."""
    lines = ["| class | AUROC (default) | AUROC (mkd) |", "|---|---|---|"]
    for name, figures in results["classes"].items():
        lines.append(f"| {name} | {_percent(figures['auroc'])} | {_percent(figures['auroc_mkd'])} |")
    means = (f"{100 * results['mean'][score]:.2f}" for score in SCORES)
    lines.append(f"| **mean** | {' | '.join(means)} |")
    caption = (
        f"{results['dataset']}, {results['split']} split, {results['seeds']} seed(s), teacher {results['teacher']}, "
        f"label overlap: {results['label_overlap']}"
    )
    return "\n".join([*lines, "", caption])


def _percent(figures: dict) -> str:
    spread = "" if figures["deviation"] is None else f" ± {100 * figures['deviation']:.2f}"
    return f"{100 * figures['mean']:.2f}{spread}"
