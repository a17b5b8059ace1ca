"""The job's side: a process that waits for its turn, and reports how it fares."""

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
    STOPPED,
    TRACE,
    Status,
    process_started,
    write_status,
)

HEARTBEAT_SECONDS = 1.0
NICE = 5  # a job has a quarter of a processor that others want, too
AUTOGROUP = Path("/proc/self/autogroup")


class Reporter:
    """Keeps status.json of this process: every change once a second, changes of state at once."""

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
        """Take note of fields of `Status`; a loss also goes into the trace."""
        self._status = replace(self._status, **values)
        if "loss" in values:
            with open(self.folder / TRACE, "a") as trace:
                trace.write(f"{self._status.position:.4f},{self._status.loss:.6g}\n")

    def enter(self, state: str, message: str = "") -> None:
        """Change the state, and say so at once."""
        self._status = replace(self._status, state=state, message=message)
        self._write()

    def end(self, state: str, message: str = "") -> None:
        """The last word."""
        self._ended.set()
        self._thread.join()
        self._status = replace(self._status, seconds_left=None)
        self.enter(state, message)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a disk that is full for a moment is no reason to fall silent
                self._write()

    def _write(self) -> None:
        with self._lock:
            write_status(self.folder, replace(self._status, heartbeat=time.time()))


@contextmanager
def reporting(folder: Path) -> Iterator[Reporter]:
    """This process is the job of `folder`: it waits for its turn, then runs the block, and reports how it ends."""
    reporter = Reporter(folder)
    try:
        with _interrupted_by_sigterm(), _turn(folder.parent):
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
    """Let whoever looks at the app have the processor first.

    Linux schedules whole sessions against each other ("autogroup", see sched(7)): inside a session of its own, as a job
    has, being nice concerns nobody else, so that the session must be nice too.
    """
    os.nice(NICE)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # another system, or a kernel without it
            AUTOGROUP.write_text(str(NICE))


@contextmanager
def _turn(root: Path) -> Iterator[None]:
    """Waits until no other job of `root` works; the kernel ends a turn with its process, however that ends."""
    with FileLock(root / LOCK):
        yield


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM is Ctrl-C for the length of the block, also where Lightning does not look."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
