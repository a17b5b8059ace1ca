"""Safe unpacking of zip files: images only, into one folder, limited in number and size."""

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from kdad.data.images import SUFFIXES, is_hidden, of_unknown_ending, split_by_ending
from kdad.errors import UserError, one_line

MAX_FILES = 20_000
MAX_BYTES = 2 * 2**30
BLOCK = 1 << 20


class Unpacked(NamedTuple):
    """The number of images unpacked, and a sentence, if any, on files that are no images by their endings."""

    images: int
    said: list[str]


def unpack_images(archive: BinaryIO | Path, folder: Path) -> Unpacked:
    """Unpack the images of a zip file below `folder`, all or none.

    Names keep their folders, except for a single top-level one. Hidden files and files other than images are left out.

    Raises:
        UserError: the file is not a zip file, is damaged or encrypted, or contains no image, more than `MAX_FILES` or
            `MAX_BYTES` of them, a path outside the folder or a name that the disk does not accept; or the folder
            exists, or the disk is full.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another name")
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _opened(archive) as opened:
            members, others = _images(opened)
            _write(opened, members, temporary)
        temporary.replace(folder)
    except OSError as error:  # from the disk, or from names that it does not accept
        raise UserError(f"the zip file cannot be unpacked to {folder.parent} ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Unpacked(len(members), of_unknown_ending(others))


def image_names(archive: BinaryIO, max_bytes: int) -> list[str]:
    """The names of the images in a zip file, sorted.

    Raises:
        UserError: as in `unpack_images`, or one of them is larger than `max_bytes`.
    """
    with _opened(archive) as opened:
        members, _ = _images(opened)
        sizes = {name: opened.getinfo(name).file_size for name in members}
    if large := [name for name, size in sizes.items() if size > max_bytes]:
        raise UserError(f"{large[0]}: larger than {max_bytes / 2**20:g} MB; reduce its size")
    return sorted(members)


def member(archive: BinaryIO, name: str) -> BinaryIO:
    """One file of a zip file, in memory.

    Raises:
        UserError: it is damaged or encrypted.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return BytesIO(opened.read(name))
    except Exception as error:  # zipfile and its decompressors raise many types on damaged data
        raise UserError(f"{name}: cannot be unpacked ({one_line(error)})") from None


@contextmanager
def _opened(archive: BinaryIO | Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip file; errors inside the block become one-line `UserError`s, but for those of the disk."""
    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened
    except (UserError, OSError):
        raise
    except Exception as error:  # zipfile and its decompressors raise many types on damaged data
        raise UserError(f"this is not a readable zip file ({one_line(error)})") from None


def _images(opened: zipfile.ZipFile) -> tuple[dict[str, PurePosixPath], list[PurePosixPath]]:
    """Images in an archive by name, with their destinations; and files of unknown endings."""
    names = [info.filename for info in opened.infolist() if not info.is_dir()]
    places = {name: PurePosixPath(name.replace("\\", "/")) for name in names}
    for name, place in places.items():
        if place.is_absolute() or ".." in place.parts or ":" in name:
            raise UserError(f"the zip file contains a path outside its folder: {name[:80]!r}")
    visible = {name: place for name, place in places.items() if not any(map(is_hidden, place.parts))}
    images, others = split_by_ending(visible.values())
    kept = set(images)
    shown = {name: place for name, place in visible.items() if place in kept}
    if not shown:
        raise UserError(f"the zip file contains no image; known suffixes are {', '.join(sorted(SUFFIXES))}")
    if len(shown) > MAX_FILES:
        raise UserError(f"the zip file contains {len(shown)} images; the limit is {MAX_FILES}")
    tops = {place.parts[0] for place in shown.values()}
    if len(tops) == 1 and all(len(place.parts) > 1 for place in shown.values()) and tops != {"train"}:
        return {name: PurePosixPath(*place.parts[1:]) for name, place in shown.items()}, others
    return shown, others


def _write(opened: zipfile.ZipFile, members: dict[str, PurePosixPath], folder: Path) -> None:
    """Unpack, counting the bytes written, as the sizes in the headers cannot be trusted."""
    left = MAX_BYTES
    for name, place in members.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(name) as source, open(target, "wb") as file:
            while block := source.read(BLOCK):
                left -= len(block)
                if left < 0:
                    raise UserError(f"the zip file unpacks to more than {MAX_BYTES / 2**30:g} GB")
                file.write(block)
