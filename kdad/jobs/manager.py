"""The app's side: starting, watching, stopping and resuming jobs."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import kdad
from kdad.errors import UserError
from kdad.files import write_json
from kdad.jobs.status import (
    ACTIVE,
    FAILED,
    KILLED,
    LOG,
    QUEUED,
    REQUEST,
    RUNNING,
    SILENT,
    STOPPED,
    TRACE,
    Status,
    lives,
    read_status,
    write_status,
)

SILENT_AFTER_SECONDS = 30.0
LOOKS_PER_SECOND = 20
COMMAND = (sys.executable, "-m", "kdad")


@dataclass(frozen=True)
class Job:
    """A job as it is now; `state` is one of queued, running, finished, failed, stopped, killed, silent."""

    folder: Path
    arguments: tuple[str, ...]
    student: Path
    created: float
    status: Status
    state: str

    @property
    def active(self) -> bool:
        """Whether its process lives."""
        return self.state in ACTIVE


def start(root: Path, arguments: Sequence[str], student: Path, command: Sequence[str] = COMMAND) -> Job:
    """Start `kdad <arguments> --job FOLDER` in a process of its own; returns once it reports, or has failed.

    Args:
        root: where job folders are; the jobs of a root take turns.
        student: the student folder that the job makes.
        command: what to start instead of this Python's `kdad`.
    """
    created = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(created))
    folder = Path(root) / f"{stamp}-{secrets.token_hex(3)}"
    folder.mkdir(parents=True)
    request = {"arguments": list(arguments), "student": str(Path(student).resolve()), "created": created}
    write_json(folder / REQUEST, request)
    return _launch(folder, arguments, command)


def resume(job: Job, command: Sequence[str] = COMMAND) -> Job:
    """Start an ended job's command again, which continues from its last finished epoch."""
    if find(job.folder).active:
        raise UserError("this job is not at an end yet")
    return _launch(job.folder, job.arguments, command)


def _launch(folder: Path, arguments: Sequence[str], command: Sequence[str]) -> Job:
    write_status(folder, Status(heartbeat=time.time()))
    with open(folder / LOG, "ab") as log:
        process = subprocess.Popen(
            [*command, *arguments, "--job", str(folder.resolve())], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, env=_environment(),
        )  # fmt: skip
    if not _wait(lambda: read_status(folder).pid is not None or process.poll() is not None, SILENT_AFTER_SECONDS):
        return find(folder)
    if process.poll() is not None and read_status(folder).pid is None:
        last = log_tail(folder, 1) or f"the process ended with status {process.returncode}"
        write_status(folder, Status(FAILED, heartbeat=time.time(), message=last))
    return find(folder)


def _environment() -> dict[str, str]:
    """Ours, so that this very package is found, nothing is buffered, and a progress bar does not fill the log."""
    paths = [str(Path(kdad.__file__).parent.parent), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(filter(None, paths))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "5"}


def stop(job: Job, grace: float = 10.0) -> Job:
    """End a job's processes, gently and after `grace` seconds for certain; returns it once they are gone."""
    status = read_status(job.folder)
    if status.pid is None or not lives(status):
        return find(job.folder)
    for sent, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, SILENT_AFTER_SECONDS)):
        with suppress(ProcessLookupError):
            os.killpg(status.pid, sent)
        if _wait(lambda: not lives(status), seconds):
            break
    last = read_status(job.folder)
    if last.state in (QUEUED, RUNNING):
        write_status(job.folder, replace(last, state=STOPPED, seconds_left=None))
    return find(job.folder)


def remove(job: Job) -> None:
    """Forget an ended job: its folder goes, its student stays."""
    if find(job.folder).active:
        raise UserError("stop this job before you remove it")
    shutil.rmtree(job.folder)


def find(folder: Path) -> Job:
    """The job of a folder.

    Raises:
        UserError: the folder is no job's, or its request is damaged.
    """
    try:
        request = json.loads((folder / REQUEST).read_text())
        arguments = tuple(str(argument) for argument in request["arguments"])
        student, created = Path(request["student"]), float(request["created"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no job, or its {REQUEST} is damaged ({type(error).__name__})") from None
    status = read_status(folder)
    return Job(folder, arguments, student, created, status, _state(status))


def find_all(root: Path) -> list[Job]:
    """The jobs below `root`, oldest first; folders that cannot be read are left out."""
    jobs = []
    for request in Path(root).glob(f"*/{REQUEST}"):
        with suppress(UserError):
            jobs.append(find(request.parent))
    return sorted(jobs, key=lambda job: (job.created, job.folder.name))


def log_tail(folder: Path, lines: int, max_bytes: int = 20_000) -> str:
    """The last lines of a job's log; of a progress bar, what it showed last."""
    try:
        with open(folder / LOG, "rb") as log:
            log.seek(max(0, (folder / LOG).stat().st_size - max_bytes))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    shown = (line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n"))
    return "\n".join([line for line in shown if line][-lines:])


def read_trace(folder: Path, most: int = 400) -> list[tuple[float, float]]:
    """The loss as training went: (epochs done, loss), at most about `most` of them, evenly chosen."""
    try:
        rows = [tuple(map(float, line.split(","))) for line in (folder / TRACE).read_text().splitlines()]
    except (OSError, ValueError):
        return []
    kept: list[tuple[float, float]] = []
    for position, loss in rows:
        while kept and kept[-1][0] >= position:  # a resumed run repeats what its last checkpoint did not hold
            kept.pop()
        kept.append((position, loss))
    return kept[:: max(1, len(kept) // most)]


def _state(status: Status) -> str:
    if status.state not in (QUEUED, RUNNING):
        return status.state
    silent = time.time() - status.heartbeat > SILENT_AFTER_SECONDS
    if not lives(status) and (silent or status.pid is not None):
        return KILLED
    return SILENT if silent else status.state


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until `condition` holds, and say whether it does."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(1 / LOOKS_PER_SECOND)
    return True
