"""Progress of a run through its stages: one bar, the time left for all of it, and where time went. No torch here.

Whoever does the work of a stage counts it by `track` or `advance`; whoever starts the run says which stages it has, and
what a unit of each costs compared with the others. Without a run, nothing is counted.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

READING, FEATURES, TRAINING, CALIBRATING, DRAWING, TESTING = (
    "reading images", "teacher features", "training", "calibrating", "drawn defects", "testing",
)  # fmt: skip
SECONDS_BETWEEN_REPORTS = 1.0
RESOLUTION = 1000  # steps of the bar
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
Item = TypeVar("Item")
Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Args:
        name: what people read.
        units: how many there are, such as images or steps.
        cost: of one unit, compared with those of other stages.
    """

    name: str
    units: int
    cost: float


class Run:
    """The stages of one run, in order; those before the present one count as done.

    Args:
        stages: all that is planned.
        report: called about once a second with `phase` (the present stage), `done` (0…1 of the whole), `seconds_left`
            (of the whole) and `stages` (seconds by name).
    """

    def __init__(self, stages: Sequence[Stage], report: Report | None = None):
        self.stages = {stage.name: stage for stage in stages}
        self.report = report
        self.seconds: dict[str, float] = {}
        self.visible = True
        self._shown: dict[str, Any] = {}
        self._present, self._units = "", 0.0
        self._began = self._entered = self._reported = time.monotonic()
        self._skipped = 0.0  # of the whole, which an earlier run has done
        self._bar: tqdm[Any] | None = None  # nobody sees one of a run that is refused before it begins

    @property
    def done(self) -> float:
        """The share of the whole that is done, 0…1."""
        if not self._present:
            return 0.0
        before = sum(self._weight(name) for name in list(self.stages)[: self._index])
        stage = self.stages[self._present]
        return min(1.0, (before + min(self._units, stage.units) * stage.cost) / self._total)  # rounding may exceed it

    @property
    def seconds_left(self) -> float | None:
        """An estimate for the whole, in seconds; None before there is anything to judge by."""
        spent, done = time.monotonic() - self._began, self.done - self._skipped
        return spent * (1 - self.done) / done if done > 0 else None

    def advance(self, stage: str, units: float = 1, **shown: Any) -> None:
        """Count units of a stage, which is entered if it is not the present one.

        What belongs to no stage of the run, or to one that is over, is not counted.

        Args:
            shown: what else the bar says.
        """
        names = list(self.stages)
        if stage not in names or names.index(stage) < self._index:
            return
        if stage != self._present:
            self._enter(stage)
        self._units += units
        self._shown |= shown
        self._show()

    def skip(self, stage: str, units: float) -> None:
        """Count units of a stage that an earlier run has done, and which took none of this one's time."""
        before = self.done
        self.advance(stage, units)
        self._skipped += self.done - before

    def finish(self) -> None:
        """Count all that was planned as done."""
        if self._present:
            self._leave()
            self._present, self._units = list(self.stages)[-1], float(list(self.stages.values())[-1].units)
            self._show()

    def close(self) -> None:
        """Leave the bar as it is, and report for the last time."""
        self._leave()
        if self._bar is not None:
            self._bar.close()
        self._tell(None)

    @property
    def _index(self) -> int:
        """The place of the present stage among all; −1 before the first."""
        return list(self.stages).index(self._present) if self._present else -1

    @property
    def _total(self) -> float:
        return max(sum(map(self._weight, self.stages)), 1e-9)

    def _weight(self, name: str) -> float:
        return self.stages[name].units * self.stages[name].cost

    def _enter(self, stage: str) -> None:
        self._leave()
        self._present, self._units, self._shown = stage, 0.0, {}
        self._tell(self.seconds_left)

    def _leave(self) -> None:
        """Book the time since the last booking on the present stage."""
        now = time.monotonic()
        if self._present:
            if self._bar is not None:
                self._bar.refresh()  # or a short stage would never be seen
            self.seconds[self._present] = round(self.seconds.get(self._present, 0.0) + now - self._entered, 2)
        self._entered = now

    def _show(self) -> None:
        left = self.seconds_left
        if self.visible:
            self._draw(left)
        if time.monotonic() - self._reported >= SECONDS_BETWEEN_REPORTS:
            self._tell(left)

    def _draw(self, left: float | None) -> None:
        if self._bar is None:
            self._bar = tqdm(total=RESOLUTION, bar_format=FORMAT, dynamic_ncols=True, file=sys.stderr)
        words = {} if left is None else {"left": tqdm.format_interval(left)}
        self._bar.set_description_str(self._present, refresh=False)
        self._bar.set_postfix({**words, **self._shown}, refresh=False)
        self._bar.update(round(RESOLUTION * self.done) - self._bar.n)

    def _tell(self, left: float | None) -> None:
        self._reported = time.monotonic()
        if self.report:
            told = {"phase": self._present, "done": self.done, "seconds_left": left, "stages": dict(self.seconds)}
            self.report(told)


_current: ContextVar[Run | None] = ContextVar("run", default=None)


def current() -> Run | None:
    """The run that the work now being done belongs to."""
    return _current.get()


@contextmanager
def running(plan: Callable[[], Sequence[Stage]], report: Report | None = None) -> Iterator[Run]:
    """The present run, if there is one; else a new one of these stages, for the length of the block."""
    if present := current():
        yield present
        return
    run = Run(plan(), report)
    token = _current.set(run)
    try:
        yield run
        run.finish()
    finally:
        _current.reset(token)
        run.close()


def advance(stage: str, units: float = 1) -> None:
    """Count units of a stage of the present run."""
    if run := current():
        run.advance(stage, units)


def track(stage: str, items: Iterable[Item], units: Callable[[Item], int] = lambda item: 1) -> Iterator[Item]:
    """Yield items whose work belongs to a stage, and count each when the next is asked for."""
    for item in items:
        yield item
        advance(stage, units(item))
