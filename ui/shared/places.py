"""Which folders of the machine that the app runs on a visitor may name; see SECURITY.md."""

import os
from functools import lru_cache
from pathlib import Path

import streamlit as st

from kdad.errors import UserError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
VARIABLE = "KDAD_FOLDERS"


def allowed() -> tuple[Path, ...]:
    """The folders in which visitors may name others: those of `$KDAD_FOLDERS`, which may be empty.

    Where that is not set, all are for a visitor at the machine itself, and none where others can reach the app.
    """
    listed = os.environ.get(VARIABLE)
    if listed is None:
        return (Path("/").resolve(),) if at_the_machine() else ()
    return _resolved(listed)


def at_the_machine() -> bool:
    """Whether only those who sit at the machine reach the app."""
    return st.get_option("server.address") in LOOPBACK


@lru_cache
def _resolved(listed: str) -> tuple[Path, ...]:
    return tuple(Path(folder).expanduser().resolve() for folder in listed.split(os.pathsep) if folder.strip())


def readable(text: str) -> Path:
    """The file or folder of a path that was typed, links followed; whether it is there is not looked at.

    Raises:
        UserError: a visitor may not name it. It is the same words whether it is there or not.
    """
    try:
        place = Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a home that nobody has, what is no path
        place = None
    if place is None or not any(place.is_relative_to(folder) for folder in allowed()):
        raise UserError(f"{text[:200]} is not in a folder that this app may read; whoever runs it sets ${VARIABLE}")
    return place
