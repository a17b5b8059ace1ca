"""Interface of tasks for training and evaluation, and their common split."""

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
    defect without a mask; the whole field is None if there are no masks.
    """

    images: Images
    labels: Tensor
    anomalous: Tensor
    masks: Sequence[np.ndarray | None] | None = None


class Fold(Protocol):
    """A task's normals with some of them left out; can be trained on like a task."""

    @property
    def train(self) -> Tensor: ...
    @property
    def validation(self) -> Labelled: ...
    @property
    def left_out(self) -> Images: ...


class Task(ABC):
    """Images for training, calibration, validation and testing, and which of them are normal.

    Training, calibration and test images never overlap. Calibration images set thresholds, p-values and heatmap
    scales; they may be the normals of the validation split, which is used for curves and selects nothing.
    """

    same_images = False  # whether the tasks of all classes validate and test on the same images

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
        """Valid names of the normal class."""

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
        """Test split, to be read once at the end; None unless it has both normal and anomalous images."""

    @abstractmethod
    def fingerprint(self, part: str) -> str:
        """SHA-256 of the files or settings behind one split, `train` or `test`; '' for a missing split.

        Runs on different images have different fingerprints, independent of the name of the data set or folder.
        """

    @property
    def train_size(self) -> int:
        """Number of training normals; overridden where it is known without reading them."""
        return len(self.train)

    @property
    def tile_size(self) -> int:
        """Side of the tiles in pixels; 0 for whole images."""
        return 0

    @property
    def max_value(self) -> int:
        """Value of white in images of more than 8 bits, see `kdad.data.decoding`; 0 if the normals have 8 bits."""
        return 0

    @property
    @abstractmethod
    def score(self) -> str:
        """The default score for its anomalies, a name in `kdad.scores.SCORES`."""

    @property
    def cross_fitted(self) -> bool:
        """Whether there are `folds`."""
        return False

    @property
    def folds(self) -> Iterable[Fold]:
        """Folds over all normals, each with a different part left out, if held-out normals are too few; else none."""
        return ()

    def check(self) -> None:  # noqa: B027 - most tasks have nothing to check
        """Check inputs that are read late, before any work is done.

        Raises:
            UserError: something would abort the work, or make its figures wrong.
        """


def all_normal(images: Tensor) -> Labelled:
    """Label all images as normal."""
    labels = torch.zeros(len(images), dtype=torch.long)
    return Labelled(images, labels, labels.bool())


def holdout_split(n: int, held_out: int | None = None) -> tuple[Tensor, Tensor]:
    """Indices for training (90 %) and indices that no student or teacher sees (10 %, or `held_out`)."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    kept = n - (round(n * HELD_OUT) if held_out is None else held_out)
    return order[:kept], order[kept:]
