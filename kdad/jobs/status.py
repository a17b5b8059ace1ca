"""File names of a job, and the status last reported by its process."""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import psutil

from kdad.files import read_json_or_empty, write_json

REQUEST, STATUS, LOG, TRACE, LOCK = "request.json", "status.json", "log.txt", "trace.csv", "lock"
QUEUED, RUNNING, FINISHED, FAILED, STOPPED = "queued", "running", "finished", "failed", "stopped"
KILLED, SILENT = "killed", "silent"  # never written: derived from the process and its heartbeat
SILENT_AFTER_SECONDS = 30.0
ACTIVE = (QUEUED, RUNNING, SILENT)


@dataclass(frozen=True)
class Status:
    """Last report of a job's process.

    `started` is the process's start in seconds after boot, which is independent of clock changes: together with `pid`,
    which the system reuses, it identifies the process. `phase` is the present stage of the run, `done` the share of the
    whole, 0…1, `seconds_left` an estimate for the whole, and `stages` the seconds of those that are over; see
    `kdad.progress`. `position` counts epochs, with fractions.
    """

    state: str = QUEUED
    pid: int | None = None
    started: float = 0.0
    heartbeat: float = 0.0
    phase: str = ""
    done: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    epoch: int = 0
    epochs: int = 0
    position: float = 0.0
    loss: float | None = None
    auroc: float | None = None
    seconds_left: float | None = None
    message: str = ""


def read_status(folder: Path) -> Status:
    """Last report of a job's process; the default `Status` if the file is damaged."""
    values = read_json_or_empty(folder / STATUS)
    return Status(**{known.name: values[known.name] for known in fields(Status) if known.name in values})


def write_status(folder: Path, status: Status) -> None:
    """Replace status.json."""
    write_json(folder / STATUS, asdict(status))


def lives(status: Status) -> bool:
    """Whether the process that wrote `status` is still running, and its pid was not reused."""
    if status.pid is None:
        return False
    with suppress(ChildProcessError):  # it may be another server's child
        os.waitpid(status.pid, os.WNOHANG)
    return process_started(status.pid) == status.started


def process_started(pid: int) -> float | None:
    """Start of process `pid` in seconds after boot; None if it does not exist or has ended."""
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return round(process.create_time() - psutil.boot_time(), 2)
    except psutil.NoSuchProcess:
        return None
