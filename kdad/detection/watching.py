"""Judging images as they arrive in folders, into a table that is appended to: each state of each file once.

A row says in which state its file was, as the rows of `kdad.detection.bulk` do, so that a later run goes on where this
one stopped. A row is one line: one that a crash cut off is taken away, and its image is judged again.
"""

import csv
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from kdad.data.images import files_below, of_unknown_ending, say, set_aside, split_by_ending, split_masks
from kdad.detection.bulk import ImageFile
from kdad.detection.detector import Detector
from kdad.detection.image_files import Batch, judge_files, save_heatmaps
from kdad.errors import UserError
from kdad.files import shown
from kdad.spreadsheets import as_csv, harmless

COLUMNS = (
    "image", "score", "p_value", "is_anomaly", "error", "heatmap", "size", "modified_ns", "judged", "fpr", "student",
)  # fmt: skip
HEADER_LENGTH = 1000  # characters, more than a header has
STEP = 0.2  # seconds between looks at whether to stop
DIGITS = 12  # of the hashes that a row has of its student

Row = dict[str, Any]
State = tuple[str, int | None, int | None]  # of an image: its name as a table has it, its size and time of change


def is_table(file: Path) -> bool:
    """Whether a file begins as a `ScoreTable` does."""
    if not file.exists():
        return False
    with open(file, encoding="utf-8", errors="replace") as lines:
        return re.findall(r"\w+", lines.readline(HEADER_LENGTH)) == list(COLUMNS)


class ScoreTable:
    """A table of scores that grows by whole rows, and the states of images that have a row.

    Args:
        file: where it is, or will be; tabs separate the columns of a `.tsv`.
        detector: what judges; all rows are of one student, with one calibration.
        fpr: the false-positive rate of the verdicts, the same in all rows.

    Raises:
        UserError: the file is another table, or has rows of another student or false-positive rate.
    """

    def __init__(self, file: Path, detector: Detector, fpr: float):
        config = detector.config
        self.file, self.separator = file, "\t" if file.suffix.lower() == ".tsv" else ","
        self.stamp = {
            "fpr": f"{fpr:g}",
            "student": f"{config.weights_sha256[:DIGITS]}-{config.calibration_sha256[:DIGITS]}",
        }
        self.known = self._states() if file.exists() else set()

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows at the end of the file, which is created with a header if missing."""
        import pandas

        if not rows:
            return
        complete = [dict.fromkeys(COLUMNS) | row | self.stamp for row in rows]
        header, lines = as_csv(pandas.DataFrame(complete, columns=list(COLUMNS)), self.separator).split("\n", 1)
        with open(self.file, "a", encoding="utf-8", newline="") as table:
            table.write(lines if table.tell() else f"{header}\n{lines}")
            table.flush()
            os.fsync(table.fileno())
        self.known |= {(harmless(row["image"]), row["size"], row["modified_ns"]) for row in rows}

    def lacks(self, image: ImageFile) -> bool:
        """Whether no row is of this state of an image."""
        return (harmless(shown(image.name)), image.size, image.modified_ns) not in self.known

    def _states(self) -> set[State]:
        """The states that have a row in the file, from which one that was cut off is removed."""
        content = self.file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        rows = list(csv.reader(whole.decode(errors="replace").splitlines(), delimiter=self.separator))
        header = self.separator.join(COLUMNS)
        ours = rows[0] == list(COLUMNS) if rows else header.encode().startswith(content)
        try:
            named = [dict(zip(COLUMNS, row, strict=True)) for row in rows[1:]]
            states: set[State] = {(row["image"], int(row["size"]), int(row["modified_ns"])) for row in named}
        except ValueError:
            ours = False
        if not ours:
            raise UserError(f"{shown(self.file)} was not written by --watch; choose another name for --csv")
        if any(row[name] != value for row in named for name, value in self.stamp.items()):
            raise UserError(f"{shown(self.file)} has rows of another student or --fpr; choose another name for --csv")
        if whole != content:
            with open(self.file, "r+b") as table:
                table.truncate(len(whole))
        return states


class Arrivals:
    """The images of folders, once their files no longer change.

    Args:
        folders: to look into, with all that is below them; hidden files, masks beside images and files of unknown
            endings are left out, the latter two with a word about them.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders
        self._before: dict[Path, ImageFile] = {}
        self._told: set[Path] = set()
        self._trouble = ""

    def settled(self) -> list[ImageFile]:
        """The images that are in the same state as at the last call, sorted by path; none at the first."""
        found: dict[Path, ImageFile] = {}
        for file in self._images():
            with suppress(OSError):  # gone, or not to be read any more
                about = file.stat()
                found[file] = ImageFile(str(file), about.st_size, about.st_mtime_ns)
        settled = [image for file, image in found.items() if self._before.get(file) == image]
        self._before = found
        return settled

    def _images(self) -> list[Path]:
        try:
            files = sorted({file for folder in self.folders for file in files_below(folder)})
            self._trouble = ""
        except UserError as error:  # a folder that is removed, or a disk that comes back
            if str(error) != self._trouble:
                say(str(error))
            self._trouble = str(error)
            return []
        found, others = split_by_ending(files)
        images, masks = split_masks(found)
        new = [[file for file in left_out if file not in self._told] for left_out in (others, masks)]
        say(*of_unknown_ending(new[0]), *set_aside(new[1], "scored"))
        self._told.update(*new)
        return images


class Watcher:
    """Judges what arrives in folders, and writes a row for each.

    Args:
        detector: what judges.
        folders: where images arrive.
        table: where rows go.
        fpr: the false-positive rate of the verdicts.
        heatmaps: a folder for heatmap PNGs, or None.
        method: how these are made, a name in `kdad.detection.localisation.METHODS`.
    """

    def __init__(
        self, detector: Detector, folders: Sequence[Path], table: ScoreTable, fpr: float, heatmaps: Path | None,
        method: str,
    ):  # fmt: skip
        self.detector, self.table, self.fpr = detector, table, fpr
        self.heatmaps, self.method = heatmaps, method
        self.arrivals = Arrivals(folders)

    def run(self, stopped: Callable[[], bool], interval: float) -> Iterator[Row]:
        """Look every `interval` seconds until `stopped`, and yield each row once it is in the table.

        An image is judged when two looks have found its file in the same state. What is being judged is finished first.
        """
        while not stopped():
            yield from self._judge([image for image in self.arrivals.settled() if self.table.lacks(image)], stopped)
            until = time.monotonic() + interval
            while not stopped() and time.monotonic() < until:
                time.sleep(min(STEP, max(0.0, until - time.monotonic())))

    def _judge(self, images: Sequence[ImageFile], stopped: Callable[[], bool]) -> Iterator[Row]:
        states = {Path(image.name): image for image in images}
        unreadable: list[Row] = []

        def refuse(file: Path, error: UserError) -> None:
            if file.exists():
                unreadable.append(_row(states[file]) | {"error": shown(error)})

        for batch in judge_files(self.detector, list(states), self.fpr, refuse):
            rows = [*unreadable, *self._rows(batch, states)]
            unreadable.clear()
            self.table.append(rows)
            yield from rows
            if stopped():
                return
        self.table.append(unreadable)
        yield from unreadable

    def _rows(self, batch: Batch, states: dict[Path, ImageFile]) -> list[Row]:
        rows = [_row(states[file]) | record for file, record in zip(batch.files, batch.records, strict=True)]
        if self.heatmaps is None:
            return rows
        maps = batch.heatmaps(self.detector, self.method)
        written = save_heatmaps(self.heatmaps, len(self.table.known), batch, *maps)
        return [row | {"heatmap": shown(file)} for row, file in zip(rows, written, strict=True)]


def _row(image: ImageFile) -> Row:
    """The columns that every row has."""
    judged = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"image": shown(image.name), "size": image.size, "modified_ns": image.modified_ns, "judged": judged}
