"""The two ways a command can end badly, and how they say so; `kdad.cli` turns them into exit status 2 and 1."""

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """The request cannot be met as asked. The message is one line and says what to do."""


class WorkFailed(RuntimeError):
    """The request was fine and the work itself failed: a NaN loss, memory exhausted."""


def one_line(error: Exception) -> str:
    """What another library's error says, on one line, and not all of it where it is long."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def one_of(kind: str, name: Any, valid: Iterable[str]) -> str:
    """Return `name` if it is among `valid`; otherwise raise a `UserError` that lists them."""
    names = list(valid)
    if name not in names:
        raise UserError(f"unknown {kind} {name!r}; choose one of: {', '.join(map(str, names))}")
    return str(name)
