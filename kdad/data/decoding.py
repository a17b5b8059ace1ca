"""Decoding untrusted image files."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
import pi_heif
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from kdad.errors import UserError
from kdad.files import shown

# Raster formats only: for EPS, Pillow would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "HEIF", "AVIF", "JPEG2000")
pi_heif.register_heif_opener()  # common for phones and cameras, but not supported by Pillow itself
MAX_PIXELS = 64_000_000
MAX_SIDE = 65_535  # pixels, as of JPEG: the work of resizing grows with each side, however narrow the image
# White in images of more than 8 bits: fractions, or values of 8, 10, 12, 14 or 16 bits.
MAX_VALUES = (1, 255, 1023, 4095, 16383, 65535)
UNCLEAR_BELOW = 64  # maxima above 1 and below this are ambiguous: a dark image, or none at all
SIGNATURES = (
    ("a video, or a damaged HEIC or AVIF file,", 4, b"ftyp"),
    ("a JPEG XL file", 0, b"\xff\x0a"),
    ("a JPEG XL file", 0, b"\0\0\0\x0cJXL "),
    ("a Photoshop file", 0, b"8BPS"),
    ("a PDF file", 0, b"%PDF"),
    ("an SVG file", 0, b"<svg"),
    ("a DICOM file", 128, b"DICM"),
    ("a NumPy file", 0, b"\x93NUMPY"),
)
MAX_SIGNATURE_BYTES = 132
ANIMATED = ("TIFF", "GIF", "WEBP", "PNG", "AVIF")  # other formats name the image that stands for all, such as MPO
NEW_SUBFILE_TYPE = 254
_opening = Lock()


class TooManyPixels(UserError):
    """An image exceeds the limit of pixels, or of those of a side."""


def read_image(
    source: Path | str | BinaryIO, name: str | None = None, max_value: int = 0, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Decode one image file to uint8 RGB (3, H, W).

    EXIF rotation is applied, and transparency is composited on white.
    Grey values of more than 8 bits are scaled to map `max_value` to 255; higher values are clipped.

    Args:
        source: a path, or an open binary file.
        name: name of the image in errors; the path by default.
        max_value: grey value of white in images of more than 8 bits, one of `MAX_VALUES`; 0 for the image's own
            `max_value_of`.
        max_pixels: pixel limit; at most `MAX_PIXELS`.

    Raises:
        TooManyPixels: the image exceeds the limit.
        UserError: the file is missing, empty, damaged, not an image, or a stack or animation of several; or its grey
            values cannot be scaled, because they are negative or not finite, or more than half of them are above white.
    """
    name = name or shown(source)
    with opened_image(source, name, max_pixels) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb_tensor(image, name, max_value)


def to_rgb_tensor(image: Image.Image, name: str, max_value: int = 0) -> Tensor:
    """Convert an open image to uint8 RGB (3, H, W), as `read_image` does, but without EXIF rotation.

    Raises:
        UserError: its grey values cannot be scaled.
    """
    if is_deep(image):
        image = Image.fromarray(_scaled(_grey_values(image, name), max_value, name))
    return torch.from_numpy(np.array(_to_rgb(image))).permute(2, 0, 1)


@contextmanager
def opened_image(source: Path | str | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file and check its size; errors inside the block become one-line `UserError`s."""
    try:
        with _opening, warnings.catch_warnings():  # catch_warnings is not thread-safe; only headers are read here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(source, formats=FORMATS)
        with image:
            _check_size(image, name, min(max_pixels, MAX_PIXELS))
            _check_frames(image, name)
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: {_other_format(source)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixels(f"{name}: more than {MAX_PIXELS // 10**6} million pixels; reduce its size") from None
    except Exception as error:  # decoders raise many types on damaged data
        raise UserError(f"{name}: damaged or unreadable image ({error})".replace("\n", " ")) from None


def _other_format(source: Path | str | BinaryIO) -> str:
    """Describe a file that is in none of `FORMATS`."""
    if isinstance(source, Path | str):
        with open(source, "rb") as file:
            start = file.read(MAX_SIGNATURE_BYTES)
    else:
        source.seek(0)
        start = source.read(MAX_SIGNATURE_BYTES)
    if not start:
        return "an empty file"
    found = next((kind for kind, at, magic in SIGNATURES if start[at : at + len(magic)] == magic), None)
    return "not an image" if found is None else f"{found} is not supported; save it as PNG or JPEG"


def is_deep(image: Image.Image) -> bool:
    """Whether an image has grey values of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def highest_value(file: Path) -> float:
    """Maximum grey value of an image file of more than 8 bits; 0 for others, which are decoded too.

    Raises:
        UserError: as in `read_image`.
    """
    with opened_image(file, shown(file)) as image:
        if is_deep(image):
            return float(_grey_values(image, shown(file)).max())
        image.load()
        return 0.0


def max_value_of(highest: float) -> int:
    """White for a maximum grey value: the smallest of `MAX_VALUES` not below `highest`; 0 if there is none."""
    return next((max_value for max_value in MAX_VALUES if max_value >= highest), 0)


def _grey_values(image: Image.Image, name: str) -> np.ndarray:
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{name}: it contains values that are not finite (NaN or infinite); replace them")
    if values.min() < 0:
        raise UserError(f"{name}: it contains negative values, down to {values.min():g}; shift them so that 0 is black")
    return values


def _scaled(values: np.ndarray, max_value: int, name: str) -> np.ndarray:
    """Scale grey values to uint8."""
    highest = values.max()
    if not max_value:
        max_value = max_value_of(highest)
        if not max_value or 1 < highest < UNCLEAR_BELOW:
            raise UserError(
                f"{name}: it has more than 8 bits, and with values up to {highest:g} the value of white is unclear; "
                "scale it to 0…255 or 0…65535"
            )
    if np.median(values) > max_value:
        raise UserError(f"{name}: values up to {highest:g}, where {max_value} was white in the images trained on")
    return np.rint(values * (255 / max_value)).clip(0, 255).astype(np.uint8)


def _check_size(image: Image.Image, name: str, most: int) -> None:
    width, height = image.size
    if width * height > most:
        raise TooManyPixels(f"{name}: {width}×{height} exceeds {most / 10**6:g} million pixels; reduce its size")
    if max(width, height) > MAX_SIDE:
        raise TooManyPixels(f"{name}: {width}×{height} exceeds {MAX_SIDE:,} pixels of a side; cut or reduce it")


def _check_frames(image: Image.Image, name: str) -> None:
    """Refuse a stack or an animation, of which all but one image would go unseen."""
    frames = _pages(image) if image.format == "TIFF" else getattr(image, "n_frames", 1)
    if frames > 1 and image.format in ANIMATED:
        raise UserError(f"{name}: it holds {frames} images; save each of them as a file of its own")


def _pages(image: Image.Image) -> int:
    """Number of images in a TIFF file, without smaller versions of the others (tag NewSubfileType) and masks."""
    pages = 0
    for frame in range(getattr(image, "n_frames", 1)):
        image.seek(frame)
        pages += not (frame and image.tag_v2.get(NEW_SUBFILE_TYPE, 0))  # type: ignore[attr-defined]
    image.seek(0)
    return pages


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
