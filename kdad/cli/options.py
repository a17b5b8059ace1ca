"""Shared by the commands' parsers: one-line errors, argument types, and groups of options."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from kdad.data.datasets import DATASETS, check_dataset
from kdad.data.sizes import Size, as_size
from kdad.errors import UserError
from kdad.networks.teachers.registry import LITE0, available, check_name, default_reading, default_teacher
from kdad.storage.layout import DEFAULT_OUT

HERE, RAY = "here", "ray"  # engines
EXIT_STATUSES = (
    "exit status: 0 on success, 1 when the work itself fails, 2 on a mistake in the request, 130 when interrupted"
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argument type: whole numbers from `low` to `high`, or of at least `low`."""
    wanted = f"of at least {low}" if high is None else f"from {low} to {high}"

    def parsed(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            raise argparse.ArgumentTypeError(f"must be a whole number {wanted}, not {text!r}")
        return int(text)

    return parsed


positive = whole_number(1)


def add_task(parser: Parser) -> None:
    """Add the options that define a task: data set, teacher, image size, and output folder."""
    names = f"{', '.join(DATASETS)}, or folder:PATH for images of your own"
    parser.add_argument("--dataset", required=True, help=names)
    parser.add_argument(
        "--teacher", help=f"a teacher's name, Hub id or folder, or timm:NAME[@FILE] (default of photographs: {LITE0})"
    )
    parser.add_argument(
        "--image-size", type=positive, nargs="+", metavar="PIXELS",
        help=f"the size at which {LITE0} or a timm teacher reads images: a side, or height width (default: that of "
        f"the teacher; {LITE0} reads photographs at one that fits them)",
    )  # fmt: skip
    parser.add_argument(
        "--layers", nargs="+", default=[], metavar="NAME", help="the critical layers of such a teacher, fine to coarse"
    )
    parser.add_argument("--normal-class", help="which class is normal; a folder needs none")
    parser.add_argument(
        "--tile-size", type=whole_number(0), metavar="PIXELS",
        help="the side of the tiles that a folder's images are cut into, 0 for whole images (default: by size)",
    )  # fmt: skip
    add_out(parser)


def add_engine(parser: Parser) -> None:
    """Add the choice of an engine."""
    on = "on this machine, or on all of a Ray cluster: that of RAY_ADDRESS, or a new one (default %(default)s)"
    parser.add_argument("--engine", choices=[HERE, RAY], default=HERE, help=on)


def teacher_name(args: argparse.Namespace) -> str:
    """The teacher that was asked for, or the default of the data set.

    Raises:
        UserError: there is no default, or no such data set, or the name is no teacher's.
    """
    check_dataset(args.dataset)
    name: str | None = args.teacher or default_teacher(args.dataset)
    if name is None:
        raise UserError(f"--teacher is needed; there are: {', '.join(available())}")
    check_name(name)
    return name


def reading(args: argparse.Namespace) -> dict[str, Any]:
    """The `image_size` and `layers` of `load_teacher` that were asked for, or at which it reads the data set."""
    size, layers = (None, ()) if args.tile_size else default_reading(teacher_name(args), args.dataset)
    return {"image_size": _asked_size(args) or size, "layers": tuple(args.layers) or layers}


def _asked_size(args: argparse.Namespace) -> Size | None:
    if args.image_size is None:
        return None
    if len(args.image_size) > 2:
        raise UserError("--image-size takes one number, or a height and a width")
    return as_size(args.image_size[0] if len(args.image_size) == 1 else args.image_size)


def add_out(parser: Parser) -> None:
    """Add the folder of students."""
    parser.add_argument("--out", default=DEFAULT_OUT.as_posix(), help="the folder of students (default %(default)s)")


def add_recipe(parser: Parser) -> None:
    """Add the options that override the teacher's preset."""
    parser.add_argument("--epochs", type=positive, help="default: the teacher's preset")
    parser.add_argument("--batch-size", type=positive)
    parser.add_argument("--learning-rate", type=float)
    add_device(parser)


def recipe_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe settings given on the command line; None for those left at the preset."""
    return {"epochs": args.epochs, "batch_size": args.batch_size, "learning_rate": args.learning_rate}


def add_threads(parser: Parser) -> None:
    """Add the choice of the number of threads."""
    chosen = "processors to compute on (default: as many as other programs leave free, or those of an unfinished run)"
    parser.add_argument("--threads", type=positive, help=chosen)


def add_device(parser: Parser) -> None:
    """Add the choice of a device."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
