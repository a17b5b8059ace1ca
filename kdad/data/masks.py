"""Masks of the anomalous pixels of an image, in the formats of various tools."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdad.data.decoding import opened_image
from kdad.errors import UserError
from kdad.files import shown


class MaskFiles(Sequence[np.ndarray | None]):
    """Masks of test images, bool (H, W): all False for good images, None for defects without a mask."""

    def __init__(self, images: Sequence[Path], masks: Sequence[Sequence[Path]], anomalous: Sequence[bool]):
        self.images, self.masks, self.anomalous = images, masks, anomalous

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray | None:  # type: ignore[override]  # no slices
        width, height = image_size(self.images[index])
        if not self.anomalous[index]:
            return np.zeros((height, width), bool)
        files = self.masks[index]
        if not files:
            return None
        mask = joint_mask(files)
        if mask.shape != (height, width):
            raise UserError(f"{shown(files[0])}: a mask of {mask.shape[::-1]} for an image of {(width, height)}")
        return mask

    def check(self) -> None:
        """Check the mask of every defect.

        Raises:
            UserError: a mask cannot be read, is empty, or differs in size from its image.
        """
        for index, anomalous in enumerate(self.anomalous):
            mask = self[index] if anomalous else None
            if mask is not None and not mask.any():
                defect = f"{shown(self.images[index])} is among the defects"
                file = shown(self.masks[index][0])
                raise UserError(f"{file}: it marks nothing, but {defect}: mark it, or remove the mask")


def joint_mask(files: Sequence[Path]) -> np.ndarray:
    """Union of several masks of one image.

    Raises:
        UserError: a mask cannot be read, or they differ in size.
    """
    masks = [read_mask(file) for file in files]
    if len({mask.shape for mask in masks}) > 1:
        raise UserError(f"{shown(files[0].parent)}: the masks of one image differ in size")
    return np.any(masks, axis=0)


def read_mask(file: Path) -> np.ndarray:
    """Read a mask file as bool (H, W): non-zero pixels of any depth are anomalous, unless they are transparent.

    If all colours are black, the pixels that are not transparent are anomalous.

    Raises:
        UserError: the file is missing, damaged or not an image, or contains values that are not finite.
    """
    with opened_image(file, shown(file)) as image:
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            values = np.asarray(image.convert("RGBA"))
            coloured, opaque = values[..., :3].any(-1), values[..., 3] > 0
            return coloured & opaque if (coloured & opaque).any() else opaque & ~opaque.all()
        values = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    if not np.isfinite(values).all():
        raise UserError(f"{shown(file)}: a mask with values that are not finite")
    marked = np.atleast_3d(values).astype(bool)
    return np.any(marked, axis=2)


def image_size(file: Path) -> tuple[int, int]:
    """(width, height) of an image as displayed, that is, after EXIF rotation."""
    with opened_image(file, shown(file)) as image:
        turned = image.getexif().get(0x0112, 1) >= 5
        return (image.height, image.width) if turned else image.size
