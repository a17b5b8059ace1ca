"""Training in the background, for the app: processes that outlive it, and files that say how they fare.

A job is a folder below a jobs root. `request.json` says what was asked for and `log.txt` what the
process printed; in `status.json` the process itself reports, with a heartbeat. One job of a root
works at a time: the others are processes that wait for its file lock, so that no scheduler can be
lost. Needs neither torch nor Streamlit.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from kdad.errors import UserError
from kdad.files import write_json

REQUEST, STATUS, LOG, TRACE, LOCK = "request.json", "status.json", "log.txt", "trace.csv", "lock"
QUEUED, RUNNING, FINISHED, FAILED, STOPPED = "queued", "running", "finished", "failed", "stopped"
KILLED, SILENT = "killed", "silent"  # never written: what a look at the process and at its heartbeat shows
ACTIVE = (QUEUED, RUNNING, SILENT)
HEARTBEAT_SECONDS = 1.0
SILENT_AFTER_SECONDS = 30.0
LOOKS_PER_SECOND = 20
POLITE = 5  # how much a job leaves the processor to whoever looks at the app
COMMAND = (sys.executable, "-m", "kdad")


@dataclass(frozen=True)
class Status:
    """What a job's process last said of itself.

    `started` is when the process began by the kernel's clock: with `pid` it names one process, which
    `pid` alone does not, since numbers are used again. `position` counts epochs and parts of one.
    """

    state: str = QUEUED
    pid: int | None = None
    started: str = ""
    heartbeat: float = 0.0
    phase: str = ""
    epoch: int = 0
    epochs: int = 0
    position: float = 0.0
    loss: float | None = None
    auroc: float | None = None
    seconds_left: float | None = None
    message: str = ""


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
    _write_status(folder, Status(heartbeat=time.time()))
    with open(folder / LOG, "ab") as log:
        process = subprocess.Popen(
            [*command, *arguments, "--job", str(folder.resolve())], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, env=_environment(),
        )  # fmt: skip
    if not _wait(lambda: _status(folder).pid is not None or process.poll() is not None, SILENT_AFTER_SECONDS):
        return find(folder)
    if process.poll() is not None and _status(folder).pid is None:
        last = log_tail(folder, 1) or f"the process ended with status {process.returncode}"
        _write_status(folder, Status(FAILED, heartbeat=time.time(), message=last))
    return find(folder)


def _environment() -> dict[str, str]:
    """Ours, so that this very package is found, nothing is buffered, and a progress bar does not fill the log."""
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(filter(None, paths))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "5"}


def stop(job: Job, grace: float = 10.0) -> Job:
    """End a job's processes, gently and after `grace` seconds for certain; returns it once they are gone."""
    status = _status(job.folder)
    if not _lives(status):
        return find(job.folder)
    for sent, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, SILENT_AFTER_SECONDS)):
        with suppress(ProcessLookupError):
            os.killpg(status.pid, sent)
        if _wait(lambda: not _lives(status), seconds):
            break
    last = _status(job.folder)
    if last.state in (QUEUED, RUNNING):
        _write_status(job.folder, replace(last, state=STOPPED, seconds_left=None))
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
    status = _status(folder)
    return Job(folder, arguments, student, created, status, _state(status))


def find_all(root: Path) -> list[Job]:
    """The jobs below `root`, oldest first; folders that cannot be read are left out."""
    jobs = []
    for request in Path(root).glob(f"*/{REQUEST}"):
        with suppress(UserError):
            jobs.append(find(request.parent))
    return sorted(jobs, key=lambda job: (job.created, job.folder.name))


def log_tail(folder: Path, lines: int, most_bytes: int = 20_000) -> str:
    """The last lines of a job's log; of a progress bar, what it showed last."""
    try:
        with open(folder / LOG, "rb") as log:
            log.seek(max(0, (folder / LOG).stat().st_size - most_bytes))
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
    if not _lives(status) and (silent or status.pid is not None):
        return KILLED
    return SILENT if silent else status.state


def _lives(status: Status) -> bool:
    """Whether the process that wrote `status` is still there, and no other one under its number."""
    if status.pid is None:
        return False
    with suppress(ChildProcessError):  # it may be another server's child
        os.waitpid(status.pid, os.WNOHANG)
    return process_started(status.pid) == status.started


def process_started(pid: int) -> str | None:
    """When process `pid` began, as text to compare with; None if there is no such process, or it has ended."""
    try:
        # The name, in parentheses, may hold anything; state and start time are 1st and 20th after it.
        values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if values[0] in "ZX" else values[19]
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _started_by_ps(pid)
    except ProcessLookupError:
        return None


def _started_by_ps(pid: int) -> str | None:
    said = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.split()
    return " ".join(said[1:]) if said and not said[0].startswith("Z") else None


def _status(folder: Path) -> Status:
    """The last word of a job's process; a damaged file says nothing."""
    try:
        values = json.loads((folder / STATUS).read_text())
        return Status(**{field.name: values[field.name] for field in fields(Status) if field.name in values})
    except (OSError, ValueError, TypeError):
        return Status()


def _write_status(folder: Path, status: Status) -> None:
    write_json(folder / STATUS, asdict(status))


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until `condition` holds, and say whether it does."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(1 / LOOKS_PER_SECOND)
    return True


class Reporter:
    """Keeps status.json of this process: every change once a second, changes of state at once."""

    def __init__(self, folder: Path):
        pid = os.getpid()
        self.folder = folder
        self._status = Status(QUEUED, pid, process_started(pid) or "")
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._write()
        self._thread.start()

    def progress(self, values: Mapping) -> None:
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
            _write_status(self.folder, replace(self._status, heartbeat=time.time()))


@contextmanager
def reporting(folder: Path) -> Iterator[Reporter]:
    """This process is the job of `folder`: it waits for its turn, then runs the block, and reports how it ends."""
    reporter = Reporter(folder)
    try:
        with _interrupted_by_sigterm(), _turn(folder.parent):
            os.nice(POLITE)
            reporter.enter(RUNNING)
            yield reporter
    except KeyboardInterrupt:
        reporter.end(STOPPED)
        raise
    except BaseException as error:
        reporter.end(FAILED, " ".join(str(error).split()) or type(error).__name__)
        raise
    reporter.end(FINISHED)


@contextmanager
def _turn(root: Path) -> Iterator[None]:
    """Waits until no other job of `root` works; the kernel ends a turn with its process, however that ends."""
    with open(root / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM is Ctrl-C for the length of the block, also where Lightning does not look."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
