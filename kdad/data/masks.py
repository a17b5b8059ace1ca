"""Masks of the anomalous pixels of an image, in the formats of various tools."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from kdad.data.decoding import opened_image
from kdad.data.images import in_advance
from kdad.errors import UserError
from kdad.files import shown

LOSSY = ("JPEG", "MPO", "WEBP", "HEIF", "AVIF")
NOISE = 0.25  # of the highest value: around bright marks, compression leaves up to so much
BRIGHT, WHITE = 64, 250  # the least highest value of marks in a lossy format, and of those saved from one
MANY_VALUES = 32  # in what was saved from a lossy format; labels have fewer, or are not white
PLAUSIBLE_SHARE = 0.5  # of the pixels of images with a defect; where half of the masks mark more, they may be inverted
MAX_LISTED = 5  # faults


class MaskFiles(Sequence[np.ndarray | None]):
    """Masks of test images, bool (H, W).

    All False for good images; None for defects without a mask, or with one that marks nothing.
    """

    def __init__(self, images: Sequence[Path], masks: Sequence[Sequence[Path]], anomalous: Sequence[bool]):
        self.images, self.masks, self.anomalous = images, masks, anomalous

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray | None:  # type: ignore[override]  # no slices
        if self.anomalous[index]:
            mask = self._read(index) if self.masks[index] else None
            return mask if mask is not None and mask.any() else None
        width, height = image_size(self.images[index])
        return np.zeros((height, width), bool)

    def check(self) -> list[str]:
        """Read the mask of every defect; returns sentences on those that are no fault, but may be a mistake.

        Raises:
            UserError: masks cannot be read or differ in size from their images, or most of them mark nothing.
        """
        kept = [index for index, anomalous in enumerate(self.anomalous) if anomalous and self.masks[index]]
        faults: list[str] = []
        shares: dict[int, float] = {}
        for index, share in zip(kept, in_advance(self._share, kept), strict=True):
            if isinstance(share, UserError):
                faults.append(str(share))
            else:
                shares[index] = share
        if faults:
            raise UserError(_listed(faults, len(kept)))
        empty = [index for index in kept if not shares[index]]
        if len(empty) > len(kept) / 2:
            raise UserError(f"{self._count_of(empty, kept)}: mark defects in any colour but black, or remove the masks")
        said = []
        if empty:
            said.append(f"{self._count_of(empty, kept)}: these images count for image figures, not for pixel figures")
        usual = float(np.median([share for share in shares.values() if share] or [0]))
        if usual > PLAUSIBLE_SHARE:
            such = f"masks mark {usual:.0%} of the pixels, such as {shown(self.masks[kept[0]][0])}"
            said.append(f"{such}: are they inverted, or is their background not black?")
        return said

    def _read(self, index: int) -> np.ndarray:
        files, (width, height) = self.masks[index], image_size(self.images[index])
        mask = joint_mask(files)
        if mask.shape != (height, width):
            raise UserError(f"{shown(files[0])}: a mask of {mask.shape[::-1]} for an image of {(width, height)}")
        return mask

    def _share(self, index: int) -> float:
        """The share of its image that a mask marks."""
        return float(self._read(index).mean())

    def _count_of(self, empty: Sequence[int], kept: Sequence[int]) -> str:
        such = f", such as {shown(self.masks[empty[0]][0])}" if empty else ""
        return f"{len(empty)} of {len(kept)} masks mark nothing{such}"


def _listed(faults: Sequence[str], of: int) -> str:
    """Several faults of masks as one line."""
    if len(faults) == 1:
        return faults[0]
    more = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
    return f"{len(faults)} of {of} masks cannot be used: {'; '.join(faults[:MAX_LISTED])}{more}"


def joint_mask(files: Sequence[Path]) -> np.ndarray:
    """Union of several masks of one image.

    Raises:
        UserError: a mask cannot be read, or they differ in size.
    """
    masks = [read_mask(file) for file in files]
    if len({mask.shape for mask in masks}) > 1:
        raise UserError(f"{shown(files[0].parent)}: the masks of one image differ in size")
    return np.any(masks, axis=0)


def read_mask(file: Path | BinaryIO, name: str = "") -> np.ndarray:
    """Read a mask file as bool (H, W): non-zero pixels of any depth are anomalous, unless they are transparent.

    EXIF rotation is applied, as in images. If all colours are black, the pixels that are not transparent are anomalous.
    If no colour of a palette is black, its first is the background. What compression leaves around marks does not
    count.

    Args:
        name: for messages; by default the path.

    Raises:
        UserError: the file is missing, damaged or not an image, or contains values that are not finite.
    """
    name = name or shown(str(file))
    with opened_image(file, name) as image:
        lossy = image.format in LOSSY
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            values = np.asarray(image.convert("RGBA"))
            coloured, opaque = _marked(values[..., :3], lossy), values[..., 3] > 0
            return coloured & opaque if (coloured & opaque).any() else opaque & ~opaque.all()
        if image.mode == "P":
            return _marked_in_palette(image, lossy)
        values = np.asarray(image)
    if not np.isfinite(values).all():
        raise UserError(f"{name}: a mask with values that are not finite")
    return _marked(np.atleast_3d(values), lossy)


def _marked_in_palette(image: Image.Image, lossy: bool) -> np.ndarray:
    coloured = _marked(np.asarray(image.convert("RGB")), lossy)
    return np.asarray(image) > 0 if coloured.all() else coloured


def _marked(values: np.ndarray, lossy: bool) -> np.ndarray:
    """Pixels that values (H, W, C) mark, bool (H, W)."""
    highest = values.max(2) if values.shape[2] > 1 else values[..., 0]
    return highest > NOISE * highest.max() if _is_noisy(highest, lossy) else highest != 0


def _is_noisy(values: np.ndarray, lossy: bool) -> bool:
    """Whether compression has left values (H, W) other than 0 around marks."""
    if values.dtype != np.uint8 or not values.size:
        return False
    if lossy:
        return bool(values.max() >= BRIGHT)
    return bool(values.max() >= WHITE and np.count_nonzero(np.bincount(values.ravel())) > MANY_VALUES)


def image_size(file: Path) -> tuple[int, int]:
    """(width, height) of an image as displayed, that is, after EXIF rotation."""
    with opened_image(file, shown(file)) as image:
        # Of a TIFF, Pillow gives the size as displayed.
        turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size
