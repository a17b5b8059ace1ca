"""Image files: search, read-ahead, and batches of equal size."""

import hashlib
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from kdad.errors import UserError
from kdad.files import shown

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".heic", ".heif", ".hif", ".avif", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".pgm", ".ppm", ".pnm", ".jp2", ".j2k",
}  # fmt: skip
# Endings of what lies beside images and is none, so that nobody misses it.
COMPANIONS = {
    ".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".log", ".db", ".ini", ".py",
    ".sh", ".parquet", ".sha256", ".md5",
}  # fmt: skip
HIDDEN = (".", "__")  # prefixes of system files: .ipynb_checkpoints, ._0001.png, __MACOSX
BATCH_IMAGES, BATCH_PIXELS = 64, 2**20
DECODERS = min(4, os.cpu_count() or 1)  # threads; each holds one image, which may be large
Value = TypeVar("Value")
Place = TypeVar("Place")
File = TypeVar("File", bound=PurePath)
MASK_NAME = re.compile(r"(.+?)[ ._-]?(?:mask|gt|ground_?truth|label|seg|segmentation)s?(?:[ ._-]?\d+)?")


def in_advance(read: Callable[[Place], Value], files: Iterable[Place]) -> Iterator[Value | UserError]:
    """Yield `read(file)` for each file in order, or the error if it cannot be read.

    Files are read ahead on separate threads while the caller processes earlier ones.
    """

    def value_or_error(file: Place) -> Value | UserError:
        try:
            return read(file)
        except UserError as error:
            return error

    ahead: deque[Future[Value | UserError]] = deque()
    with ThreadPoolExecutor(DECODERS) as pool:
        try:
            for file in files:
                ahead.append(pool.submit(value_or_error, file))
                if len(ahead) > DECODERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def readable(
    read: Callable[[Place], Value], files: Sequence[Place], refuse: Callable[[Place, UserError], None]
) -> Iterator[tuple[Place, Value]]:
    """Yield each readable file with its content, in order; `refuse` is called with each other file and its error."""
    for file, value in zip(files, in_advance(read, files), strict=True):
        if isinstance(value, UserError):
            refuse(file, value)
        else:
            yield file, value


def find_images(paths: Iterable[Path | str]) -> list[Path]:
    """List the files among `paths`, with directories replaced by the images below them.

    Masks beside an image of a directory are left out; they, and files of unknown endings, are reported on standard
    error.

    Raises:
        UserError: a path does not exist or cannot be accessed, or nothing was found.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += images_among(files_below(path))
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{shown(path)}: no such file or directory")
    if not found:
        raise UserError(f"no image found; known suffixes are {', '.join(sorted(SUFFIXES))}")
    return found


def images_among(files: Iterable[File]) -> list[File]:
    """The images to score among the files of a folder; what is left out is reported on standard error."""
    found, others = split_by_ending(files)
    images, masks = split_masks(found)
    say(*of_unknown_ending(others), *set_aside(masks, "scored"))
    return images


def images_below(folder: Path) -> list[Path]:
    """All image files below a folder, as `files_below` lists them.

    Raises:
        UserError: a folder cannot be accessed.
    """
    return split_by_ending(files_below(folder))[0]


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; follows links to folders and skips hidden files.

    Raises:
        UserError: a folder cannot be accessed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{shown(error.filename)}: cannot be accessed ({error.strerror})")

    found, seen = [], set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = [
            name for name in folders if not is_hidden(name) and os.path.realpath(Path(place) / name) not in seen
        ]
        files = (Path(place) / name for name in names if not is_hidden(name))
        found += [file for file in files if file.is_file()]
    return sorted(found)


def split_by_ending(files: Iterable[File]) -> tuple[list[File], list[File]]:
    """Image files, and files of which nobody knows: neither images nor `COMPANIONS` of images, by their endings."""
    files = list(files)
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    return images, [file for file in files if file.suffix.lower() not in SUFFIXES | COMPANIONS]


def masks_beside(files: Iterable[File]) -> dict[File, File]:
    """Masks among images, each with the image beside which it lies: `000_mask`, `000-gt` or `000_label_2` of `000`.

    Endings and upper and lower case make no difference.
    """
    files = list(files)
    images = {(file.parent, file.stem.lower()): file for file in reversed(files)}
    named = {file: MASK_NAME.fullmatch(file.stem.lower()) for file in files}
    places = {file: (file.parent, match[1]) for file, match in named.items() if match}
    return {file: images[place] for file, place in places.items() if place in images}


def split_masks(files: Iterable[File]) -> tuple[list[File], list[File]]:
    """Images, and the masks that lie beside one of them; see `masks_beside`."""
    files = list(files)
    masks = masks_beside(files)
    return [file for file in files if file not in masks], list(masks)


def of_unknown_ending(files: Sequence[PurePath]) -> list[str]:
    """A sentence on files that were not read; none where there are none."""
    if not files:
        return []
    ones = "file of another ending" if len(files) == 1 else "files of other endings"
    return [f"{len(files)} {ones} than images have, such as {shown(files[0])}, {_was(files)} not read"]


def set_aside(masks: Sequence[PurePath], used: str) -> list[str]:
    """A sentence on masks beside images, which are not `used`; none where there are none."""
    if not masks:
        return []
    return [f"{counted(masks, 'mask')} beside images, such as {shown(masks[0])}, {_was(masks)} not {used}"]


def counted(files: Sequence[object], what: str) -> str:
    """`1 mask`, `2 masks`."""
    return f"{len(files)} {what}{'' if len(files) == 1 else 's'}"


def _was(files: Sequence[PurePath]) -> str:
    return "was" if len(files) == 1 else "were"


def say(*sentences: str) -> None:
    """Report on standard error, a line each, above a bar that may stand there."""
    for sentence in sentences:
        tqdm.write(sentence, file=sys.stderr)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name was created by the system rather than a user."""
    return name.startswith(HIDDEN)


def batch_size(height: int, width: int, most: int = BATCH_IMAGES) -> int:
    """Number of images of this size to process at once within bounded memory."""
    return max(1, min(most, BATCH_PIXELS // (height * width)))


def in_batches(images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """Split images (N, 3, H, W), or uint8 images (3, H, W) of any sizes, into batches (B, 3, H, W), in order."""
    if isinstance(images, Tensor):
        yield from images.split(batch_size(*images.shape[2:]))
    else:
        yield from (batch for _, batch in batches_of_one_size(("", image) for image in images))


def digest_of(image: Tensor) -> str:
    """SHA-256 of the pixels of an image, uint8 (3, H, W)."""
    return hashlib.sha256(str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()).hexdigest()


def evenly(total: int, most: int) -> Tensor:
    """At most so many indices of a sequence, evenly chosen, in order."""
    return torch.linspace(0, total - 1, min(total, most), dtype=torch.float64).round().long()


class EvenBatches(Sequence[Tensor]):
    """Batches (B, 3, H, W) of some of the images of tensors, evenly chosen, made on access.

    Args:
        images: uint8 (N, 3, H, W) each, of one size.
        most: how many images to choose at most.
        device: where to.
    """

    def __init__(self, images: Sequence[Tensor], most: int, device: torch.device | str):
        chosen = evenly(sum(map(len, images)), most)
        self._batches, self._device, first = [], device, 0
        for part in images:
            own = chosen[(chosen >= first) & (chosen < first + len(part))] - first
            self._batches += [(part, batch) for batch in own.split(batch_size(*part.shape[2:])) if len(batch)]
            first += len(part)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]  # no slices
        images, batch = self._batches[index]
        return images[batch].to(self._device)


def batches_of_one_size(
    images: Iterable[tuple[Place, Tensor]], most: int = BATCH_IMAGES
) -> Iterator[tuple[list[Place], Tensor]]:
    """Group consecutive (place, image) pairs of equal size into (places, (B, 3, H, W)), keeping their order."""
    places: list[Place] = []
    waiting: list[Tensor] = []
    for place, image in images:
        if waiting and (
            image.shape != waiting[0].shape or len(waiting) == batch_size(image.shape[1], image.shape[2], most)
        ):
            yield places, _stacked(waiting)
            places, waiting = [], []
        places.append(place)
        waiting.append(image)
    if waiting:
        yield places, _stacked(waiting)


def _stacked(images: list[Tensor]) -> Tensor:
    """Stack images to a batch; a single image, which may be large, is not copied."""
    return torch.stack(images) if len(images) > 1 else images[0][None]
