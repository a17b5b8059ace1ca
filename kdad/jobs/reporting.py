"""Status reports of a job: its process waits for its turn and reports its progress."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdad.jobs.status import (
    FAILED,
    FINISHED,
    LOCK,
    QUEUED,
    RUNNING,
    SILENT_AFTER_SECONDS,
    STATUS,
    STOPPED,
    TRACE,
    Status,
    lives,
    process_started,
    read_status,
    write_status,
)

HEARTBEAT_SECONDS = 1.0
SECONDS_BETWEEN_LOOKS = 0.1  # at the queue
NICE = 5  # leaves a job about a quarter of a contended core
AUTOGROUP = Path("/proc/self/autogroup")


class Reporter:
    """Writer of this process's status.json: progress once a second, changes of state at once."""

    def __init__(self, folder: Path):
        pid = os.getpid()
        self.folder = folder
        self._status = Status(QUEUED, pid, process_started(pid) or 0.0)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._write()
        self._thread.start()

    def progress(self, values: Mapping[str, Any]) -> None:
        """Update fields of `Status`; a loss is also appended to the trace."""
        self._status = replace(self._status, **values)
        if "loss" in values:
            with open(self.folder / TRACE, "a") as trace:
                trace.write(f"{self._status.position:.4f},{self._status.loss:.6g}\n")

    def enter(self, state: str, message: str = "") -> None:
        """Change the state and report it at once."""
        self._status = replace(self._status, state=state, message=message)
        self._write()

    def end(self, state: str, message: str = "") -> None:
        """Report the final state."""
        self._ended.set()
        self._thread.join()
        self._status = replace(self._status, seconds_left=None)
        self.enter(state, message)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # keep reporting after a temporarily full disk
                self._write()

    def _write(self) -> None:
        with self._lock:
            write_status(self.folder, replace(self._status, heartbeat=time.time()))


@contextmanager
def reporting(folder: Path) -> Iterator[Reporter]:
    """Run the block as the job of `folder`: wait for its turn, run it, and report the outcome."""
    reporter = Reporter(folder)
    try:
        with _interrupted_by_sigterm(), _turn(folder):
            give_way()
            reporter.enter(RUNNING)
            yield reporter
    except KeyboardInterrupt:
        reporter.end(STOPPED)
        raise
    except BaseException as error:
        reporter.end(FAILED, " ".join(str(error).split()) or type(error).__name__)
        raise
    reporter.end(FINISHED)


def give_way() -> None:
    """Give the app priority over this job on the CPU.

    Linux schedules whole sessions against each other ("autogroup", see sched(7)): in a job's own session, a nice value
    has no effect on other sessions, so the session's value is raised too.
    """
    os.nice(NICE)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # not Linux, or a kernel without autogroup
            AUTOGROUP.write_text(str(NICE))


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no job beside `folder` runs or has waited longer; the kernel frees the lock when the process ends."""
    while _waits_longer(folder):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    with FileLock(folder.parent / LOCK):
        yield


def _waits_longer(folder: Path) -> bool:
    """Whether another job is in the queue before that of `folder`, and responds."""
    waiting = {}
    for file in folder.parent.glob(f"*/{STATUS}"):
        status = read_status(file.parent)
        responds = time.time() - status.heartbeat < SILENT_AFTER_SECONDS
        if status.state == QUEUED and (file.parent == folder or (responds and lives(status))):
            waiting[file.parent] = (status.started, file.parent.name)
    return min(waiting, key=lambda place: waiting[place], default=folder) != folder


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C within the block, also outside of Lightning."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
