"""Folders of the server that visitors may name; see SECURITY.md."""

import os
from functools import lru_cache
from pathlib import Path

import streamlit as st

from kdad.errors import UserError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
VARIABLE = "KDAD_FOLDERS"


def allowed() -> tuple[Path, ...]:
    """Folders below which visitors may name paths: those of `$KDAD_FOLDERS`, which may be empty.

    If it is not set: all folders if the app is reachable from this machine only, otherwise none.
    """
    listed = os.environ.get(VARIABLE)
    if listed is None:
        return (Path("/").resolve(),) if at_the_machine() else ()
    return _resolved(listed)


def at_the_machine() -> bool:
    """Whether the app is reachable from this machine only."""
    return st.get_option("server.address") in LOOPBACK


@lru_cache
def _resolved(listed: str) -> tuple[Path, ...]:
    return tuple(Path(folder).expanduser().resolve() for folder in listed.split(os.pathsep) if folder.strip())


def readable(text: str) -> Path:
    """Resolve a typed path, following links, without checking that it exists.

    Raises:
        UserError: a visitor may not name it; the message does not reveal whether it exists.
    """
    try:
        place = Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # a symlink loop, an unknown user's home, an invalid path
        place = None
    if place is None or not any(place.is_relative_to(folder) for folder in allowed()):
        raise UserError(f"{text[:200]} is not in a folder that this app may read; its operator can set ${VARIABLE}")
    return place
