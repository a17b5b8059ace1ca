"""What came of many attempts to break something."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kdad.errors import UserError


@dataclass
class Tally:
    """How many attempts were refused in one line, how many did no harm, and in words which ended otherwise."""

    refused: int = 0
    unharmed: int = 0
    broken: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def attempt(self, name: str, act: Callable[[], bool]) -> None:
        """Count one attempt: `act` returns whether all is as it should be, or raises."""
        started = time.perf_counter()
        try:
            if act():
                self.unharmed += 1
            else:
                self.broken.append(f"{name}: taken for good, and wrong")
        except UserError as error:
            if len(str(error).splitlines()) == 1:
                self.refused += 1
            else:
                self.broken.append(f"{name}: a message of several lines")
        except Exception as error:
            self.broken.append(f"{name}: {type(error).__name__}: {error}"[:300])
        self.seconds.append(time.perf_counter() - started)

    def row(self) -> dict[str, Any]:
        """As the results file holds it."""
        return {
            "tried": len(self.seconds),
            "refused": self.refused,
            "unharmed": self.unharmed,
            "broken": self.broken,
            "slowest": round(max(self.seconds), 2),
        }
