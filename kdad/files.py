"""Atomic file writes, forgiving reads, checks of where to write to, and digests of file contents."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from kdad.errors import UserError


def check_output(file: Path, endings: Collection[str]) -> None:
    """Check, before any work, that `file` may be written and that nothing else than an older output would be lost.

    Args:
        endings: of the names of such files, in lower case: `.csv`; an output that replaces an image or a network's
            weights is thereby refused.

    Raises:
        UserError: the name ends otherwise, there is something other than a file, or the folder is missing or read-only.
    """
    if file.is_dir():
        raise UserError(f"{shown(file)} is a folder; name a file in it to write to")
    if file.suffix.lower() not in endings:
        known = ", ".join(filter(None, endings))
        raise UserError(f"{shown(file)} is left alone: the name of this output must end with {known}")
    if file.exists() and not file.is_file():
        raise UserError(f"{shown(file)} is no regular file; name one to write to")
    if not file.parent.is_dir():
        raise UserError(f"{shown(file.parent)}: no such folder; create it first, or write {file.name} elsewhere")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"{shown(file.parent)} is read-only; write {shown(file.name)} elsewhere")


def check_output_folder(folder: Path) -> None:
    """Raise a `UserError` if a file is where a folder is to be written to, or if it is read-only."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{shown(there)} is a file; name a folder to write to")
    if not os.access(there, os.W_OK):
        raise UserError(f"{shown(there)} is read-only; name another folder to write to")


def write_atomically(file: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` and move the result to `file`, which is therefore complete or absent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # some writers remove read permission for other users
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(file: Path, content: bytes) -> str:
    """Write bytes; returns their SHA-256."""
    write_atomically(file, lambda path: path.write_bytes(content))
    return hashlib.sha256(content).hexdigest()


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text."""
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write indented JSON."""
    write_text(file, json.dumps(values, indent=2) + "\n")


def read_json_or_empty(file: Path) -> dict[str, Any]:
    """Read the object in a JSON file; {} if the file does not exist, is damaged, or holds something else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def read_json_if_there(file: Path) -> dict[str, Any]:
    """Read the object in a JSON file; {} if the file does not exist.

    Raises:
        ValueError: the file is damaged: what is added to it would replace what it held.
    """
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return values


def is_directory(path: str | Path) -> bool:
    """Whether the directory exists; False for invalid paths."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def shown(path: object) -> str:
    """Escape a path for printing and saving: non-UTF-8 bytes and control characters are written out."""
    text = str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def copies(files: Iterable[Path]) -> dict[Path, Path]:
    """Files of the same content as an earlier one, each with the first of that content.

    Only files of equal size are read.
    """
    by_size: dict[int, list[Path]] = {}
    for file in files:
        by_size.setdefault(file.stat().st_size, []).append(file)
    found: dict[Path, Path] = {}
    for same_size in by_size.values():
        first: dict[str, Path] = {}
        for file in same_size if len(same_size) > 1 else []:
            earlier = first.setdefault(sha256_of([file]), file)
            if earlier != file:
                found[file] = earlier
    return found


def sha256_of(files: Iterable[Path], names: Iterable[str] = ()) -> str:
    """SHA-256 of the files' contents, in order, and of `names`, if given; equals `sha256sum` for one unnamed file."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    for file in files:
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
