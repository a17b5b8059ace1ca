"""Custom images: `folder:PATH`, in the layout of MVTec AD or just a folder of normal images.

    PATH/train/good/…              normal images; or any images below PATH outside of test and ground_truth
    PATH/test/good/…               optional: normal test images
    PATH/test/<kind>/…             and anomalous ones
    PATH/ground_truth/<kind>/…     optional masks, see `kdad.data.masks`: files named <image>_mask or <image> of any
                                   format, or several in a folder <image>; or <image>_mask beside the image

Images may be nested, and of any size and mode. Masks beside normals, and copies of normals, are left out, and said. As
in every data set, a tenth of the normals is held out. Where tiles are read, at least 100 are, if that leaves two thirds
for training; with fewer normals, calibration uses five folds of all of them, each left out in turn. Whole images are
calibrated on all normals, each compared with the others.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdad.data.datasets import FOLDER
from kdad.data.decoding import read_image
from kdad.data.folder_layout import GOOD, FolderLayout
from kdad.data.images import in_advance, say
from kdad.data.masks import MaskFiles, image_size
from kdad.data.memmap import memmap_stack
from kdad.data.preprocessing import Preprocessing, resample
from kdad.data.protocol import ENOUGH_TO_CALIBRATE, FOLDS, HELD_OUT, MAX_HELD_OUT
from kdad.data.sizes import Size, need_tiles, size_in_words
from kdad.data.task import Labelled, Task, all_normal, holdout_split
from kdad.errors import UserError
from kdad.files import sha256_of
from kdad.progress import READING, track
from kdad.scores import DISTANT_PEAK, LOCAL_DISTANCE

TRAINING_TILES = 3000
TILE_SIDES = 4  # default tile size, in multiples of the teacher's image size


class ImageFiles(Sequence[Tensor]):
    """Images of some files, uint8 (3, H, W), read on access; iteration reads a few ahead.

    Args:
        max_value: as in `kdad.data.decoding.read_image`.
    """

    def __init__(self, files: Iterable[Path], max_value: int = 0):
        self.files, self.max_value = list(files), max_value

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]  # no slices
        return self._read(self.files[index])

    def __iter__(self) -> Iterator[Tensor]:
        for image in in_advance(self._read, self.files):
            if isinstance(image, UserError):
                raise image
            yield image

    def _read(self, file: Path) -> Tensor:
        return read_image(file, max_value=self.max_value)


class FolderFold(NamedTuple):
    """A task's normals with some left out; see `FolderTask.folds`."""

    train: Tensor
    validation: Labelled
    left_out: ImageFiles


class FolderTask(Task):
    """The normals of a folder against everything else.

    Args:
        root: the folder.
        pixels: the teacher's preprocessing, or a function that waits for it, called once the files were looked at;
            images are resized to its size, with its interpolation.
        tile_size: side of the tiles in pixels, 0 for whole images; None to choose by image size.

    Raises:
        UserError: the folder does not exist, or contains too few readable images.
    """

    normal_class, classes, normal_index = GOOD, (GOOD,), 0

    def __init__(self, root: Path, pixels: Preprocessing | Callable[[], Preprocessing], tile_size: int | None = None):
        self.layout = FolderLayout(root.resolve())
        self.root, self._given_pixels, self._asked_tile_size = self.layout.root, pixels, tile_size
        if tile_size:
            self._check_square()
        self._fingerprints: dict[str, str] = {}
        self._checked = False

    @property
    def dataset(self) -> str:
        return f"{FOLDER}{self.root}"

    @cached_property
    def pixels(self) -> Preprocessing:
        """The teacher's preprocessing."""
        return self._given_pixels if isinstance(self._given_pixels, Preprocessing) else self._given_pixels()

    @property
    def image_size(self) -> Size:
        """(height, width) at which the teacher reads images."""
        return self.pixels.resize

    @cached_property
    def tile_size(self) -> int:
        """Side of the tiles in pixels; 0 for whole images."""
        return self._default_tile_size() if self._asked_tile_size is None else self._asked_tile_size

    @cached_property
    def train(self) -> Tensor:
        """Training normals, or random tiles of them: uint8 (N, 3, side, side)."""
        return self._training_images(self._split[0])

    @property
    def train_size(self) -> int:
        """The number of those."""
        return len(self._split[0]) * self._each

    def fingerprint(self, part: str) -> str:
        """As in `Task`, over paths and contents of the normals, or of the test images and their masks."""
        if part not in self._fingerprints:
            files = self.layout.normals if part == "train" else self._tested
            names = [file.relative_to(self.root).as_posix() for file in files]
            self._fingerprints[part] = sha256_of(files, names) if files else ""
        return self._fingerprints[part]

    @property
    def _tested(self) -> list[Path]:
        """Test images and their masks; empty unless there are both normal and anomalous images."""
        files = [file for kind in self.kinds for file in self.layout.tests.get(kind, ())] if self.test else []
        return [*files, *(mask for file in files for mask in self.layout.masks_of(file))]

    @cached_property
    def calibration(self) -> ImageFiles:
        """Held-out normals in their original sizes."""
        return ImageFiles((self.layout.normals[i] for i in self._split[1]), self.max_value)

    @cached_property
    def validation(self) -> Labelled:
        """Held-out normals prepared as in training, for the loss only."""
        return all_normal(self._training_images(self._split[1]))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of test images, in the order of their labels."""
        return (GOOD, *(kind for kind in self.layout.tests if kind != GOOD))

    @cached_property
    def test(self) -> Labelled | None:
        """Test images in their original sizes; None unless there are both normal and anomalous ones."""
        found = [(file, label) for label, kind in enumerate(self.kinds) for file in self.layout.tests.get(kind, ())]
        labels = torch.tensor([label for _, label in found])
        if not (labels == 0).any() or not (labels > 0).any():
            return None
        files, anomalous = [file for file, _ in found], labels > 0
        masks = [self.layout.masks_of(file) for file in files]
        pixels = MaskFiles(files, masks, anomalous.tolist()) if any(masks) else None
        return Labelled(ImageFiles(files, self.max_value), labels, anomalous, pixels)

    @property
    def max_value(self) -> int:
        """Value of white in images of more than 8 bits; 0 if the normals have 8 bits."""
        return self.layout.max_value

    def check(self) -> None:
        """Check masks and test images before any work is done, and report what is not used as one might expect.

        Raises:
            UserError: masks are damaged or differ in size from their images, most of them are empty, or a test image
                cannot be scaled.
        """
        if self._checked:
            return
        self.layout.say_what_is_unused()
        self.layout.check_tests()
        if self.test is not None and isinstance(self.test.masks, MaskFiles):
            say(*self.test.masks.check())
        self._checked = True  # a sweep checks all tasks at its start, and training checks again

    @property
    def score(self) -> str:
        """The default score: of whole images by comparing places with those of normals; tiles have no place."""
        return DISTANT_PEAK if self.tile_size else LOCAL_DISTANCE

    @property
    def cross_fitted(self) -> bool:
        """Whether the held-out normals are too few for a calibration that needs them: that of tiles."""
        return bool(self.tile_size) and len(self.calibration) < ENOUGH_TO_CALIBRATE

    @property
    def folds(self) -> Iterator[FolderFold]:
        """Folds over all normals, with a fifth left out in turn, if the held-out normals are too few; else none."""
        if self.cross_fitted:
            order = torch.cat(self._split)
            yield from (self._without(order, order[start::FOLDS]) for start in range(FOLDS))

    def _without(self, order: Tensor, part: Tensor) -> FolderFold:
        kept = order[~torch.isin(order, part)]
        left_out = ImageFiles((self.layout.normals[i] for i in part), self.max_value)
        return FolderFold(self._training_images(kept), all_normal(self._training_images(part)), left_out)

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        normals = len(self.layout.normals)
        return holdout_split(normals, _held_out(normals) if self.tile_size else None)

    def _default_tile_size(self) -> int:
        if not need_tiles([image_size(file) for file in self.layout.normals], self.image_size):
            return 0
        self._check_square()
        return TILE_SIDES * self.image_size[0]

    def _check_square(self) -> None:
        """Raise a `UserError` if tiles, which are square, do not fit what the teacher reads."""
        if self.image_size[0] != self.image_size[1]:
            shown = size_in_words(self.image_size)
            raise UserError(
                f"tiles are square, but the teacher reads images at {shown} px: give one --image-size, or --tile-size 0"
            )

    @cached_property
    def _each(self) -> int:
        """Number of training images per normal."""
        return _tiles_each(len(self._split[0])) if self.tile_size else 1

    def _training_images(self, indices: Tensor) -> Tensor:
        """Normals prepared for training, or their tiles: uint8 (N, 3, side, side)."""
        if not self.cross_fitted:
            return self._stacked(self._made(indices), len(indices))
        rows = (indices[:, None] * self._each + torch.arange(self._each)).flatten()
        return self._stacked((self._of_all_normals[row] for row in rows), len(indices))

    @cached_property
    def _of_all_normals(self) -> Tensor:
        """Training images of all normals, shared by the folds to read every file only once."""
        every = torch.arange(len(self.layout.normals))
        return self._stacked(self._made(every), len(every))

    def _stacked(self, images: Iterable[Tensor], normals: int) -> Tensor:
        return memmap_stack(images, (normals * self._each, 3, *self.image_size))

    def _made(self, indices: Tensor) -> Iterator[Tensor]:
        """Normals at the teacher's image size, or tiles of them, which depend on the normal alone."""
        images = ImageFiles((self.layout.normals[i] for i in indices), self.max_value)
        for index, image in track(READING, zip(indices.tolist(), images, strict=True)):
            for piece in _random_tiles(image, self.tile_size, self._each, index) if self.tile_size else [image]:
                yield _resized(piece, *self.image_size, self.pixels.interpolation)


def _held_out(normals: int) -> int:
    """Number of normals to hold out: a tenth, or as many as calibration needs if these can be spared."""
    tenth = round(normals * HELD_OUT)
    return tenth if normals * MAX_HELD_OUT < ENOUGH_TO_CALIBRATE else max(tenth, ENOUGH_TO_CALIBRATE)


def _tiles_each(images: int) -> int:
    """Number of tiles per image, for this many training images."""
    return -(-TRAINING_TILES // max(1, images))


def _resized(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Resize uint8 (3, H, W) to uint8 (3, height, width)."""
    return resample(image[None], height, width, interpolation)[0].clamp(0, 255).round().byte()


def _random_tiles(image: Tensor, tile_size: int, count: int, seed: int) -> Iterator[Tensor]:
    """Cut `count` random squares of `tile_size` pixels from an image, which is enlarged if it is smaller."""
    rng = np.random.default_rng(seed)
    height, width = (max(side, tile_size) for side in image.shape[1:])
    if (height, width) != tuple(image.shape[1:]):
        image = _resized(image, height, width, "lanczos")
    for _ in range(count):
        row, column = rng.integers(0, [height - tile_size + 1, width - tile_size + 1])
        yield image[:, row : row + tile_size, column : column + tile_size]
