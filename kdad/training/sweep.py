"""Train all classes of a data set over several seeds: the numbers of a results table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdad.data.datasets import FOLDER, class_names, dataset_slug, folder_path, is_folder, public_name
from kdad.data.folder_layout import GOOD, categories
from kdad.data.loading import load_task
from kdad.data.sizes import Size
from kdad.data.sources import image_format
from kdad.data.task import Task
from kdad.detection.detector import Detector
from kdad.devices import accelerator
from kdad.errors import UserError, one_of
from kdad.evaluation.evaluate import evaluate, testing
from kdad.evaluation.results_file import AUROCS, Figure
from kdad.evaluation.sensitivity import drawing, try_drawn_defects
from kdad.networks.students import recipe_for
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.progress import running
from kdad.storage import student_folder
from kdad.storage.history import read_history
from kdad.storage.student_config import StudentConfig, public_teacher
from kdad.training.distillation import planned, stages, train_student, views
from kdad.training.feature_cache import Views, cache_features


@dataclass(frozen=True)
class PendingRun:
    """A student that a sweep still has to train or evaluate.

    Args:
        source: the data set and normal class, as `load_task` takes them.
        config: the configuration that it will have.
        folder: where it belongs.
    """

    source: tuple[str, str]
    config: StudentConfig
    folder: Path


@dataclass(frozen=True)
class Plan:
    """The settings that all students of a sweep share."""

    teacher: str
    dataset: str
    out: Path
    device: str
    overrides: dict[str, Any]
    tile_size: int | None = None
    image_size: int | Size | None = None
    layers: tuple[str, ...] = ()

    @property
    def own_device(self) -> str:
        """The device that `device` means on this machine, which may be a worker's; a `UserError` if it is not here."""
        return accelerator(self.device)

    def load_teacher(self) -> Teacher:
        """The teacher, on the device."""
        return load_teacher(self.teacher, image_size=self.image_size, layers=self.layers).to(self.own_device)

    def task(self, source: tuple[str, str], teacher: Teacher) -> Task:
        """The task of one class."""
        return load_task(*source, teacher.preprocessing, self.tile_size)


Complete = Callable[[Plan, Teacher, Sequence[PendingRun]], None]
LOCALISATION = {
    "pixel_auroc": "pixel AUROC",
    "pixel_auroc_without_good": "pixel AUROC, no good images",
    "pro": "PRO",
    "pro_without_good": "PRO, no good images",
    "pixel_ap": "pixel AP",
}


def run_sweep(plan: Plan, normal_class: str, *, seeds: int, complete: Complete) -> dict[str, Any]:
    """Train and evaluate what is missing, and return per-class and mean figures over seeds.

    Students of just these runs that are evaluated are kept with their figures and unfinished ones resumed, so an
    interrupted sweep continues; where test images have changed since, they are evaluated again. Of a folder that holds
    folders in the layout of MVTec AD, each is a class.

    Args:
        normal_class: one class, or `all`.
        complete: trains and evaluates students: `complete_here`, or another that does so elsewhere.
    """
    wanted, device = _tasks(plan.dataset, normal_class), plan.own_device
    teacher = plan.load_teacher()
    folders: dict[str, list[Path]] = {}
    pending: list[PendingRun] = []
    for name, source in wanted.items():
        task = plan.task(source, teacher)
        recipe = recipe_for(teacher, task.train_size, **plan.overrides)
        configs = [planned(task, teacher, recipe, seed, device) for seed in range(seeds)]
        folders[name] = [student_folder.folder_of(plan.out, config) for config in configs]
        places = zip(configs, folders[name], strict=True)
        lacking = [
            PendingRun(source, config, folder) for config, folder in places if not _is_done(folder, config, task)
        ]
        if lacking:
            task.check()  # before the first of them is trained
        pending += lacking
    if pending:
        complete(plan, teacher, pending)
    runs = {name: [_figures(folder) for folder in of_class] for name, of_class in folders.items()}
    every = [run for of_class in runs.values() for run in of_class]
    shown = [score for score in (*AUROCS, *LOCALISATION) if all(score in run for run in every)]
    per_class = {name: _summary(of_class, shown) for name, of_class in runs.items()}
    means = {score: np.mean([figures[score]["values"] for figures in per_class.values()], 0) for score in shown}
    return {
        "dataset": public_name(plan.dataset),
        "image_format": image_format(plan.dataset),
        "teacher": public_teacher(teacher.name),
        "teacher_sha256": teacher.sha256,
        "family": every[0]["family"],
        "label_overlap": every[0]["label_overlap"],
        "split": "test",
        "score": every[0]["score"],
        "seeds": seeds,
        "classes": per_class,
        "mean": {score: float(values.mean()) for score, values in means.items()},
        "mean_deviation": {score: _deviation(values) for score, values in means.items()},
        **_cost(every),
    }


def _tasks(dataset: str, normal_class: str) -> dict[str, tuple[str, str]]:
    """The data set and normal class of each student, keyed by its name in the table."""
    if is_folder(dataset) and (found := categories(folder_path(dataset))):
        names = {folder.name: (f"{FOLDER}{folder}", GOOD) for folder in found}
    elif is_folder(dataset):
        names = {dataset_slug(dataset): (dataset, GOOD)}
    else:
        names = {name: (dataset, name) for name in class_names(dataset)}
    if normal_class == "all":
        return names
    return {normal_class: names[one_of(f"class of {dataset}", normal_class, names)]}


def complete_here(plan: Plan, teacher: Teacher, pending: Sequence[PendingRun]) -> None:
    """Train and evaluate the students one after another, in this process."""
    trainee = Completion(plan, teacher)
    for each in pending:
        trainee.complete(each)


class Completion:
    """Trains and evaluates students of one plan; they share the teacher's features.

    Args:
        teacher: that of the plan.
    """

    def __init__(self, plan: Plan, teacher: Teacher):
        self._plan, self._teacher = plan, teacher
        self._class: tuple[tuple[str, str], Task, Teacher] | None = None

    def complete(self, pending: PendingRun) -> None:
        """Train a student, unless it is trained, and evaluate it."""
        task, teacher = self._prepared(pending)
        config, device = pending.config, self._plan.own_device
        trained = student_folder.is_complete(pending.folder)
        with running(lambda: [*([] if trained else stages(task, config.recipe)), *drawing(task), *testing(task)]):
            if not trained:
                train_student(task, teacher, self._plan.out, recipe=config.recipe, seed=config.seed, device=device)
            detector = Detector.load(pending.folder, teacher=teacher, device=device)
            try_drawn_defects(task, detector, pending.folder)
            evaluate(task, detector).save(pending.folder)

    def _prepared(self, pending: PendingRun) -> tuple[Task, Teacher]:
        """The task of a class, and the teacher with its features in memory, if they fit; kept until another is."""
        if self._class is None:
            self._teacher = _cache_shared_features(self._teacher, pending.source, self._plan.own_device)
        if self._class is None or self._class[0] != pending.source:
            self._class = None  # what the last class has read goes with it
            task = self._plan.task(pending.source, self._teacher)
            memory = views(task, pending.config.recipe, self._plan.own_device)
            self._class = pending.source, task, cache_features(self._teacher, memory)
        return self._class[1:]


def _cache_shared_features(teacher: Teacher, any_task: tuple[str, str], device: str) -> Teacher:
    """Cache the teacher's features of validation and test images, if students of all classes share them."""
    task = load_task(*any_task)
    if task.same_images:
        for part in filter(None, (task.test, task.validation)):
            teacher = cache_features(teacher, Views([part.images], [], device))
    return teacher


def _figures(folder: Path) -> dict[str, Any]:
    """The figures of one student, and its training time."""
    config = student_folder.load_config(folder)
    return {
        **(student_folder.load_evaluation(folder) or {}),
        "family": config.architecture["kind"].split("-")[-1],
        "hardware": config.hardware,
        "seconds": sum(row["seconds"] for row in read_history(folder) if row["split"] == "train"),
    }


def _is_done(folder: Path, plan: StudentConfig, task: Task) -> bool:
    """Whether the run of `plan` has its figures: the test part is read once, unless it has changed since.

    Raises:
        UserError: there is a complete student of another run, or figures of another student.
    """
    if not student_folder.is_complete(folder):
        return False
    config = student_folder.load_config(folder)
    if different := config.differences(plan):
        raise UserError(f"{folder} holds a student of another run ({different}); remove it, or use another --out")
    student_folder.check_evaluation(folder, config)
    evaluation = student_folder.load_evaluation(folder)
    if evaluation is None:
        return False
    test = task.fingerprint("test")
    return evaluation.get("test_images_sha256", test) == test


def _cost(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean training time of a student whose history is known, and the hardware of all."""
    seconds = [run["seconds"] for run in runs if run["seconds"]]
    return {
        "seconds_per_student": round(float(np.mean(seconds)), 1) if seconds else None,
        "hardware": sorted({run["hardware"] for run in runs}),
    }


def _summary(runs: list[dict[str, Any]], scores: list[str]) -> dict[str, Any]:
    """Mean and, over several seeds, sample deviation of each score."""
    summary = {}
    for score in scores:
        values = [run[score] for run in runs]
        summary[score] = {"mean": float(np.mean(values)), "deviation": _deviation(values), "values": values}
    return summary


def _deviation(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def render(results: dict[str, Any]) -> str:
    """The figures as a Markdown table, in per cent."""
    scores = list(results["mean"])
    headings = {name: f"AUROC, {words}" for name, words in AUROCS.items()} | LOCALISATION
    lines = [f"| class | {' | '.join(headings[score] for score in scores)} |", "|---" * (len(scores) + 1) + "|"]
    for name, figures in results["classes"].items():
        lines.append(f"| {name} | {' | '.join(_percent(figures[score]) for score in scores)} |")
    means = (str(Figure(results["mean"][score], results["mean_deviation"][score])) for score in scores)
    lines.append(f"| **mean** | {' | '.join(means)} |")
    caption = (
        f"{results['dataset']}, {results['split']} split, {results['seeds']} seed(s), teacher {results['teacher']}, "
        f"label overlap: {results['label_overlap']}"
    )
    return "\n".join([*lines, "", caption])


def _percent(figures: dict[str, Any]) -> str:
    return str(Figure(figures["mean"], figures["deviation"]))
