"""The command that starts the app: `app`."""

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import kdad
from kdad.cli.options import port
from kdad.errors import UserError

if TYPE_CHECKING:
    from kdad.cli import Command

PACKAGE = Path(kdad.__file__).parent
PATHS = ("KDAD_DATA", "KDAD_FOLDERS", "KDAD_RESULTS", "KDAD_STUDENTS")


def add_commands(command: "Command") -> None:
    """Declare the command of this file."""
    sub = command("app", app, "open the app in a browser")
    sub.add_argument("--port", type=port, default=8501, help="default %(default)s")
    sub.add_argument("--address", default="127.0.0.1", help="who may reach it; see SECURITY.md (default %(default)s)")
    sub.add_argument("--headless", action="store_true", help="open no browser")


def app(args: argparse.Namespace) -> None:
    """Become Streamlit's server of the app."""
    place = app_folder()
    _check_free(args.address, args.port)
    options = {"port": args.port, "address": args.address, "headless": str(args.headless).lower()}
    command = [sys.executable, "-m", "streamlit", "run", str(place / "app.py")]
    command += [f"--server.{name}={value}" for name, value in options.items()]
    environment = os.environ | students_of(place) | _as_named_here()
    sys.stdout.flush()
    os.chdir(place)  # Streamlit looks for the app's settings where it is started
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is what is wanted


def _check_free(address: str, port: int) -> None:
    """Raise a `UserError` if nobody can listen at a port of an address."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
    except OSError as error:
        raise UserError(f"cannot listen at {address}, port {port} ({error.strerror}); choose another --port") from None


def app_folder() -> Path:
    """Where app.py is: inside an installed package, or at the root of a checkout."""
    installed = PACKAGE / "_app"
    return installed if installed.is_dir() else PACKAGE.parent


def students_of(place: Path) -> dict[str, str]:
    """Where students are if nobody says: of an installed app, in the current folder, and what came with it."""
    from kdad.storage.layout import DEFAULT_OUT

    if place == PACKAGE.parent:
        return {}
    return {"KDAD_STUDENTS": os.pathsep.join(map(str, (DEFAULT_OUT.resolve(), place / DEFAULT_OUT)))}


def _as_named_here() -> dict[str, str]:
    """The variables that name files and folders, which the app, started elsewhere, would take for others."""
    return {name: _resolved(os.environ[name]) for name in PATHS if os.environ.get(name)}


def _resolved(paths: str) -> str:
    return os.pathsep.join(str(Path(path).expanduser().resolve()) for path in paths.split(os.pathsep) if path)
