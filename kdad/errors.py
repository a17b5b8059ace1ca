"""Exceptions for the two ways a command can fail; `kdad.cli` maps them to exit status 2 and 1."""

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Invalid or impossible request. The message is one line and explains what to do."""


class WorkFailed(RuntimeError):
    """Valid request whose execution failed: a NaN loss, exhausted memory."""


def one_line(error: Exception) -> str:
    """Message of another library's error on one line, truncated if long."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def one_of(kind: str, name: Any, valid: Iterable[str]) -> str:
    """Return `name` if it is among `valid`, else raise a `UserError` that lists them."""
    names = list(valid)
    if name not in names:
        raise UserError(f"unknown {kind} {name!r}; choose one of: {', '.join(map(str, names))}")
    return str(name)
