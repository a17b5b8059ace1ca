"""Resumable scoring of very large collections into Parquet files, each image exactly once.

A part is a file with a row for each of up to `PART` images. It is whole or absent, so that a run that was interrupted
goes on with the images that have no row yet. Images may be anywhere that fsspec reaches (`s3://…`, `gs://…`).
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from kdad.data.decoding import read_image
from kdad.data.images import SUFFIXES, batches_of_one_size, find_images, is_hidden, readable
from kdad.detection.detector import Detector
from kdad.errors import UserError, one_line
from kdad.files import shown, write_atomically
from kdad.locks import exclusive_lock

PART = 1_000  # images
PREFIX, ENDING, STAMP = "part-", ".parquet", b"kdad"  # of names of files, and where a file says what it is of
URL = "://"


@dataclass(frozen=True)
class ScoringJob:
    """The settings of a scoring run.

    Args:
        student: the folder or Hub id of a student.
        teacher: as of `kdad score --teacher`.
        out: the folder of the parts.
        weights_sha256, calibration_sha256: of the student, whose scores must not be mixed with another's.
        fpr: the false-positive rate of the verdicts, or None.
        device: where to compute.
    """

    student: str
    teacher: str | None
    out: Path
    weights_sha256: str
    calibration_sha256: str
    fpr: float | None
    device: str

    @property
    def stamp(self) -> dict[str, Any]:
        """The settings that all rows of one folder share."""
        asked = asdict(self)
        return {name: asked[name] for name in ("weights_sha256", "calibration_sha256", "fpr")}


@dataclass(frozen=True)
class Part:
    """Images whose rows will be one file."""

    images: tuple[str, ...]

    @property
    def file_name(self) -> str:
        """A name that depends on the images alone, so that a part scored twice is written once."""
        return PREFIX + hashlib.sha256("\n".join(self.images).encode()).hexdigest()[:24] + ENDING


@dataclass(frozen=True)
class Outcome:
    """The outcome of a part: how many images were scored, and why the others could not be read."""

    judged: int
    unreadable: tuple[str, ...]


def find(places: Iterable[str]) -> list[str]:
    """List the images at paths and URLs, sorted, each once; a directory contributes all below it.

    Raises:
        UserError: a place is not there or cannot be reached, or no image was found.
    """
    found: set[str] = set()
    for place in places:
        found.update(_found_at(place) if URL in place else map(str, find_images([place])))
    return sorted(found)


def remaining(images: Sequence[str], job: ScoringJob, part: int = PART) -> list[Part]:
    """List the parts that `job.out` does not hold yet.

    Raises:
        UserError: it holds something else: rows of another student or false-positive rate, or a damaged file.
    """
    done: set[str] = set()
    for file in sorted(job.out.glob(f"{PREFIX}*{ENDING}")):
        done.update(_images_of(file, job.stamp))
    left = [image for image in images if image not in done]
    return [Part(tuple(left[first : first + part])) for first in range(0, len(left), part)]


def judge_part(detector: Detector, job: ScoringJob, part: Part) -> Outcome:
    """Score a part and write its rows.

    Columns: image, score, p_value, is_anomaly, and error, which is null unless the image could not be read.
    """
    rows: dict[str, dict[str, Any]] = {}

    def refuse(name: str, error: UserError) -> None:
        rows[name] = {"image": name, "error": str(error)}

    read = partial(_read, max_value=detector.config.max_value)
    for names, images in batches_of_one_size(readable(read, part.images, refuse)):
        rows |= {row["image"]: row for row in detector.predict(images, fpr=job.fpr).to_records(names)}
    _write(job.out / part.file_name, [rows[image] for image in part.images], job.stamp)
    unreadable = tuple(row["error"] for row in rows.values() if "error" in row)
    return Outcome(len(rows) - len(unreadable), unreadable)


def judge_here(job: ScoringJob, parts: Sequence[Part], detector: Detector) -> Iterator[Outcome]:
    """Score the parts one after another, in this process."""
    for part in parts:
        yield judge_part(detector, job, part)


def lock_folder(folder: Path) -> AbstractContextManager[None]:
    """Lock a folder of parts for the length of the block; it is created if missing.

    Raises:
        UserError: another run holds the lock.
    """
    return exclusive_lock(folder / ".lock", f"another run writes to {folder}; wait for it, or use another folder")


def _found_at(url: str) -> list[str]:
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(url)
        if system.isfile(root):
            return [url]
        names = system.find(root)
    except (ImportError, OSError, ValueError) as error:  # a package that is missing, credentials, an unknown protocol
        raise UserError(f"{url}: cannot be accessed ({one_line(error)})") from None
    below = [name for name in names if Path(name).suffix.lower() in SUFFIXES and not _is_litter(name, root)]
    if not below:
        raise UserError(f"{url}: no image found; the known suffixes are {', '.join(sorted(SUFFIXES))}")
    return [system.unstrip_protocol(name) for name in below]


def _is_litter(name: str, root: str) -> bool:
    return any(map(is_hidden, name.removeprefix(root).strip("/").split("/")))


def _read(place: str, max_value: int) -> Tensor:
    if URL not in place:
        return read_image(Path(place), max_value=max_value)
    import fsspec

    try:
        with fsspec.open(place) as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({one_line(error)})") from None
    return read_image(io.BytesIO(content), place, max_value)


def _write(file: Path, rows: list[dict[str, Any]], stamp: dict[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = {"score": pyarrow.float64(), "p_value": pyarrow.float64(), "is_anomaly": pyarrow.bool_()}
    columns = {"image": pyarrow.string(), **kinds, "error": pyarrow.string()}
    schema = pyarrow.schema(list(columns.items()), {STAMP: json.dumps(stamp).encode()})
    table = pyarrow.Table.from_pylist(rows, schema)
    write_atomically(file, lambda path: parquet.write_table(table, path))


def _images_of(file: Path, stamp: dict[str, Any]) -> list[str]:
    """The images that have rows in a part."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(file) as part:
            written = json.loads((part.schema_arrow.metadata or {}).get(STAMP, b"null"))
            images: list[str] = part.read(["image"]).column("image").to_pylist()
    except (ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{shown(file)} is damaged ({one_line(error)}); remove it, and its images are judged again"
        ) from None
    if written != stamp:
        raise UserError(f"{shown(file)} was not made with this student and --fpr; use another folder for --parquet")
    return images
