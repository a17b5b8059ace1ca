"""Writing files whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(file: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, then move the result to `file`, so that it is whole or absent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors would keep others from reading the file
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text."""
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write indented JSON."""
    write_text(file, json.dumps(values, indent=2) + "\n")
