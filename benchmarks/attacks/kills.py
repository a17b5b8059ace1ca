"""SIGKILL at any moment of a training: files on disk stay intact, and the run resumes to the same student."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet
import torch
from safetensors.torch import load_file

from benchmarks.attacks.tally import Tally
from kdad.cli import INTERRUPTED
from kdad.files import sha256_of
from kdad.jobs import manager, status
from kdad.storage.history import read_history
from kdad.storage.layout import CALIBRATION, CONFIG, EVALUATION, HISTORY, SCORES_TABLE, WEIGHTS
from kdad.storage.sealing import read_sealed
from kdad.training.loop import CHECKPOINT

ROOT = Path(__file__).resolve().parent.parent.parent
KDAD = (sys.executable, "-m", "kdad")
# A single thread, as several would block each other on a busy test machine.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ARGUMENTS = ("--dataset", "patterns", "--normal-class", "dots", "--teacher", "vgg-cifar10", "--device", "cpu")
SECONDS_OF_PYTHON = 2.0  # during start-up, Python itself handles Ctrl-C
RESULTS = (WEIGHTS, CALIBRATION, EVALUATION, SCORES_TABLE)
READERS: dict[str, Callable[[Path], object]] = {
    CONFIG: read_sealed,
    EVALUATION: read_sealed,
    WEIGHTS: load_file,
    CALIBRATION: load_file,
    SCORES_TABLE: pyarrow.parquet.read_table,
    HISTORY: lambda file: read_history(file.parent),
    CHECKPOINT: lambda file: torch.load(file, weights_only=True, map_location="cpu"),
}


def train(work: Path, kills: int, epochs: int = 3, seed: int = 0) -> Tally:
    """Kill and resume `train`."""
    return _command(work, kills, ("train", *ARGUMENTS, "--epochs", str(epochs)), seed)


def sweep(work: Path, kills: int, epochs: int = 1, seed: int = 0) -> Tally:
    """Kill and resume `sweep` over two seeds of a class."""
    return _command(work, kills, ("sweep", *ARGUMENTS, "--epochs", str(epochs), "--seeds", "2"), seed)


def interrupted(work: Path, kills: int, epochs: int = 3, seed: int = 0) -> Tally:
    """Interrupt `train` with Ctrl-C: it must report this in one line, and the same command must resume it."""
    return _command(work, kills, ("train", *ARGUMENTS, "--epochs", str(epochs)), seed, signal.SIGINT)


def background_job(work: Path, kills: int, epochs: int = 3, seed: int = 0) -> Tally:
    """Kill a job of the app: the app must show it as killed, and resume it."""
    arguments, root = ("train", *ARGUMENTS, "--epochs", str(epochs)), work / "jobs"
    os.environ.update(ENVIRONMENT)

    def act(wait: float, out: Path) -> None:
        student = out / "student"  # where the page would look; unused here
        job = manager.start(root, [*arguments, "--out", str(out)], student, KDAD)
        time.sleep(wait)
        if job.status.pid is not None and status.lives(job.status):
            os.kill(job.status.pid, signal.SIGKILL)
        _wait(lambda: not status.lives(job.status))
        check_whole(out)
        ended = manager.find(job.folder)
        if ended.state != "finished":
            assert ended.state == status.KILLED, ended.state
            manager.resume(ended, KDAD)
            _wait(lambda: not manager.find(job.folder).active)
            ended = manager.find(job.folder)
            assert ended.state == "finished", f"{ended.state}: {ended.status.message}"
        manager.remove(ended)

    return _at_random_moments(work, kills, arguments, seed, act)


def _command(
    work: Path, kills: int, arguments: Sequence[str], seed: int, sent: signal.Signals = signal.SIGKILL
) -> Tally:
    """End a command with a signal, and resume it."""

    def act(wait: float, out: Path) -> None:
        process = _started(arguments, out)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(sent)
            _, stderr = process.communicate()
            assert sent == signal.SIGKILL or _ended_well(process, stderr), stderr.decode(errors="replace")[-300:]
            check_whole(out)
            _finish(arguments, out)
        assert not _left(out), "a process is left"

    earliest = SECONDS_OF_PYTHON if sent == signal.SIGINT else 0.0
    return _at_random_moments(work, kills, arguments, seed, act, earliest)


def _at_random_moments(
    work: Path,
    kills: int,
    arguments: Sequence[str],
    seed: int,
    act: Callable[[float, Path], None],
    earliest: float = 0.0,
) -> Tally:
    """Let `act` end a run at random moments and resume it: its result must equal that of an uninterrupted run."""
    expected, seconds = _unbroken(work, arguments)
    rng, tally, out = np.random.default_rng(seed), Tally(), work / "out"
    for _ in range(kills):
        wait = float(rng.uniform(earliest, seconds))

        def ends_alike(wait: float = wait) -> bool:
            act(wait, out)
            return _complete(out) and _digests(out) == expected

        tally.attempt(f"killed after {wait:.1f} of {seconds:.1f} s", ends_alike)
        shutil.rmtree(out, ignore_errors=True)
    return tally


def _ended_well(process: subprocess.Popen, stderr: bytes) -> bool:
    """Whether a stopped process reported this in one line, or had already finished."""
    last = stderr.decode(errors="replace").strip().splitlines()[-1:]
    stopped = process.returncode == INTERRUPTED and last == [
        "kdad: interrupted; the same command continues where it stopped"
    ]
    return b"Traceback" not in stderr and (stopped or process.returncode == 0)


def _unbroken(work: Path, arguments: Sequence[str]) -> tuple[dict[str, str], float]:
    """Digests of an uninterrupted run's files, and its duration in seconds."""
    out, started = work / "unbroken", time.perf_counter()
    _finish(arguments, out)
    return _digests(out), time.perf_counter() - started


def _started(arguments: Sequence[str], out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*KDAD, *arguments, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT,
        env=os.environ | ENVIRONMENT,
    )  # fmt: skip


def _finish(arguments: Sequence[str], out: Path) -> None:
    """Run a command to its end; `train` refusing a finished student counts as success."""
    process = _started(arguments, out)
    _, stderr = process.communicate()
    if process.returncode and b"complete student" not in stderr:
        raise AssertionError(f"status {process.returncode}: {stderr.decode(errors='replace')[-300:]}")


def check_whole(out: Path) -> None:
    """Raise unless every file under its final name is intact."""
    for file in out.rglob("*") if out.is_dir() else []:
        if file.is_file() and file.name in READERS:
            READERS[file.name](file)


def _digests(out: Path) -> dict[str, str]:
    return {str(file.relative_to(out)): sha256_of([file]) for name in RESULTS for file in sorted(out.rglob(name))}


def _complete(out: Path) -> bool:
    """Whether only finished students are left."""
    names = {file.name for file in out.rglob("*") if file.is_file()}
    return CHECKPOINT not in names and not any(name.endswith(".part") for name in names)


def _left(out: Path) -> list[int]:
    """Processes that still work on `out`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(out) in (process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def _wait(condition: Callable[[], bool], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.1)
