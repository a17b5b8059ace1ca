"""What every task looks like to the code that trains and evaluates, and the split that all of them share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from kdad.data.protocol import HELD_OUT, SPLIT_SEED

Images = Tensor | Sequence[Tensor]  # uint8 (N, 3, H, W), or N of (3, H, W) where sizes differ


class Labelled(NamedTuple):
    """Images to evaluate on, with their labels and masks.

    `labels` (N,) are class indices and `anomalous` (N,) is bool. `masks` are bool (H, W), or None for a
    defect whose place nobody marked; they are None as a whole where there are none.
    """

    images: Images
    labels: Tensor
    anomalous: Tensor
    masks: Sequence[np.ndarray | None] | None = None


class Fold(Protocol):
    """A task's normals with some of them left out; it trains like a task."""

    @property
    def train(self) -> Tensor: ...
    @property
    def validation(self) -> Labelled: ...
    @property
    def left_out(self) -> Images: ...


class Task(ABC):
    """Which images are normal, and which may be used for training, calibration, validation and testing.

    Training, calibration and test images never overlap. Calibration images set thresholds, p-values and heatmap
    scales; they may be the normals of the validation part, which draws curves and chooses nothing.
    """

    same_images = False  # whether the tasks of all classes validate and test on the same images
    local_anomalies = True  # whether an anomaly is a place in an otherwise normal image, or the image as a whole

    @property
    @abstractmethod
    def dataset(self) -> str:
        """The data set's name, or `folder:PATH`."""

    @property
    @abstractmethod
    def normal_class(self) -> str:
        """One of `classes`."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The names that a normal class may have."""

    @property
    @abstractmethod
    def kinds(self) -> tuple[str, ...]:
        """The meaning of the labels of test images."""

    @property
    @abstractmethod
    def train(self) -> Tensor:
        """Normals to train on, uint8 (N, 3, H, W)."""

    @property
    @abstractmethod
    def calibration(self) -> Images:
        """Held-out normals."""

    @property
    @abstractmethod
    def validation(self) -> Labelled:
        """Held-out images, for curves."""

    @property
    @abstractmethod
    def test(self) -> Labelled | None:
        """The test part, to be read once at the end; None where there is none with both kinds of image."""

    @abstractmethod
    def fingerprint(self, part: str) -> str:
        """SHA-256 of the files or settings behind one part, `train` or `test`; '' for a part that is not there.

        Runs on different images have different fingerprints, whatever their data set or folder is called.
        """

    @property
    def train_size(self) -> int:
        """How many normals there are to train on; overridden where that is known without reading them."""
        return len(self.train)

    @property
    def tile_size(self) -> int:
        """The side in pixels of the tiles that images are cut into; 0 for whole images."""
        return 0

    @property
    def max_value(self) -> int:
        """The white of images of more than 8 bits, see `kdad.data.decoding`; 0 where normals have 8."""
        return 0

    @property
    def cross_fitted(self) -> bool:
        """Whether there are `folds`."""
        return False

    @property
    def folds(self) -> Iterable[Fold]:
        """Where held-out normals are too few: all normals with a part left out, for each part in turn. Else none."""
        return ()

    def check(self) -> None:  # noqa: B027 - most tasks have nothing to check
        """Look, before any work is done, at what is read last.

        Raises:
            UserError: something there would end the work, or make its figures wrong.
        """


def all_normal(images: Tensor) -> Labelled:
    """Images of which none is anomalous."""
    labels = torch.zeros(len(images), dtype=torch.long)
    return Labelled(images, labels, labels.bool())


def holdout_split(n: int, held_out: int | None = None) -> tuple[Tensor, Tensor]:
    """Indices of the 90 % to train on and of the 10 %, or of `held_out`, that no student or teacher sees."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    kept = n - (round(n * HELD_OUT) if held_out is None else held_out)
    return order[:kept], order[kept:]
