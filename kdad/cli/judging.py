"""The commands that judge: `evaluate` and `score`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad.cli.options import add_device
from kdad.errors import UserError

if TYPE_CHECKING:
    from kdad.cli import Command


def add_commands(command: "Command") -> None:
    """Declare the commands of this file."""
    sub = command("evaluate", evaluate, "print a student's figures on the test split")
    sub.add_argument("folder")
    sub.add_argument("--dataset", help="another data set with the same class (default: the student's own)")
    sub.add_argument("--json", action="store_true")
    add_device(sub)

    sub = command("score", score, "score image files, or all images of directories")
    sub.add_argument("folder")
    sub.add_argument("images", nargs="+", metavar="IMAGE_OR_DIR")
    sub.add_argument("--fpr", type=float, help="false-positive rate of the verdict (default 0.05)")
    output = sub.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true")
    output.add_argument("--csv", metavar="FILE")
    sub.add_argument("--heatmaps", metavar="DIR", help="also write a heatmap PNG for every image")
    sub.add_argument("--method", default="patch", help="how heatmaps are made; see the README (default %(default)s)")
    add_device(sub)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate a student on its own test split, or on another data set's."""
    from kdad.data.datasets import is_folder
    from kdad.data.loading import load_task
    from kdad.detection.detector import Detector
    from kdad.evaluation.evaluate import evaluate as evaluate_student
    from kdad.storage import hub

    folder = hub.resolve(args.folder)
    detector = Detector.load(folder, device=args.device)
    config = detector.config
    dataset = args.dataset or config.dataset
    tile = config.tile if is_folder(dataset) else None
    task = load_task(dataset, config.normal_class, config.preprocessing.resize, tile)
    figures = evaluate_student(folder, task, detector)
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        print_figures(figures)


def print_figures(figures: dict[str, Any]) -> None:
    """One line of figures, and a warning where they rest on little."""
    from kdad.detection.conformal import warn_if_few

    names = ("auroc", "auroc_mkd", "pixel_auroc", "pro", "pixel_ap")
    shown = [f"{name} {figures[name]:.4f}" for name in names if name in figures]
    print(
        f"{figures['dataset']}/{figures['normal_class']}: {', '.join(shown)} on {figures['split']} "
        f"({figures['n_normal']} normal, {figures['n_anomalous']} anomalous; seed {figures['seed']}; "
        f"teacher {figures['teacher']}, label overlap: {figures['label_overlap']})"
    )
    if warning := warn_if_few(figures["n_calibration"]):
        print(f"warning: {warning}", file=sys.stderr)


def score(args: argparse.Namespace) -> None:
    """Score images, and write heatmaps of them if asked to."""
    from kdad.detection.detector import Detector
    from kdad.detection.image_files import score_files

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


def _write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    import pandas

    from kdad.files import write_text

    write_text(file, pandas.DataFrame(rows).to_csv(index=False))
