"""The commands that start servers: `app` and `serve`."""

import argparse
import os
import socket
import sys
from collections.abc import Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import kdad
from kdad.cli.options import add_device, positive, whole_number
from kdad.errors import UserError

if TYPE_CHECKING:
    from kdad.cli import Command
    from kdad.detection.detector import Detector
    from kdad.networks.teachers.loading import Teacher

PACKAGE = Path(kdad.__file__).parent
PATHS = ("KDAD_DATA", "KDAD_FOLDERS", "KDAD_RESULTS", "KDAD_STUDENTS")


def add_commands(command: "Command") -> None:
    """Declare the commands of this file."""
    sub = command("app", app, "open the app in a browser")
    sub.add_argument("--port", type=whole_number(1, 65_535), default=8501, help="default %(default)s")
    sub.add_argument("--address", default="127.0.0.1", help="who may reach it; see SECURITY.md (default %(default)s)")
    sub.add_argument("--headless", action="store_true", help="open no browser")

    sub = command("serve", serve, "judge images for other programs, over HTTP")
    sub.add_argument("students", nargs="+", metavar="STUDENT", help="a folder, or a Hub id")
    sub.add_argument("--port", type=whole_number(1, 65_535), default=8000, help="default %(default)s")
    sub.add_argument("--address", default="127.0.0.1", help="who may reach it; see SECURITY.md (default %(default)s)")
    sub.add_argument("--max-bytes", type=positive, default=20_000_000, help="of one image file (default %(default)s)")
    sub.add_argument("--max-pixels", type=positive, default=25_000_000, help="of one image (default %(default)s)")
    at_once = "how many images are read and judged at once; others are told to come again (default %(default)s)"
    sub.add_argument("--max-requests", type=positive, default=64, help=at_once)
    add_device(sub)


def serve(args: argparse.Namespace) -> None:
    """Load students, and answer requests until interrupted."""
    try:
        import uvicorn

        from kdad.serving.api import Limits, create_app
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs an extra package ({error.name}): pip install 'kdad[serve]'") from None
    _check_free(args.address, args.port)
    detectors = _detectors(args.students, args.device)
    limits = Limits(args.max_bytes, args.max_pixels, args.max_requests)
    host = f"[{args.address}]" if ":" in args.address else args.address
    print(f"{len(detectors)} of them answer at http://{host}:{args.port}, described at /docs; Ctrl-C ends", flush=True)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(detectors, limits), host=args.address, port=args.port, log_level="warning",
            timeout_graceful_shutdown=10,
        )
    )  # fmt: skip
    with suppress(KeyboardInterrupt):  # which ends it, as was said
        server.run()


def _detectors(students: Sequence[str], device: str) -> "dict[str, Detector]":
    """Detectors by their students' names; those of one teacher share it."""
    from kdad.detection.detector import Detector
    from kdad.storage import hub, student_folder

    detectors: dict[str, Detector] = {}
    teachers: dict[Hashable, Teacher] = {}
    for student in students:
        folder = hub.resolve(student)
        config = student_folder.load_config(folder)
        name = str(student_folder.folder_of(Path(), config))
        if name in detectors:
            raise UserError(f"{student}: there is another {name}; serve one of them")
        of_teacher = config.teacher_sha256, config.preprocessing, tuple(config.layers)
        detectors[name] = Detector.load(folder, teacher=teachers.get(of_teacher), device=device)
        teachers[of_teacher] = detectors[name].teacher
        print(f"loaded {name}", flush=True)
    return detectors


def app(args: argparse.Namespace) -> None:
    """Replace this process by Streamlit's server of the app."""
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
    """Raise a `UserError` if a port of an address cannot be bound."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
    except OSError as error:
        raise UserError(f"cannot listen at {address}, port {port} ({error.strerror}); choose another --port") from None


def app_folder() -> Path:
    """The folder of app.py: inside an installed package, or at the root of a checkout."""
    installed = PACKAGE / "_app"
    return installed if installed.is_dir() else PACKAGE.parent


def students_of(place: Path) -> dict[str, str]:
    """The default folders of students of an installed app: the current folder's, then the bundled ones."""
    from kdad.storage.layout import DEFAULT_OUT

    if place == PACKAGE.parent:
        return {}
    return {"KDAD_STUDENTS": os.pathsep.join(map(str, (DEFAULT_OUT.resolve(), place / DEFAULT_OUT)))}


def _as_named_here() -> dict[str, str]:
    """Variables that name files and folders, made absolute for the app, which runs in another folder."""
    return {name: _resolved(os.environ[name]) for name in PATHS if os.environ.get(name)}


def _resolved(paths: str) -> str:
    return os.pathsep.join(str(Path(path).expanduser().resolve()) for path in paths.split(os.pathsep) if path)
