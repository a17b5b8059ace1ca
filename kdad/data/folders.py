"""Own images: `folder:PATH`, in the layout of MVTec AD or just a folder of normal images.

    PATH/train/good/…              normal images; or any images below PATH, but for these two folders:
    PATH/test/good/…               optional: normal images to test on,
    PATH/test/<kind>/…             and anomalous ones
    PATH/ground_truth/<kind>/…     optional masks: <image>_mask.png or <image>.png, anything but black is anomalous

Images may be nested, of any size and mode. Of the normals, in the order of their paths, a tenth is held out like of
every data set, but at least 100 to calibrate on where that leaves two thirds to train on; of fewer normals, five folds
of all of them are left out in turn.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdad.data.datasets import FOLDER
from kdad.data.images import SUFFIXES, read_image, read_images
from kdad.data.preprocessing import Preprocessing, resample
from kdad.data.protocol import ENOUGH_TO_CALIBRATE, FEWEST_NORMALS, FOLDS, HELD_OUT, MOST_HELD_OUT
from kdad.data.roomy import roomy_stack
from kdad.data.task import Labelled, all_normal, holdout_split
from kdad.errors import UserError
from kdad.files import sha256_of

GOOD = "good"
TRAINING_TILES = 3000
TILED_ABOVE = 8  # times the teacher's side: above that, a whole image would lose a defect's details
TILE_SIDES = 4  # how much larger than what the teacher sees of it a tile is


class ImageFiles(Sequence[Tensor]):
    """The images of some files, uint8 (3, H, W), each read when it is asked for, or in order a few ahead."""

    def __init__(self, files: Iterable[Path]):
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]  # no slices
        return read_image(self.files[index])

    def __iter__(self) -> Iterator[Tensor]:
        for image in read_images(self.files):
            if isinstance(image, UserError):
                raise image
            yield image


class MaskFiles(Sequence[np.ndarray | None]):
    """The masks of test images, bool (H, W): black for a good one, None where a defect has no mask."""

    def __init__(self, images: Sequence[Path], masks: Sequence[Path | None], anomalous: Sequence[bool]):
        self.images, self.masks, self.anomalous = images, masks, anomalous

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray | None:  # type: ignore[override]  # no slices
        height, width = read_image(self.images[index]).shape[1:]
        if not self.anomalous[index]:
            return np.zeros((height, width), bool)
        file = self.masks[index]
        if file is None:
            return None
        mask = read_image(file).amax(0).numpy() > 0
        if mask.shape != (height, width):
            raise UserError(f"{file}: a mask of {mask.shape[::-1]} for an image of {(width, height)}")
        return mask


class FolderFold(NamedTuple):
    """A task's normals with some left out: see `FolderTask.folds`."""

    train: Tensor
    validation: Labelled
    left_out: ImageFiles


class FolderTask:
    """The normals of a folder against whatever is not one of them.

    Args:
        root: the folder.
        pixels: how the teacher prepares images; they are resized to its side, by its kernel.
        tile: the side of the tiles to look at one by one, 0 for whole images; None to choose by size.

    Raises:
        UserError: there is no such folder, or it holds too few readable images.
    """

    normal_class, classes, normal_index = GOOD, (GOOD,), 0
    same_images = False
    local_anomalies = True

    def __init__(self, root: Path, pixels: Preprocessing, tile: int | None = None):
        if not root.is_dir():
            raise UserError(f"{root}: no such folder")
        self.root, self.pixels, self.side = root.resolve(), pixels, pixels.resize
        self.dataset = f"{FOLDER}{self.root}"
        self._asked_tile = tile
        self._fingerprints: dict[str, str] = {}

    @cached_property
    def tile(self) -> int:
        """The side in pixels of the tiles to look at one by one, 0 for whole images."""
        return self._fitting_tile() if self._asked_tile is None else self._asked_tile

    @cached_property
    def train(self) -> Tensor:
        """Normals to train on, or tiles of them from random places: uint8 (N, 3, side, side)."""
        return self._training_images(self._split[0])

    @property
    def train_size(self) -> int:
        """How many those are."""
        kept = len(self._split[0])
        return kept * _tiles_each(kept) if self.tile else kept

    def fingerprint(self, part: str) -> str:
        """As of `Task`: of the files of normals, or of test images and their masks, by path and content."""
        if part not in self._fingerprints:
            files = self._normals if part == "train" else self._tested
            names = [file.relative_to(self.root).as_posix() for file in files]
            self._fingerprints[part] = sha256_of(files, names) if files else ""
        return self._fingerprints[part]

    @property
    def _tested(self) -> list[Path]:
        """The test images and their masks; none unless both normal and anomalous ones are there."""
        files = [file for kind in self.kinds for file in self._test_files.get(kind, ())] if self.test else []
        return [*files, *filter(None, map(self._mask_of, files))]

    @cached_property
    def calibration(self) -> ImageFiles:
        """Held-out normals in their own sizes."""
        return ImageFiles(self._normals[i] for i in self._split[1])

    @cached_property
    def validation(self) -> Labelled:
        """Held-out normals as they are trained on, for the loss alone."""
        return all_normal(self._training_images(self._split[1]))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """What the labels of test images mean."""
        return (GOOD, *(kind for kind in self._test_files if kind != GOOD))

    @cached_property
    def test(self) -> Labelled | None:
        """Test images of their own sizes; None unless both normal and anomalous ones are there."""
        found = [(file, label) for label, kind in enumerate(self.kinds) for file in self._test_files.get(kind, ())]
        labels = torch.tensor([label for _, label in found])
        if not (labels == 0).any() or not (labels > 0).any():
            return None
        files, anomalous = [file for file, _ in found], labels > 0
        masks = [self._mask_of(file) for file in files]
        pixels = MaskFiles(files, masks, anomalous.tolist()) if any(masks) else None
        return Labelled(ImageFiles(files), labels, anomalous, pixels)

    @property
    def cross_fitted(self) -> bool:
        """Whether a tenth of the normals is too few to calibrate on."""
        return len(self.calibration) < ENOUGH_TO_CALIBRATE

    @property
    def folds(self) -> Iterator[FolderFold]:
        """All normals with a fifth left out, for each fifth, if a tenth is too few to calibrate on; else none."""
        if self.cross_fitted:
            order = torch.cat(self._split)
            yield from (self._without(order, order[start::FOLDS]) for start in range(FOLDS))

    def _without(self, order: Tensor, part: Tensor) -> FolderFold:
        kept = order[~torch.isin(order, part)]
        left_out = ImageFiles(self._normals[i] for i in part)
        return FolderFold(self._training_images(kept), all_normal(self._training_images(part)), left_out)

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        return holdout_split(len(self._normals), _held_out(len(self._normals)))

    @cached_property
    def _normals(self) -> list[Path]:
        """The normal images that can be read."""
        found = list(_readable(_images_below(self._normal_folder, without=self._aside)))
        if len(found) < FEWEST_NORMALS:
            raise UserError(f"{self._normal_folder} holds {len(found)} readable images; {FEWEST_NORMALS} are the least")
        return found

    @property
    def _normal_folder(self) -> Path:
        good = self.root / "train" / GOOD
        return good if good.is_dir() else self.root

    @property
    def _aside(self) -> tuple[Path, Path]:
        return self.root / "test", self.root / "ground_truth"

    @cached_property
    def _test_files(self) -> dict[str, list[Path]]:
        """The readable test images by kind."""
        kinds = sorted(path for path in self._aside[0].glob("*") if path.is_dir())
        found = {kind.name: list(_readable(_images_below(kind))) for kind in kinds}
        return {kind: files for kind, files in found.items() if files}

    def _mask_of(self, file: Path) -> Path | None:
        inside = file.relative_to(self._aside[0])
        names = (f"{file.stem}_mask.png", f"{file.stem}.png")
        masks = (self._aside[1] / inside.parent / name for name in names)
        return next((mask for mask in masks if mask.is_file()), None)

    def _fitting_tile(self) -> int:
        shorter = [min(_size(file)) for file in self._normals]
        return TILE_SIDES * self.side if np.median(shorter) > TILED_ABOVE * self.side else 0

    def _training_images(self, indices: Tensor) -> Tensor:
        images: Iterable[Tensor] = ImageFiles(self._normals[i] for i in indices)
        count = len(indices)
        if self.tile:
            each, rng = _tiles_each(len(self._split[0])), np.random.default_rng(0)
            images = (tile for image in images for tile in _random_tiles(image, self.tile, each, rng))
            count *= each
        resized = (_resized(image, self.side, self.side, self.pixels.kernel) for image in images)
        return roomy_stack(resized, (count, 3, self.side, self.side))


def _held_out(normals: int) -> int:
    """How many of so many normals to hold out: a tenth, or as many as calibrate well if those can be spared."""
    tenth = round(normals * HELD_OUT)
    return tenth if normals * MOST_HELD_OUT < ENOUGH_TO_CALIBRATE else max(tenth, ENOUGH_TO_CALIBRATE)


def _tiles_each(images: int) -> int:
    """How many tiles to take from each of so many training images."""
    return -(-TRAINING_TILES // max(1, images))


def categories(root: Path) -> list[Path]:
    """The folders below `root` in the layout of MVTec AD: those with a `train/good`."""
    return sorted(good.parent.parent for good in root.glob(f"*/train/{GOOD}"))


def _images_below(folder: Path, without: tuple[Path, ...] = ()) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(file for file in files if not any(file.is_relative_to(other) for other in without))


def _readable(files: list[Path]) -> Iterator[Path]:
    """The files that are images; the others are named on standard error."""
    for file, image in zip(files, read_images(files), strict=True):
        if isinstance(image, UserError):
            print(f"skipped {image}", file=sys.stderr)
        else:
            yield file


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def _resized(image: Tensor, height: int, width: int, kernel: str) -> Tensor:
    """uint8 (3, H, W) to uint8 (3, height, width)."""
    return resample(image[None], height, width, kernel)[0].clamp(0, 255).round().byte()


def _random_tiles(image: Tensor, tile: int, count: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """`count` squares of `tile` pixels from anywhere in an image, which is enlarged if it is smaller."""
    height, width = (max(side, tile) for side in image.shape[1:])
    if (height, width) != tuple(image.shape[1:]):
        image = _resized(image, height, width, "lanczos")
    for _ in range(count):
        row, column = rng.integers(0, [height - tile + 1, width - tile + 1])
        yield image[:, row : row + tile, column : column + tile]
