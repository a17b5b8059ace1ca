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

# Pillow would also start Ghostscript on an EPS: nothing but plain pictures is decoded.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "HEIF", "AVIF")
pi_heif.register_heif_opener()  # what phones and cameras of today write, and Pillow does not read by itself
MAX_PIXELS = 64_000_000
# What is white in images of more than 8 bits: of 8, 10, 12, 14 and 16 bits, or of fractions.
MAX_VALUES = (1, 255, 1023, 4095, 16383, 65535)
UNCLEAR_BELOW = 64  # a highest value above 1 and below this one is of a dark image, or of no image
SIGNATURES = (
    ("a film, or a HEIC or AVIF file that is damaged,", 4, b"ftyp"),
    ("a JPEG XL file", 0, b"\xff\x0a"),
    ("a JPEG XL file", 0, b"\0\0\0\x0cJXL "),
    ("a JPEG 2000 file", 0, b"\0\0\0\x0cjP  "),
    ("a Photoshop file", 0, b"8BPS"),
    ("a PDF file", 0, b"%PDF"),
    ("an SVG file", 0, b"<svg"),
    ("a DICOM file", 128, b"DICM"),
    ("a NumPy file", 0, b"\x93NUMPY"),
)
MAX_SIGNATURE_BYTES = 132
_opening = Lock()


class TooManyPixels(UserError):
    """An image is larger than may be decoded."""


def read_image(
    source: Path | str | BinaryIO, name: str | None = None, max_value: int = 0, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Decode one image file to uint8 RGB (3, H, W).

    EXIF rotation is applied, transparency is laid over white, and of an animation the first frame is taken. Grey values
    of more than 8 bits are scaled so that `max_value` becomes 255; what is above is white, too.

    Args:
        source: a path, or an open binary file.
        name: what to call the image in an error; the path by default.
        max_value: the grey value, one of `MAX_VALUES`, that is white in images of more than 8 bits; 0 for the
            `max_value_of` the image.

        max_pixels: how many there may be; `MAX_PIXELS` are the most.

    Raises:
        TooManyPixels: the image has more.
        UserError: the file is missing, empty, damaged or no image; or it has grey values that cannot be scaled:
            negative ones, others that are not finite, or more than half of them above white.
    """
    name = name or shown(source)
    with opened_image(source, name, max_pixels) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb_tensor(image, name, max_value)


def to_rgb_tensor(image: Image.Image, name: str, max_value: int = 0) -> Tensor:
    """An open image as uint8 RGB (3, H, W), as `read_image` gives it, but not turned.

    Raises:
        UserError: its grey values cannot be scaled.
    """
    if is_deep(image):
        image = Image.fromarray(_scaled(_grey_values(image, name), max_value, name))
    return torch.from_numpy(np.array(_to_rgb(image))).permute(2, 0, 1)


@contextmanager
def opened_image(source: Path | str | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """An image file, its size checked; what goes wrong with it inside the block becomes a `UserError` of one line."""
    try:
        with _opening, warnings.catch_warnings():  # not for two threads at once; only headers are read here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(source, formats=FORMATS)
        with image:
            _check_size(image, name, min(max_pixels, MAX_PIXELS))
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: {_other_format(source)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixels(f"{name}: more than {MAX_PIXELS // 10**6} million pixels; make it smaller") from None
    except Exception as error:  # decoders raise many types on damaged data
        raise UserError(f"{name}: damaged or unreadable image ({error})".replace("\n", " ")) from None


def _other_format(source: Path | str | BinaryIO) -> str:
    """What a file is that is none of `FORMATS`."""
    if isinstance(source, Path | str):
        with open(source, "rb") as file:
            start = file.read(MAX_SIGNATURE_BYTES)
    else:
        source.seek(0)
        start = source.read(MAX_SIGNATURE_BYTES)
    if not start:
        return "an empty file"
    found = next((kind for kind, at, magic in SIGNATURES if start[at : at + len(magic)] == magic), None)
    return "not an image" if found is None else f"{found} is not read here; save it as PNG or JPEG"


def is_deep(image: Image.Image) -> bool:
    """Whether an image has grey values of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def highest_value(file: Path) -> float:
    """The highest grey value of an image file of more than 8 bits; of any other, which is decoded too, 0.

    Raises:
        UserError: as of `read_image`.
    """
    with opened_image(file, shown(file)) as image:
        if is_deep(image):
            return float(_grey_values(image, shown(file)).max())
        image.load()
        return 0.0


def max_value_of(highest: float) -> int:
    """What white is where `highest` is the highest grey value: the next of `MAX_VALUES`, 0 if it is above them all."""
    return next((max_value for max_value in MAX_VALUES if max_value >= highest), 0)


def _grey_values(image: Image.Image, name: str) -> np.ndarray:
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{name}: it holds values that are not finite (NaN or infinite); replace them")
    if values.min() < 0:
        raise UserError(f"{name}: it holds values below 0, down to {values.min():g}; shift them, so that 0 is black")
    return values


def _scaled(values: np.ndarray, max_value: int, name: str) -> np.ndarray:
    """Grey values as uint8."""
    highest = values.max()
    if not max_value:
        max_value = max_value_of(highest)
        if not max_value or 1 < highest < UNCLEAR_BELOW:
            raise UserError(
                f"{name}: it has more than 8 bits, and with values up to {highest:g} it is not clear what is white; "
                "scale it to 0…255 or 0…65535"
            )
    if np.median(values) > max_value:
        raise UserError(f"{name}: values up to {highest:g}, where {max_value} was white in the images trained on")
    return np.rint(values * (255 / max_value)).clip(0, 255).astype(np.uint8)


def _check_size(image: Image.Image, name: str, most: int) -> None:
    width, height = image.size
    if width * height > most:
        raise TooManyPixels(f"{name}: {width}×{height} is above {most / 10**6:g} million pixels; make it smaller")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
