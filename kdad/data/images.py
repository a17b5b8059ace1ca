"""Image files: search, read-ahead, and batches of equal size."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from kdad.errors import UserError
from kdad.files import shown

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".heic", ".heif", ".hif", ".avif", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".pgm", ".ppm", ".pnm",
}  # fmt: skip
HIDDEN = (".", "__")  # prefixes of system files: .ipynb_checkpoints, ._0001.png, __MACOSX
BATCH_IMAGES, BATCH_PIXELS = 64, 2**20
DECODERS = min(4, os.cpu_count() or 1)  # threads; each holds one image, which may be large
Value = TypeVar("Value")
Place = TypeVar("Place")


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
    """List the files among `paths`, with directories replaced by the `images_below` them.

    Raises:
        UserError: a path does not exist or cannot be accessed, or nothing was found.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += images_below(path)
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{shown(path)}: no such file or directory")
    if not found:
        raise UserError(f"no image found; known suffixes are {', '.join(sorted(SUFFIXES))}")
    return found


def images_below(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; follows links to folders and skips hidden files.

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
        found += [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
    return sorted(found)


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


class EvenBatches(Sequence[Tensor]):
    """Batches (B, 3, H, W) of some of the images of tensors, evenly chosen, made on access.

    Args:
        images: uint8 (N, 3, H, W) each, of one size.
        most: how many images to choose at most.
        device: where to.
    """

    def __init__(self, images: Sequence[Tensor], most: int, device: torch.device | str):
        total = sum(map(len, images))
        chosen = torch.linspace(0, total - 1, min(total, most), dtype=torch.float64).round().long()
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
    images: Iterable[tuple[str, Tensor]], most: int = BATCH_IMAGES
) -> Iterator[tuple[list[str], Tensor]]:
    """Group consecutive (name, image) pairs of equal size into (names, (B, 3, H, W)), keeping their order."""
    names: list[str] = []
    waiting: list[Tensor] = []
    for name, image in images:
        if waiting and (
            image.shape != waiting[0].shape or len(waiting) == batch_size(image.shape[1], image.shape[2], most)
        ):
            yield names, _stacked(waiting)
            names, waiting = [], []
        names.append(name)
        waiting.append(image)
    if waiting:
        yield names, _stacked(waiting)


def _stacked(images: list[Tensor]) -> Tensor:
    """Stack images to a batch; a single image, which may be large, is not copied."""
    return torch.stack(images) if len(images) > 1 else images[0][None]
