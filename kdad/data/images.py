"""Reading untrusted image files."""

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from kdad.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
# Pillow would also start Ghostscript on an EPS: nothing but plain pictures is decoded.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MOST_PIXELS = 64_000_000
BATCH_IMAGES, BATCH_PIXELS = 64, 16_000_000
DECODERS = min(4, os.cpu_count() or 1)  # threads; each holds an image that may be large
_opening = Lock()


def read_image(source: Path | str | BinaryIO, name: str | None = None) -> Tensor:
    """Decode one image file to uint8 RGB (3, H, W).

    EXIF rotation is applied, transparency is laid over white, 16-bit grey is scaled to 8, and
    of an animation the first frame is taken.

    Args:
        source: a path, or an open binary file.
        name: what to call the image in an error; the path by default.

    Raises:
        UserError: the file is missing, empty, damaged, no image, or above `MOST_PIXELS`.
    """
    name = name or str(source)
    try:
        with _opening, warnings.catch_warnings():  # not for two threads at once; only headers are read here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(source, formats=FORMATS)
        with image:
            _check_size(image, name)
            ImageOps.exif_transpose(image, in_place=True)
            return _to_tensor(_to_rgb(image))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not an image, or an empty file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{name}: more than {MOST_PIXELS // 10**6} million pixels; make it smaller") from None
    except Exception as error:  # decoders raise many types on damaged data
        raise UserError(f"{name}: damaged or unreadable image ({error})".replace("\n", " ")) from None


def read_images(files: Iterable[Path]) -> Iterator[Tensor | UserError]:
    """As `read_image` for file after file, in order; what cannot be read comes as the error that says why.

    Some images are decoded ahead, on threads of their own, while the caller looks at those before them.
    """
    ahead: deque[Future[Tensor | UserError]] = deque()
    with ThreadPoolExecutor(DECODERS) as pool:
        try:
            for file in files:
                ahead.append(pool.submit(_read_or_error, file))
                if len(ahead) > DECODERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read_or_error(file: Path) -> Tensor | UserError:
    try:
        return read_image(file)
    except UserError as error:
        return error


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise UserError(f"{name}: {width}×{height} is above {MOST_PIXELS // 10**6} million pixels; make it smaller")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # PIL would clip 16-bit grey at 255 instead of scaling it
        grey = np.asarray(image, np.float64) / 257
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def find_images(paths: Iterable[Path | str]) -> list[Path]:
    """The image files among `paths`; a directory stands for all images below it, sorted.

    Raises:
        UserError: a path does not exist, or nothing was found.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or directory")
    if not found:
        raise UserError(f"no image found; the known endings are {', '.join(sorted(SUFFIXES))}")
    return found


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
