"""The commands that train, `train`, `sweep` and `pretrain`, and `check`, which looks at images before it."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from kdad.cli.options import (
    RAY,
    add_device,
    add_engine,
    add_recipe,
    add_task,
    add_threads,
    positive,
    reading,
    recipe_overrides,
    teacher_name,
    whole_number,
)
from kdad.errors import UserError
from kdad.files import check_output, check_output_folder
from kdad.networks.recipes import MAX_SEED
from kdad.processors import Load, choose_threads

if TYPE_CHECKING:
    from kdad.cli import Command
    from kdad.networks.teachers.loading import Teacher
    from kdad.training.sweep import Complete


def add_commands(command: "Command") -> None:
    """Declare the commands of this file."""
    sub = command("check", check, "look at images of your own before training on them")
    sub.add_argument("folder", help="normal images, or the layout of MVTec AD")
    sub.add_argument("--json", action="store_true")

    sub = command("train", train, "train, calibrate and evaluate a student")
    add_task(sub)
    add_recipe(sub)
    add_threads(sub)
    sub.add_argument("--seed", type=whole_number(0, MAX_SEED), default=0)
    sub.add_argument("--overwrite", action="store_true", help="replace the student that is there")
    sub.add_argument("--logger", choices=["tensorboard", "wandb"], help="also log there (history.csv is always kept)")
    sub.add_argument("--devices", type=positive, help="how many GPUs, or processes, of each machine train together")
    sub.add_argument("--num-nodes", type=positive, help="how many machines do; --out is a folder that they share")
    waiting = "how long to wait for a process that does not answer (default: %(default)g)"
    sub.add_argument("--timeout", type=positive, metavar="SECONDS", default=600, help=waiting)
    sub.add_argument("--job", metavar="FOLDER", help="report to this folder, once it is its turn; used by the app")

    sub = command("sweep", sweep, "train and evaluate all classes of a data set, over seeds")
    add_task(sub)
    add_recipe(sub)
    add_threads(sub)
    sub.add_argument("--seeds", type=positive, default=1, help="how many seeds, counted from 0")
    add_engine(sub)
    sub.add_argument(
        "--results",
        metavar="FILE",
        help="merge the figures into this file (the README's: benchmarks/results/one_vs_rest.json)",
    )
    sub.add_argument("--json", action="store_true")

    sub = command("pretrain", pretrain, "train a compact teacher on labelled images, or on what another sees in them")
    sub.add_argument("--backbone", required=True, choices=["vgg", "vit"])
    sub.add_argument("--dataset", required=True, choices=["cifar10", "tiny-imagenet-32", "patterns"])
    sub.add_argument(
        "--from", dest="start_from", metavar="TEACHER", help="tune this teacher's weights (a recipe of its own)"
    )
    guides = (
        "a compact teacher whose last two maps to copy beside the labels; or lite0-imagenet or timm:NAME, whose maps "
    )
    guides += "and soft answers are learned instead of the labels"
    sub.add_argument("--distil-from", metavar="TEACHER", help=guides)
    sub.add_argument("--out", required=True)
    sub.add_argument("--epochs", type=positive)
    sub.add_argument("--batch-size", type=positive)
    sub.add_argument("--learning-rate", type=float)
    sizes = "sides of the training images, each for an equal share of the epochs; small ones are cheap"
    sub.add_argument("--image-sizes", type=positive, nargs="+", metavar="PIXELS", help=sizes)
    sub.add_argument("--seed", type=whole_number(0, MAX_SEED), default=0)
    sub.add_argument("--overwrite", action="store_true")
    add_device(sub)
    add_threads(sub)


def check(args: argparse.Namespace) -> None:
    """Print what a folder holds and what is doubtful."""
    from kdad.data.datasets import folder_path
    from kdad.data.folder_layout import FolderLayout
    from kdad.data.health import examine_layout, in_words

    layout = FolderLayout(folder_path(args.folder).resolve())
    health = examine_layout(layout)
    layout.say_what_is_unused()
    if args.json:
        print(json.dumps(health.as_dict(), indent=2))
        return
    print("\n".join(in_words(health)))
    print("\n".join(f"- {advice}" for advice in health.advice) or "nothing doubtful was found")


def train(args: argparse.Namespace) -> None:
    """Train, calibrate and evaluate one student, as a job of the app if asked to."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # or processes that do not meet say so in 60 lines
    if args.job is None:
        _train(args)
        return
    from kdad.jobs.reporting import reporting

    with reporting(Path(args.job)) as reporter:
        _train(args, reporter.progress)


def _train(args: argparse.Namespace, report: Callable[[Mapping[str, Any]], None] | None = None) -> None:
    load, name, normal_class = Load(), teacher_name(args), _normal_class(args)
    check_output_folder(Path(args.out))
    from kdad.cli.judging import print_figures
    from kdad.data.datasets import is_folder
    from kdad.data.loading import load_task
    from kdad.detection.detector import Detector
    from kdad.evaluation.evaluate import evaluate, testing
    from kdad.evaluation.sensitivity import drawing, try_drawn_defects
    from kdad.networks.students import recipe_for
    from kdad.networks.teachers.loading import load_teacher
    from kdad.training.distributed import DistributedConfig, rank

    processes = DistributedConfig.detect(args.devices, args.num_nodes, args.timeout)
    loading = _meanwhile(lambda: load_teacher(name, **reading(args)), then="kdad.training.distillation")
    task = load_task(args.dataset, normal_class, lambda: loading.result().preprocessing, args.tile_size)
    images = task.train_size  # looks at all files of a folder
    teacher = loading.result()
    recipe = recipe_for(teacher, images, **recipe_overrides(args))
    from kdad.progress import running
    from kdad.training.distillation import stages, train_student
    from kdad.training.loop import Progress

    choose_threads(args.threads, load)
    if is_folder(args.dataset) and task.test is None:
        print("no test images of both kinds in test/good and test/<kind>: to be calibrated, and not evaluated")
    figures = None
    with running(lambda: [*stages(task, recipe), *drawing(task), *testing(task)], report):
        folder = train_student(
            task, teacher, Path(args.out), recipe=recipe, seed=args.seed, device=args.device, processes=processes,
            threads=args.threads, overwrite=args.overwrite, logger=args.logger,
            callbacks=[Progress(report)] if report else [],
        )  # fmt: skip
        if rank():
            return
        detector = Detector.load(folder, teacher=teacher, device=args.device)
        tried = try_drawn_defects(task, detector, folder)
        if task.test is not None:
            evaluation = evaluate(task, detector)
            evaluation.save(folder)
            figures = evaluation.figures
    if figures is not None:
        print_figures(figures)
    print("\n".join(tried), end="\n" if tried else "")
    print(f"student folder: {folder}")


def _meanwhile(load: "Callable[[], Teacher]", then: str) -> "Future[Teacher]":
    """Load a teacher in a thread, and then import a module; whoever imports it, too, waits for that.

    The libraries of a teacher and of training take as long to import as a folder's images take to be looked at. Nobody
    waits for them to be told what is wrong with a folder.
    """
    loaded: Future[Teacher] = Future()

    def run() -> None:
        try:
            loaded.set_result(load())
        except BaseException as error:
            loaded.set_exception(error)
        else:
            import_module(then)

    Thread(target=run, daemon=True).start()
    return loaded


def _normal_class(args: argparse.Namespace) -> str:
    """The requested class; a folder has only one."""
    from kdad.data.datasets import class_names

    classes = class_names(args.dataset)
    if args.normal_class is None and len(classes) > 1:
        raise UserError(f"--normal-class is needed; {args.dataset} has: {', '.join(classes)}")
    return args.normal_class or classes[0]


def sweep(args: argparse.Namespace) -> None:
    """Train and evaluate every class, and print the table."""
    load, teacher = Load(), teacher_name(args)
    from kdad.evaluation.results_file import merge_entry
    from kdad.training.sweep import Plan, render, run_sweep

    choose_threads(args.threads, load)
    args.normal_class = args.normal_class or "all"
    if args.results:
        if args.normal_class != "all":
            raise UserError("--results keeps whole data sets: use it with --normal-class all")
        _check_results(Path(args.results))
    plan = Plan(
        teacher, args.dataset, Path(args.out), args.device, recipe_overrides(args), tile_size=args.tile_size,
        **reading(args),
    )  # fmt: skip
    results = run_sweep(plan, args.normal_class, seeds=args.seeds, complete=_completing(args.engine))
    if args.results:
        merge_entry(Path(args.results), results)
    print(json.dumps(results, indent=2) if args.json else render(results))


def _check_results(file: Path) -> None:
    """Raise a `UserError`, before the work and not after it, if figures cannot be merged into a file."""
    from kdad.evaluation.results_file import load_results

    file.parent.mkdir(parents=True, exist_ok=True)  # the app shows a command whose folder only a checkout has
    check_output(file, (".json",))
    load_results(file)


def _completing(engine: str) -> "Complete":
    """The function that trains students on an engine."""
    if engine == RAY:
        from kdad.cluster.sweeping import complete_with_ray

        return complete_with_ray
    from kdad.training.sweep import complete_here

    return complete_here


def pretrain(args: argparse.Namespace) -> None:
    """Train a compact teacher."""
    load = Load()
    from kdad.networks.teachers.cards import without_labels
    from kdad.training.pretraining.pretrain import train_teacher

    choose_threads(args.threads, load)
    card = train_teacher(
        args.backbone, args.dataset, Path(args.out), start_from=args.start_from, distil_from=args.distil_from,
        epochs=args.epochs, batch_size=args.batch_size, learning_rate=args.learning_rate,
        image_sizes=args.image_sizes, seed=args.seed, device=args.device, overwrite=args.overwrite,
    )  # fmt: skip
    kind = "agreement" if without_labels(card) else "accuracy"
    figures = ", ".join(f"{split} {kind} {value:.4f}" for split, value in card[kind].items())
    print(f"{args.backbone} on {args.dataset}: {figures}\nteacher folder: {args.out}")
