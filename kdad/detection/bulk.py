"""Resumable scoring of very large collections into Parquet files, each image exactly once.

A part is a file with a row for each of up to `PART` images. It is whole or absent, so that a run that was interrupted
goes on with the images that have no row yet. A row says in which state its image was: what has changed since is judged
again, and what is gone loses its row. Images may be anywhere that fsspec reaches (`s3://…`, `gs://…`).
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import Enum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from torch import Tensor

from kdad.data.decoding import read_image
from kdad.data.images import SUFFIXES, batches_of_one_size, find_images, images_among, is_hidden, readable
from kdad.detection.detector import Detector
from kdad.errors import UserError, one_line
from kdad.files import shown, write_atomically
from kdad.locks import exclusive_lock

PART = 1_000  # images
PREFIX, ENDING, STAMP = "part-", ".parquet", b"kdad"  # of names of files, and where a file says what it is of
URL = "://"
CHANGED = ("mtime", "LastModified", "last_modified", "updated", "created")  # what fsspec's file systems call it
COLUMNS = ("image", "size", "modified_ns")  # of rows: an image and its state
NANOSECONDS = 10**9  # per second


class Unreachable(UserError):
    """An image could not be fetched, which says nothing of its content: it is tried again by the next run."""


class ImageFile(NamedTuple):
    """An image, and the state in which it was listed.

    Args:
        name: its path or URL.
        size: in bytes; None if unknown, or for a row that an earlier version wrote.
        modified_ns: the time of its last change in nanoseconds since 1970; None likewise.
    """

    name: str
    size: int | None
    modified_ns: int | None

    @property
    def as_written(self) -> "ImageFile":
        """The same by the name that its row has: parquet holds UTF-8 alone, and not every file name is."""
        text = self.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        return self._replace(name=text)


@dataclass(frozen=True)
class Listing:
    """Images, sorted by name and each once, and the places below which they were looked for."""

    images: tuple[ImageFile, ...]
    roots: tuple[str, ...]


class Row(Enum):
    """Fate of a row that an earlier run wrote."""

    KEPT = 0
    CHANGED = 1  # its image did
    UNDATED = 2  # by an earlier version, which kept no state
    GONE = 3  # its image is


@dataclass(frozen=True)
class Remainder:
    """The parts that are still to be judged, and how many rows of earlier runs were dropped, and why."""

    parts: tuple["Part", ...]
    dropped: Mapping[Row, int]

    def __str__(self) -> str:
        """One line on the rows that were dropped; empty if none were."""
        changed, undated, gone = (self.dropped.get(row, 0) for row in (Row.CHANGED, Row.UNDATED, Row.GONE))
        earlier = "from an earlier version, which kept no time of change,"
        said = {
            f"{_files(changed)} changed since and {_are(changed)} judged again": changed,
            f"{_files(undated)} {earlier} {_are(undated)} judged again": undated,
            f"{gone} {_are(gone)} gone": gone,
        }
        return ", ".join(words for words, count in said.items() if count)


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
        base: the folder that relative paths of images are in, whichever process reads them.
    """

    student: str
    teacher: str | None
    out: Path
    weights_sha256: str
    calibration_sha256: str
    fpr: float | None
    device: str
    base: Path = field(default_factory=Path.cwd)

    @property
    def stamp(self) -> dict[str, Any]:
        """The settings that all rows of one folder share."""
        asked = asdict(self)
        return {name: asked[name] for name in ("weights_sha256", "calibration_sha256", "fpr")}


@dataclass(frozen=True)
class Part:
    """Images whose rows will be one file."""

    images: tuple[ImageFile, ...]

    @property
    def file_name(self) -> str:
        """A name that depends on the images' names alone, so that a part scored twice is written once."""
        names = "\n".join(image.name for image in self.images)
        return PREFIX + hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:24] + ENDING


@dataclass(frozen=True)
class Outcome:
    """The outcome of a part: how many images were scored, and why the others could not be read."""

    judged: int
    unreadable: tuple[str, ...]


def find(places: Iterable[str]) -> Listing:
    """List the images at paths and URLs with their states; a directory contributes all below it.

    Raises:
        UserError: a place is not there or cannot be reached, or no image was found.
    """
    found: dict[str, ImageFile] = {}
    roots = []
    for place in places:
        root, images = _found_at(place) if URL in place else _found_here(Path(place))
        roots.append(root)
        found |= {image.name: image for image in images}
    return Listing(tuple(found[name] for name in sorted(found)), tuple(roots))


def remaining(listing: Listing, job: ScoringJob, part: int = PART) -> Remainder:
    """Divide the images without a valid row in `job.out` into parts, and drop rows that are no longer valid.

    A row is dropped if its image has changed since, or was below one of the listing's roots and is gone.

    Raises:
        UserError: the folder holds something else: rows of another student or false-positive rate, or a damaged file.
    """
    listed = {image.as_written.name: image.as_written for image in listing.images}
    done: set[str] = set()
    dropped: Counter[Row] = Counter()
    for file in sorted(job.out.glob(f"{PREFIX}*{ENDING}")):
        written = _images_of(file, job.stamp)
        rows = [_row(image, listed, listing.roots) for image in written]
        done.update(image.name for image, row in zip(written, rows, strict=True) if row is Row.KEPT)
        if invalid := [row for row in rows if row is not Row.KEPT]:
            dropped.update(invalid)
            _keep(file, [row is Row.KEPT for row in rows])
    left = [image for image in listing.images if image.as_written.name not in done]
    parts = (Part(tuple(left[first : first + part])) for first in range(0, len(left), part))
    return Remainder(tuple(parts), dropped)


def judge_part(detector: Detector, job: ScoringJob, part: Part) -> Outcome:
    """Score a part and write its rows.

    Columns: image, score, p_value, is_anomaly, error, which is null unless the image is damaged, and the state in which
    the image was listed: size in bytes, and modified_ns, the time of its last change in ns since 1970. The next run
    therefore sees a change between listing and reading. What cannot be fetched has no row.
    """
    rows: dict[str, dict[str, Any]] = {}
    missing: list[str] = []

    def refuse(name: str, error: UserError) -> None:
        if isinstance(error, Unreachable):
            missing.append(str(error))
        else:
            rows[name] = {"image": name, "error": str(error)}

    read = partial(_read, base=job.base, max_value=detector.config.max_value)
    names = [image.name for image in part.images]
    for batch, images in batches_of_one_size(readable(read, names, refuse)):
        rows |= {row["image"]: row for row in detector.predict(images, fpr=job.fpr).to_records(batch)}
    if written := [rows[image.name] | _identity(image.as_written) for image in part.images if image.name in rows]:
        _write(job.out / part.file_name, written, job.stamp)
    damaged = [row["error"] for row in rows.values() if "error" in row]
    return Outcome(len(rows) - len(damaged), (*damaged, *missing))


def judge_here(job: ScoringJob, parts: Iterable[Part], detector: Detector) -> Iterator[Outcome]:
    """Score the parts one after another, in this process."""
    for part in parts:
        yield judge_part(detector, job, part)


def lock_folder(folder: Path) -> AbstractContextManager[None]:
    """Lock a folder of parts for the length of the block; it is created if missing.

    Raises:
        UserError: another run holds the lock.
    """
    return exclusive_lock(folder / ".lock", f"another run writes to {folder}; wait for it, or use another folder")


def _found_here(place: Path) -> tuple[str, list[ImageFile]]:
    """The folder that was looked into, and the images at a path."""
    images = []
    for file in find_images([place]):
        with suppress(FileNotFoundError):  # removed since it was found
            about = file.stat()
            images.append(ImageFile(str(file), about.st_size, about.st_mtime_ns))
    return str(place if place.is_dir() else place.parent), images


def _found_at(url: str) -> tuple[str, list[ImageFile]]:
    """The place that was looked into, and the images at a URL, of which there may be millions: one listing has all."""
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(url)
        if system.isfile(root):
            return url, [_image_at(url, system.info(root))]
        found = system.find(root, detail=True)
    except Exception as error:  # a package that is missing, credentials, an unknown protocol, a store's own kinds
        raise UserError(f"{url}: cannot be accessed ({one_line(error)})") from None
    names = {PurePosixPath(name): name for name in sorted(found) if not _is_litter(name, root)}
    below = [names[place] for place in images_among(names)]
    if not below:
        raise UserError(f"{url}: no image found; the known suffixes are {', '.join(sorted(SUFFIXES))}")
    images = [_image_at(system.unstrip_protocol(name), found[name]) for name in below]
    return system.unstrip_protocol(root), images


def _image_at(url: str, about: Mapping[str, Any]) -> ImageFile:
    """An image and its state from what fsspec says about it, which is not the same of all file systems."""
    changed = next((about[key] for key in CHANGED if about.get(key) is not None), None)
    with suppress(ValueError):  # not of ISO 8601: what cannot be compared is left to the size
        changed = datetime.fromisoformat(changed) if isinstance(changed, str) else changed
    seconds = changed.timestamp() if isinstance(changed, datetime) else changed
    modified_ns = round(seconds * NANOSECONDS) if isinstance(seconds, int | float) else None
    return ImageFile(url, about.get("size"), modified_ns)


def _row(written: ImageFile, listed: Mapping[str, ImageFile], roots: Iterable[str]) -> Row:
    """Decide the fate of the row of an image."""
    now = listed.get(written.name)
    if now is None:
        return Row.GONE if _is_gone(written.name, roots) else Row.KEPT
    if now == written:
        return Row.KEPT
    return Row.UNDATED if written.size is None else Row.CHANGED


def _is_gone(name: str, roots: Iterable[str]) -> bool:
    """Whether an image that is not listed is no more; places that were not looked into may just be offline."""
    below = any(Path(name).is_relative_to(root) for root in roots)
    return below and (URL in name or not Path(name).exists())


def _identity(image: ImageFile) -> dict[str, Any]:
    """The columns by which the next run knows an image."""
    return {"image": image.name, "size": image.size, "modified_ns": image.modified_ns}


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _is_litter(name: str, root: str) -> bool:
    return any(map(is_hidden, name.removeprefix(root).strip("/").split("/")))


def _read(place: str, base: Path, max_value: int) -> Tensor:
    try:
        content = _fetched(place) if URL in place else (base / place).read_bytes()
    except Exception as error:  # each kind of store has exceptions of its own
        raise Unreachable(f"{shown(place)}: cannot be read ({one_line(error)})") from None
    return read_image(io.BytesIO(content), shown(place), max_value)


def _fetched(url: str) -> bytes:
    import fsspec

    with fsspec.open(url) as file:
        content: bytes = file.read()
    return content


def _write(file: Path, rows: list[dict[str, Any]], stamp: dict[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = {"score": pyarrow.float64(), "p_value": pyarrow.float64(), "is_anomaly": pyarrow.bool_()}
    state = {"size": pyarrow.int64(), "modified_ns": pyarrow.int64()}
    columns = {"image": pyarrow.string(), **kinds, "error": pyarrow.string(), **state}
    schema = pyarrow.schema(list(columns.items()), {STAMP: json.dumps(stamp).encode()})
    table = pyarrow.Table.from_pylist(rows, schema)
    write_atomically(file, lambda path: parquet.write_table(table, path))


def _keep(file: Path, kept: list[bool]) -> None:
    """Keep only these rows of a part, and no file without rows."""
    from pyarrow import parquet

    if not any(kept):
        file.unlink()
        return
    table = parquet.ParquetFile(file).read().filter(kept)
    write_atomically(file, lambda path: parquet.write_table(table, path))


def _images_of(file: Path, stamp: dict[str, Any]) -> list[ImageFile]:
    """The images that have rows in a part, in the states that the rows are of."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(file) as part:
            written = json.loads((part.schema_arrow.metadata or {}).get(STAMP, b"null"))
            names = part.schema_arrow.names
            rows = part.read([name for name in COLUMNS if name in names]).to_pylist()
            images = [ImageFile(row["image"], row.get("size"), row.get("modified_ns")) for row in rows]
    except (ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{shown(file)} is damaged ({one_line(error)}); remove it, and its images are judged again"
        ) from None
    if written != stamp:
        raise UserError(f"{shown(file)} was not made with this student and --fpr; use another folder for --parquet")
    return images
