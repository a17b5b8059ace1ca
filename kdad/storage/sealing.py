"""Digests that detect damaged or swapped files of a student. Imports no torch.

A JSON file contains the digest of its own content, and the digests of files of other types. They protect against
accidental changes, not against a forger, who could compute new ones: the origin of a student is for the Hub to vouch
for.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

SEAL = "sha256"


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with their digest added as the last entry."""
    content = {name: value for name, value in values.items() if name != SEAL}
    return {**content, SEAL: _digest(content)}


def opened(values: dict[str, Any]) -> dict[str, Any]:
    """Verify and remove the digest of `sealed` values; unsealed values, from early kdad, are returned unchanged.

    Raises:
        ValueError: the values do not match their digest.
    """
    content = {name: value for name, value in values.items() if name != SEAL}
    if SEAL in values and values[SEAL] != _digest(content):
        raise ValueError("its content is not what was written: its SHA-256 is another")
    return content


def read_sealed(file: Path) -> dict[str, Any]:
    """Read and verify a sealed JSON file.

    Raises:
        OSError, ValueError, RecursionError: the file cannot be read, or is damaged.
    """
    values = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    return opened(values)


def read_if_sound(file: Path) -> dict[str, Any] | None:
    """Read and verify a sealed JSON file; None if it does not exist or is damaged."""
    try:
        return read_sealed(file)
    except (OSError, ValueError, RecursionError):
        return None


def read_verified(file: Path, sha256: str) -> bytes:
    """Read a file and verify its digest, unless `sha256` is empty, as for files from before digests were recorded.

    Raises:
        OSError: the file cannot be read.
        ValueError: its digest differs.
    """
    content = file.read_bytes()
    if sha256 not in ("", hashlib.sha256(content).hexdigest()):
        raise ValueError("its SHA-256 is not the one on record")
    return content


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
