"""The command line: it parses, calls the core, prints, and turns errors into exit statuses.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import argparse
import json
import sys
from pathlib import Path

from kdad.errors import UserError, WorkFailed
from kdad.recipes import LARGEST_SEED

OUT = "trained_students"
EXIT_STATUSES = "exit status: 0 on success, 1 when the work itself fails, 2 on a mistake in the request"
INTERRUPTED = 130
UNUSABLE_PATH = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str):
        raise UserError(f"{message} (see `{self.prog} --help`)")


def positive(text: str) -> int:
    """An integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value


def natural(text: str) -> int:
    """An integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not {text!r}")
    return int(text)


def seed(text: str) -> int:
    """An integer from 0 to `LARGEST_SEED`."""
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {LARGEST_SEED}, not {text!r}")
    return int(text)


def train(args) -> None:
    if args.job is None:
        _train(args)
        return
    from kdad.jobs import reporting

    with reporting(Path(args.job)) as reporter:
        _train(args, reporter.progress)


def _train(args, report=None) -> None:
    from kdad.distillation import train_student
    from kdad.students import recipe_for
    from kdad.tasks import load_task
    from kdad.teachers import load_teacher
    from kdad.training import Progress

    teacher = load_teacher(args.teacher)
    task = load_task(args.dataset, _normal_class(args), teacher.preprocessing.resize, args.tile)
    recipe = recipe_for(teacher, len(task.train), **_recipe_overrides(args))
    folder = train_student(
        task, teacher, Path(args.out), recipe=recipe, seed=args.seed, device=args.device,
        overwrite=args.overwrite, logger=args.logger, callbacks=[Progress(report)] if report else [],
    )  # fmt: skip
    if task.test is None:
        print("no test images of both kinds in test/good and test/<kind>: calibrated, and not evaluated")
    else:
        _report(_evaluated(folder, task, teacher, args.device))
    print(f"student folder: {folder}")


def _normal_class(args) -> str:
    """The class that was asked for; a folder has but one."""
    from kdad.catalogue import class_names

    classes = class_names(args.dataset)
    if args.normal_class is None and len(classes) > 1:
        raise UserError(f"--normal-class is needed; {args.dataset} has: {', '.join(classes)}")
    return args.normal_class or classes[0]


def _recipe_overrides(args) -> dict:
    return {"epochs": args.epochs, "batch_size": args.batch_size, "learning_rate": args.learning_rate}


def _evaluated(folder: Path, task, teacher, device: str) -> dict:
    from kdad.detector import Detector
    from kdad.evaluation import evaluate as evaluate_student

    return evaluate_student(folder, task, Detector.load(folder, teacher=teacher, device=device))


def _report(figures: dict) -> None:
    from kdad.evaluation import warn_if_few

    names = ("auroc", "auroc_mkd", "pixel_auroc", "pro", "pixel_ap")
    shown = [f"{name} {figures[name]:.4f}" for name in names if name in figures]
    print(
        f"{figures['dataset']}/{figures['normal_class']}: {', '.join(shown)} on {figures['split']} "
        f"({figures['n_normal']} normal, {figures['n_anomalous']} anomalous; seed {figures['seed']}; "
        f"teacher {figures['teacher']}, label overlap: {figures['label_overlap']})"
    )
    if warning := warn_if_few(figures["n_calibration"]):
        print(f"warning: {warning}", file=sys.stderr)


def evaluate(args) -> None:
    from kdad import store
    from kdad.catalogue import is_folder
    from kdad.detector import Detector
    from kdad.evaluation import evaluate as evaluate_student
    from kdad.tasks import load_task

    folder = store.resolve(args.folder)
    detector = Detector.load(folder, device=args.device)
    config = detector.config
    dataset = args.dataset or config.dataset
    tile = config.tile if is_folder(dataset) else None
    task = load_task(dataset, config.normal_class, config.preprocessing.resize, tile)
    figures = evaluate_student(folder, task, detector)
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        _report(figures)


def score(args) -> None:
    from kdad.detector import Detector
    from kdad.scoring import score_files

    if args.method != "patch" and not args.heatmaps:
        raise UserError("--method is about heatmaps: give --heatmaps DIR as well")
    detector = Detector.load(args.folder, device=args.device)
    rows = score_files(detector, args.images, args.fpr, args.heatmaps, args.method)
    if args.csv:
        _write_csv(Path(args.csv), rows)
    if args.json:
        print(json.dumps(rows, indent=2))
    elif not args.csv:
        for row in rows:
            p = "uncalibrated" if row["p_value"] is None else f"p {row['p_value']:.4f}"
            print(f"{row['score']:9.6f}  {p}  {'anomaly' if row['is_anomaly'] else 'normal '}  {row['image']}")


def _write_csv(file: Path, rows: list[dict]) -> None:
    import pandas

    from kdad.files import write_text

    write_text(file, pandas.DataFrame(rows).to_csv(index=False))


def sweep(args) -> None:
    from kdad.results import load_results, merge_entry
    from kdad.sweep import render, run_sweep

    args.normal_class = args.normal_class or "all"
    if args.results:
        if args.normal_class != "all":
            raise UserError("--results keeps whole data sets: use it with --normal-class all")
        load_results(Path(args.results))  # a damaged file is refused before the work, not after it
    results = run_sweep(
        args.dataset, args.teacher, args.normal_class, seeds=args.seeds, out=Path(args.out), device=args.device,
        overrides=_recipe_overrides(args), tile=args.tile,
    )  # fmt: skip
    if args.results:
        merge_entry(Path(args.results), results)
    print(json.dumps(results, indent=2) if args.json else render(results))


def pretrain(args) -> None:
    from kdad.pretrain import train_teacher

    card = train_teacher(
        args.backbone, args.dataset, Path(args.out), start_from=args.start_from, distil_from=args.distil_from,
        epochs=args.epochs, batch_size=args.batch_size, sides=args.sides, seed=args.seed, device=args.device,
        overwrite=args.overwrite,
    )  # fmt: skip
    accuracies = ", ".join(f"{split} accuracy {value:.4f}" for split, value in card["accuracy"].items())
    print(f"{args.backbone} on {args.dataset}: {accuracies}\nteacher folder: {args.out}")


def import_cloner(args) -> None:
    from kdad.cloner import import_cloner_file

    folder = import_cloner_file(Path(args.file), args.dataset, args.normal_class, Path(args.out))
    print(
        f"student folder: {folder}\nnot calibrated yet: it scores, but has no p-values until `evaluate` has run on it"
    )


def list_students(args) -> None:
    from kdad import store
    from kdad.catalogue import available

    print(f"teachers: {', '.join(available())}")
    students = store.find_students(Path(args.out))
    for folder in students:
        config, evaluation = store.load_config(folder), store.load_evaluation(folder)
        figure = f"test AUROC {evaluation['auroc']:.4f}" if evaluation else "not evaluated"
        print(f"{folder}  {figure}  (label overlap: {config.label_overlap}; seed {config.seed})")
    if not students:
        print(f"no student below {args.out}; `python -m kdad train` makes one")


def push(args) -> None:
    from kdad import store

    print(store.push(Path(args.folder), args.repo))


def pull(args) -> None:
    from kdad import store

    print(f"student folder: {store.pull(args.repo, Path(args.out))}")


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="kdad", description="Knowledge-distillation anomaly detection.", epilog=EXIT_STATUSES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, run, text: str) -> Parser:
        sub = commands.add_parser(name, help=text, description=text, epilog=EXIT_STATUSES)
        sub.set_defaults(run=run)
        return sub

    sub = command("train", train, "train, calibrate and evaluate a student")
    _add_task(sub)
    _add_recipe(sub)
    sub.add_argument("--seed", type=seed, default=0)
    sub.add_argument("--overwrite", action="store_true", help="replace the student that is there")
    sub.add_argument("--logger", choices=["tensorboard", "wandb"], help="also log there (history.csv is always kept)")
    sub.add_argument("--job", metavar="FOLDER", help="report to this folder, once it is its turn; used by the app")

    sub = command("evaluate", evaluate, "print a student's figures on the test split")
    sub.add_argument("folder")
    sub.add_argument("--dataset", help="another data set with the same class (default: the student's own)")
    sub.add_argument("--json", action="store_true")
    _add_device(sub)

    sub = command("score", score, "score image files, or all images of directories")
    sub.add_argument("folder")
    sub.add_argument("images", nargs="+", metavar="IMAGE_OR_DIR")
    sub.add_argument("--fpr", type=float, help="false-positive rate of the verdict (default 0.05)")
    output = sub.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true")
    output.add_argument("--csv", metavar="FILE")
    sub.add_argument("--heatmaps", metavar="DIR", help="also write a heatmap PNG for every image")
    sub.add_argument("--method", default="patch", help="how heatmaps are made; see the README (default %(default)s)")
    _add_device(sub)

    sub = command("sweep", sweep, "train and evaluate all classes of a data set, over seeds")
    _add_task(sub)
    _add_recipe(sub)
    sub.add_argument("--seeds", type=positive, default=1, help="how many seeds, counted from 0")
    sub.add_argument(
        "--results", metavar="FILE", help="merge the figures into this file (README: benchmarks/results.json)"
    )
    sub.add_argument("--json", action="store_true")

    sub = command("pretrain", pretrain, "train a compact teacher on labelled images")
    sub.add_argument("--backbone", required=True, choices=["vgg", "vit"])
    sub.add_argument("--dataset", required=True, choices=["cifar10", "tiny-imagenet-32", "patterns"])
    sub.add_argument(
        "--from", dest="start_from", metavar="TEACHER", help="tune this teacher's weights (a recipe of its own)"
    )
    sub.add_argument("--distil-from", metavar="TEACHER", help="also copy this teacher's last two feature maps")
    sub.add_argument("--out", required=True)
    sub.add_argument("--epochs", type=positive)
    sub.add_argument("--batch-size", type=positive)
    sides = "sides of the training images in pixels, each for an equal share of the epochs; small ones are cheap"
    sub.add_argument("--sides", type=positive, nargs="+", metavar="PIXELS", help=sides)
    sub.add_argument("--seed", type=seed, default=0)
    sub.add_argument("--overwrite", action="store_true")
    _add_device(sub)

    sub = command("import-cloner", import_cloner, "read a Cloner_*.pth of the original code")
    sub.add_argument("file")
    sub.add_argument("--dataset", default="cifar10")
    sub.add_argument("--normal-class", required=True)
    sub.add_argument("--out", default=OUT)

    sub = command("list", list_students, "show the teachers and students that are here")
    sub.add_argument("--out", default=OUT)

    sub = command("push", push, "upload a student folder to the Hugging Face Hub")
    sub.add_argument("folder")
    sub.add_argument("repo")

    sub = command("pull", pull, "fetch a student from the Hugging Face Hub")
    sub.add_argument("repo")
    sub.add_argument("--out", default=OUT)
    return parser


def _add_task(parser: Parser) -> None:
    names = "patterns, patterns-defects, cifar10, mnist, fashion-mnist, or folder:PATH for images of your own"
    parser.add_argument("--dataset", required=True, help=names)
    parser.add_argument("--teacher", required=True, help="a teacher's name, Hub id or folder")
    parser.add_argument("--normal-class", help="which class is normal; a folder needs none")
    parser.add_argument(
        "--tile", type=natural, metavar="PIXELS",
        help="of a folder's images: the side of the tiles to look at one by one, 0 for whole images (default: by size)",
    )  # fmt: skip
    parser.add_argument("--out", default=OUT, help="where student folders go (default %(default)s)")


def _add_recipe(parser: Parser) -> None:
    parser.add_argument("--epochs", type=positive, help="default: the teacher's preset")
    parser.add_argument("--batch-size", type=positive)
    parser.add_argument("--learning-rate", type=float)
    _add_device(parser)


def _add_device(parser: Parser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        args = build_parser().parse_args(argv)
        args.run(args)
        return 0
    except UserError as error:
        print(f"kdad: {error}", file=sys.stderr)
        return 2
    except WorkFailed as error:
        print(f"kdad: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a folder that is a file, a place that may not be written, a full disk
        print(f"kdad: {error}", file=sys.stderr)
        return 2 if isinstance(error, UNUSABLE_PATH) else 1
    except KeyboardInterrupt:
        print("kdad: interrupted; the same command continues where it stopped", file=sys.stderr)
        return INTERRUPTED
