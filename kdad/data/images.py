"""Image files: found, read ahead, and put into batches of one size."""

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
HIDDEN = (".", "__")  # how names begin that no user has given: .ipynb_checkpoints, ._0001.png, __MACOSX
BATCH_IMAGES, BATCH_PIXELS = 64, 2**20
DECODERS = min(4, os.cpu_count() or 1)  # threads; each holds an image that may be large
Value = TypeVar("Value")
Place = TypeVar("Place")


def in_advance(read: Callable[[Place], Value], files: Iterable[Place]) -> Iterator[Value | UserError]:
    """What `read` says of file after file, in order; of one that cannot be read, the error that says why.

    Some files are read ahead, on threads of their own, while the caller looks at those before them.
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
    """Each file that can be read, with its content and in order; `refuse` is called with the others and the reason."""
    for file, value in zip(files, in_advance(read, files), strict=True):
        if isinstance(value, UserError):
            refuse(file, value)
        else:
            yield file, value


def find_images(paths: Iterable[Path | str]) -> list[Path]:
    """The image files among `paths`; a directory stands for `images_below` it.

    Raises:
        UserError: a path does not exist or cannot be looked into, or nothing was found.
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
        raise UserError(f"no image found; the known endings are {', '.join(sorted(SUFFIXES))}")
    return found


def images_below(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; links to folders are followed, what is hidden is left out.

    Raises:
        UserError: a folder cannot be looked into.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{shown(error.filename)}: cannot be looked into ({error.strerror})")

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
    """Whether a file or folder of this name is litter of a system, not a user's."""
    return name.startswith(HIDDEN)


def batch_size(height: int, width: int, most: int = BATCH_IMAGES) -> int:
    """How many images of one size to process at once without filling the memory."""
    return max(1, min(most, BATCH_PIXELS // (height * width)))


def in_batches(images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """Images of one size (N, 3, H, W), or uint8 images (3, H, W) of any, in batches (B, 3, H, W) and in order."""
    if isinstance(images, Tensor):
        yield from images.split(batch_size(*images.shape[2:]))
    else:
        yield from (batch for _, batch in batches_of_one_size(("", image) for image in images))


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
    """Images as one batch; a lone one, which may be large, is not copied."""
    return torch.stack(images) if len(images) > 1 else images[0][None]
