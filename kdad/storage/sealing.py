"""Digests by which a student's files are told from damaged or exchanged ones. No torch here.

A JSON file carries the digest of its own content; files of other kinds have theirs in such a JSON file. They notice
what went wrong by itself or by mistake, not a forger, who would make new ones: whom a student comes from is the Hub's
to say.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

SEAL = "sha256"


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the digest of all the others as the last of them."""
    content = {name: value for name, value in values.items() if name != SEAL}
    return {**content, SEAL: _digest(content)}


def opened(values: dict[str, Any]) -> dict[str, Any]:
    """What was `sealed`, as it was before; values that never were, as files of early kdad, are returned as they are.

    Raises:
        ValueError: they are other values than those that were sealed.
    """
    content = {name: value for name, value in values.items() if name != SEAL}
    if SEAL in values and values[SEAL] != _digest(content):
        raise ValueError("its content is not what was written: its SHA-256 is another")
    return content


def read_sealed(file: Path) -> dict[str, Any]:
    """The content of a sealed JSON file.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read, or is damaged.
    """
    values = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    return opened(values)


def read_verified(file: Path, sha256: str) -> bytes:
    """The bytes of a file of that digest; of any, where `sha256` is empty because it was made before digests were.

    Raises:
        OSError: it cannot be read.
        ValueError: it is another file.
    """
    content = file.read_bytes()
    if sha256 not in ("", hashlib.sha256(content).hexdigest()):
        raise ValueError("its SHA-256 is not the one on record")
    return content


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
