"""The command that sets the operating point of a student: `threshold`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kdad.errors import UserError

if TYPE_CHECKING:
    from kdad.cli import Command
    from kdad.storage.operating_point import OperatingPoint


def add_commands(command: "Command") -> None:
    """Declare the commands of this file."""
    text = "set the false-positive rate of a student's verdicts by what a miss and a false alarm cost"
    sub = command("threshold", threshold, text)
    sub.add_argument("folder", metavar="STUDENT")
    sub.add_argument("--miss", type=float, metavar="COST", help="of an anomalous image that is called normal")
    sub.add_argument("--false-alarm", type=float, metavar="COST", help="of a normal image that is called anomalous")
    sub.add_argument("--defects", type=float, metavar="SHARE", help="of anomalous images among those to come, 0 to 1")
    sub.add_argument("--clear", action="store_true", help="remove it: verdicts are at 5 %% again")


def threshold(args: argparse.Namespace) -> None:
    """Set, remove or show the operating point that is kept with a student."""
    folder, costs = Path(args.folder), (args.miss, args.false_alarm, args.defects)
    given = [cost is not None for cost in costs]
    if args.clear and any(given):
        raise UserError("--clear removes the operating point; give it without costs")
    if any(given) and not all(given):
        raise UserError("costs are three numbers: give --miss, --false-alarm and --defects")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such student folder; `python -m kdad list` shows those that are here")
    if args.clear:
        _clear(folder)
    elif any(given):
        _set(args, folder)
    else:
        _show(folder)


def _set(args: argparse.Namespace, folder: Path) -> None:
    from kdad.evaluation import operating_points
    from kdad.storage.operating_point import Costs

    point = operating_points.choose(folder, Costs(args.miss, args.false_alarm, args.defects))
    operating_points.keep(folder, point)
    _print(point)


def _clear(folder: Path) -> None:
    from kdad.evaluation import operating_points

    operating_points.clear(folder)
    print(f"{folder} keeps no operating point: verdicts are at a false-positive rate of 5 %, or the lowest it can hold")


def _show(folder: Path) -> None:
    from kdad.storage.operating_point import load_operating_point
    from kdad.storage.student_folder import load_config

    point = load_operating_point(folder, load_config(folder).weights_sha256)
    if point is None:
        print(f"{folder} keeps no operating point; set one with --miss, --false-alarm and --defects")
    else:
        _print(point)


def _print(point: "OperatingPoint") -> None:
    """Print a point, and its expected cost beside that of calling no image anomalous."""
    print(point.line)
    nothing = point.costs.expected(0.0, 0.0)
    print(f"expected cost per image: {point.expected_cost:.4g}; of calling every image normal: {nothing:.4g}")
