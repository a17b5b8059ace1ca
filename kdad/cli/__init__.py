"""The command line: parses, calls the core, prints, and turns errors into exit statuses. May import every room.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Callable

from kdad.cli import judging, operating_points, servers, students, training
from kdad.cli.options import EXIT_STATUSES, Parser
from kdad.errors import UserError, WorkFailed
from kdad.memory import keep_freed_memory

INTERRUPTED = 130
UNUSABLE_PATH = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
# Declares a command by its name, what runs it, and one line of help; returns its parser.
Command = Callable[[str, Callable[[argparse.Namespace], None], str], Parser]


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="kdad", description="Knowledge-distillation anomaly detection.", epilog=EXIT_STATUSES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Parser:
        sub = commands.add_parser(name, help=text, description=text, epilog=EXIT_STATUSES)
        sub.set_defaults(run=run)
        return sub

    for group in (training, judging, operating_points, students, servers):
        group.add_commands(command)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        args = build_parser().parse_args(argv)
        keep_freed_memory()
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
