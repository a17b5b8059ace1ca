"""The processors that other programs leave free, and how many threads to compute with. No torch until threads are set.

Threads that compute together wait for the last of them: one that shares its processor with another program holds up
all, and two threads beside one busy program can take several times as long as one.
"""

import os
import time

import psutil

FIXED_BY = "OMP_NUM_THREADS"  # whoever sets it has chosen
WAITING = ("idle", "iowait", "guest", "guest_nice")  # guest time is counted in user time, too


class Load:
    """A measurement, from its creation on, of the processors that other programs use."""

    def __init__(self) -> None:
        self._since = time.monotonic(), _busy_seconds(), time.process_time()

    def elsewhere(self) -> float:
        """The number of processors open to this process that were busy with others, on average since."""
        began, busy, own = self._since
        seconds = max(time.monotonic() - began, 1e-3)
        return max(0.0, (_busy_seconds() - busy - (time.process_time() - own)) / seconds)

    def free(self) -> int:
        """The number of processors left to this process, at least one."""
        return max(1, round(len(_allowed()) - self.elsewhere()))


def choose_threads(asked: int | None, load: Load) -> None:
    """Let torch compute with as many threads as asked for, or with no more than other programs leave processors for."""
    import torch

    if asked is not None:
        torch.set_num_threads(asked)
    elif FIXED_BY not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), load.free()))


def _busy_seconds() -> float:
    """Seconds that the processors of this process have been busy since the system started."""
    every = psutil.cpu_times(percpu=True)
    chosen = [every[index] for index in _allowed() if index < len(every)]
    return sum(sum(value for name, value in times._asdict().items() if name not in WAITING) for times in chosen)


def _allowed() -> list[int]:
    """The indices of the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
