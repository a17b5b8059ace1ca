"""Timing comparisons: a baseline and its subject run alternately, in one process, for several rounds."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.published import Work
from kdad.devices import hardware


@dataclass(frozen=True)
class Row:
    """`baseline` and `ours` describe what is compared; `prepare` yields both for a device, and cleans up afterwards."""

    baseline: str
    ours: str
    prepare: Callable[[str], "Prepared"]
    rounds: int = 5


Seconds = Callable[[], float]  # does a unit of work and returns its duration
Prepared = Iterator[tuple[Seconds, Seconds]]


def timed(work: Work) -> Seconds:
    """Wrap `work` to return its duration."""

    def run() -> float:
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return run


def wanted(on_cpu: float, on_gpu: float) -> Callable[[str], Seconds]:
    """Baseline that returns a target time in seconds without doing anything."""
    return lambda device: lambda: on_cpu if device == "cpu" else on_gpu


def measure(row: Row, device: str = "cpu", rounds: int | None = None) -> dict:
    """Run baseline and subject alternately for some rounds, after a warm-up round unless there is only one."""
    prepared = row.prepare(device)
    baseline, subject = next(prepared)
    rounds = rounds or row.rounds
    pairs = [(baseline(), subject()) for _ in range(rounds + (rounds > 1))][-rounds:]
    next(prepared, None)  # clean up
    ratios = [one / other for one, other in pairs]
    return {
        "baseline": row.baseline,
        "ours": row.ours,
        "baseline_seconds": round(statistics.median(one for one, _ in pairs), 5),
        "seconds": round(statistics.median(other for _, other in pairs), 5),
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "rounds": len(pairs),
        "hardware": hardware(device),
    }
