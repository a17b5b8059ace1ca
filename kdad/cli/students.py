"""The commands that manage student folders: `import-cloner`, `list`, `push` and `pull`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kdad.cli.options import add_out

if TYPE_CHECKING:
    from kdad.cli import Command


def add_commands(command: "Command") -> None:
    """Declare the commands of this file."""
    sub = command("import-cloner", import_cloner, "read a Cloner_*.pth of the original code")
    sub.add_argument("file")
    sub.add_argument("--dataset", default="cifar10")
    sub.add_argument("--normal-class", required=True)
    add_out(sub)

    sub = command("list", list_students, "show the teachers and students that are here")
    add_out(sub)

    sub = command("push", push, "upload a student folder to the Hugging Face Hub")
    sub.add_argument("folder", metavar="STUDENT")
    sub.add_argument("repo")
    sub.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    sub.add_argument("--message", help="of the commit")

    sub = command("pull", pull, "fetch a student from the Hugging Face Hub")
    sub.add_argument("repo")
    sub.add_argument("--revision", help="a branch, tag or commit (default: main)")
    add_out(sub)


def import_cloner(args: argparse.Namespace) -> None:
    """Turn a file of the original code into a student folder."""
    from kdad.storage.original_code import import_cloner_file

    folder = import_cloner_file(Path(args.file), args.dataset, args.normal_class, Path(args.out))
    print(
        f"student folder: {folder}\nnot calibrated yet: it scores, but has no p-values until `evaluate` has run on it"
    )


def list_students(args: argparse.Namespace) -> None:
    """Print what is here."""
    from kdad.networks.teachers.registry import available
    from kdad.storage import hub, student_folder

    print(f"teachers: {', '.join(available())}")
    students = student_folder.find_students(Path(args.out))
    for folder in students:
        config, evaluation = student_folder.load_config(folder), student_folder.load_evaluation(folder)
        figure = f"test AUROC {evaluation['auroc']:.4f}" if evaluation else "not evaluated"
        origin = student_folder.load_local(folder).get(hub.ORIGIN)
        origin = f"; from {origin}" if origin else ""
        print(f"{folder}  {figure}  (label overlap: {config.label_overlap}; seed {config.seed}{origin})")
    if not students:
        print(f"no student below {args.out}; `python -m kdad train` makes one")


def push(args: argparse.Namespace) -> None:
    """Upload a student."""
    from kdad.storage import hub

    print(hub.push(Path(args.folder), args.repo, public=args.public, message=args.message))


def pull(args: argparse.Namespace) -> None:
    """Fetch a student."""
    from kdad.storage import hub

    print(f"student folder: {hub.pull(args.repo, Path(args.out), args.revision)}")
