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
STUDENTS = "trained_students"


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
    environment = os.environ | students_of(place) | _absolute("KDAD_DATA")
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
    """Where students are: in a checkout; or, of an installed app, in the current folder, and what came with it."""
    if os.environ.get("KDAD_STUDENTS"):
        folders = [Path(folder).resolve() for folder in os.environ["KDAD_STUDENTS"].split(os.pathsep)]
    elif place == PACKAGE.parent:
        return {}
    else:
        folders = [Path(STUDENTS).resolve(), place / STUDENTS]
    return {"KDAD_STUDENTS": os.pathsep.join(map(str, folders))}


def _absolute(variable: str) -> dict[str, str]:
    """A path in the environment as it is understood here."""
    value = os.environ.get(variable)
    return {variable: str(Path(value).resolve())} if value else {}
