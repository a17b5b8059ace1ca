"""`history.csv`: loss and AUROC of every epoch, readable without torch."""

import csv
import io
from pathlib import Path
from typing import Any

from kdad.files import write_text
from kdad.storage.layout import HISTORY

HISTORY_COLUMNS = ("epoch", "split", "loss", "auroc", "seconds")


def write_history(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write `history.csv`, one row per epoch and split."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / HISTORY, text.getvalue())


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Read `history.csv`, with numbers converted and missing values as ''; [] if there is no file."""
    file = Path(folder) / HISTORY
    if not file.is_file():
        return []
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    numbers = [column for column in HISTORY_COLUMNS if column != "split"]
    for row in rows:
        row.update({name: float(row[name]) if row[name] else "" for name in numbers})
        row["epoch"] = int(row["epoch"])
    return rows
