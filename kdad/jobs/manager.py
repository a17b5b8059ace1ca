"""Job management in the app: start, watch, stop and resume."""

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
    SILENT_AFTER_SECONDS,
    STOPPED,
    TRACE,
    Status,
    lives,
    read_status,
    write_status,
)

LOOKS_PER_SECOND = 20
COMMAND = (sys.executable, "-m", "kdad")


@dataclass(frozen=True)
class Job:
    """Snapshot of a job; `state` is one of queued, running, finished, failed, stopped, killed, silent.

    `group` is what jobs that were started together have in common; '' for a job alone.
    """

    folder: Path
    arguments: tuple[str, ...]
    student: Path
    created: float
    status: Status
    state: str
    group: str = ""

    @property
    def active(self) -> bool:
        """Whether its process is alive."""
        return self.state in ACTIVE


def start(
    root: Path, arguments: Sequence[str], student: Path, command: Sequence[str] = COMMAND, group: str = ""
) -> Job:
    """Start `kdad <arguments> --job FOLDER` in a separate process; returns once it reports or has failed.

    Args:
        root: folder of the job folders; jobs below the same root take turns.
        student: the student folder that the job creates.
        command: command to start; this Python's `kdad` by default.
        group: see `Job`.

    Raises:
        OSError: the folder cannot be written to, or no process can be started; no job is left.
    """
    created = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(created))
    folder = Path(root) / f"{stamp}-{secrets.token_hex(3)}"
    folder.mkdir(parents=True)
    request = {
        "arguments": list(arguments),
        "student": str(Path(student).resolve()),
        "created": created,
        "group": group,
    }
    try:
        write_json(folder / REQUEST, request)
        return _launch(folder, arguments, command)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def resume(job: Job, command: Sequence[str] = COMMAND) -> Job:
    """Restart an ended job's command, which continues from its last finished epoch."""
    if find(job.folder).active:
        raise UserError("this job has not ended yet; stop it first")
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
    """Environment in which the job finds this package, does not buffer, and rarely redraws its progress bar."""
    paths = [str(Path(kdad.__file__).parent.parent), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(filter(None, paths))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "5"}


def stop(job: Job, grace: float = 10.0) -> Job:
    """Terminate a job's processes, and kill them after `grace` seconds; returns the job once they have ended."""
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
    """Delete an ended job's folder; its student is kept."""
    if find(job.folder).active:
        raise UserError("stop this job before you remove it")
    shutil.rmtree(job.folder)


def find(folder: Path) -> Job:
    """Read the job of a folder.

    Raises:
        UserError: the folder is not a job's, or its request is damaged.
    """
    try:
        request = json.loads((folder / REQUEST).read_text())
        arguments = tuple(str(argument) for argument in request["arguments"])
        student, created = Path(request["student"]), float(request["created"])
        group = str(request.get("group", ""))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no job, or its {REQUEST} is damaged ({type(error).__name__})") from None
    status = read_status(folder)
    return Job(folder, arguments, student, created, status, _state(status), group)


def find_all(root: Path) -> list[Job]:
    """Jobs below `root`, oldest first; unreadable folders are left out."""
    jobs = []
    for request in Path(root).glob(f"*/{REQUEST}"):
        with suppress(UserError):
            jobs.append(find(request.parent))
    return sorted(jobs, key=lambda job: (job.created, job.folder.name))


def log_tail(folder: Path, lines: int, max_bytes: int = 20_000) -> str:
    """Last lines of a job's log, with the latest state of progress bars."""
    try:
        with open(folder / LOG, "rb") as log:
            log.seek(max(0, (folder / LOG).stat().st_size - max_bytes))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    shown = (line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n"))
    return "\n".join([line for line in shown if line][-lines:])


def read_trace(folder: Path, most: int = 400) -> list[tuple[float, float]]:
    """Training loss so far: (epochs done, loss), about `most` evenly spaced points at most."""
    try:
        rows = [tuple(map(float, line.split(","))) for line in (folder / TRACE).read_text().splitlines()]
    except (OSError, ValueError):
        return []
    kept: list[tuple[float, float]] = []
    for position, loss in rows:
        while kept and kept[-1][0] >= position:  # a resumed run repeats the steps after its last checkpoint
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
    """Wait until `condition` holds, for at most `seconds`; returns whether it does."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(1 / LOOKS_PER_SECOND)
    return True
