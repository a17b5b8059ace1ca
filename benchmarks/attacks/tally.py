"""Results of many attempts to break something."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kdad.errors import UserError


@dataclass
class Tally:
    """Counts of attempts refused in one line and of harmless ones, and descriptions of all others."""

    refused: int = 0
    unharmed: int = 0
    broken: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def attempt(self, name: str, act: Callable[[], bool]) -> None:
        """Count one attempt: `act` returns whether the outcome is correct, or raises."""
        started = time.perf_counter()
        try:
            if act():
                self.unharmed += 1
            else:
                self.broken.append(f"{name}: accepted, but wrong")
        except UserError as error:
            if len(str(error).splitlines()) == 1:
                self.refused += 1
            else:
                self.broken.append(f"{name}: the message has several lines")
        except Exception as error:
            self.broken.append(f"{name}: {type(error).__name__}: {error}"[:300])
        self.seconds.append(time.perf_counter() - started)

    def row(self) -> dict[str, Any]:
        """Row of the results file."""
        return {
            "tried": len(self.seconds),
            "refused": self.refused,
            "unharmed": self.unharmed,
            "broken": self.broken,
            "slowest": round(max(self.seconds), 2),
        }
