"""The command that takes a detector out of Python: `export`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kdad.cli.judging import add_teacher, load_detector
from kdad.cli.options import positive

if TYPE_CHECKING:
    from kdad.cli import Command


def add_commands(command: "Command") -> None:
    """Declare the command of this file."""
    sub = command("export", export, "write a student, its teacher and its calibration as one ONNX file")
    sub.add_argument("folder")
    sub.add_argument("file", metavar="FILE.onnx")
    add_teacher(sub)
    sub.add_argument(
        "--size", type=positive, nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="of the images to come, in pixels (default: what the teacher sees)",
    )  # fmt: skip
    sub.add_argument("--opset", type=positive, default=18, help="ONNX's version of its operators (default %(default)s)")
    sub.set_defaults(device="cpu")


def export(args: argparse.Namespace) -> None:
    """Export a student."""
    from kdad.detection.onnx_export import export as export_detector

    size = None if args.size is None else (args.size[0], args.size[1])
    difference = export_detector(load_detector(args, args.folder), Path(args.file), size=size, opset=args.opset)
    print(f"{args.file}: as torch judges, to {difference:.1g}; images in, score, p_value and heatmap out")
