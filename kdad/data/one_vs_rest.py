"""One-vs-rest: one class of a labelled data set is normal, every other class is anomalous."""

from functools import cached_property

import torch
from torch import Tensor

from kdad.data.sources import Source
from kdad.data.task import Labelled, Task, holdout_split
from kdad.errors import one_of
from kdad.scores import DISTANT_ERROR


class OneVsRestTask(Task):
    """One-vs-rest on a labelled source: `normal_class` is normal, every other class anomalous.

    The splits do not overlap, except that the calibration images are the normals of the validation
    split: they set thresholds, and are never trained on.
    """

    same_images = True
    score = DISTANT_ERROR  # an anomaly is the whole image

    def __init__(self, source: Source, normal_class: str):
        self.source = source
        self.normal_index = source.classes.index(one_of(f"class of {source.name}", normal_class, source.classes))

    @property
    def dataset(self) -> str:
        return self.source.name

    @property
    def normal_class(self) -> str:
        return self.classes[self.normal_index]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels of test images."""
        return self.source.classes

    @cached_property
    def train(self) -> Tensor:
        """Normals to train on, uint8 (N, 3, H, W)."""
        return self.source.images("train", self._normals(self._split[0]))

    @property
    def train_size(self) -> int:
        """The number of those."""
        return len(self._normals(self._split[0]))

    def fingerprint(self, part: str) -> str:
        """As in `Task`; that of the data set, whose files all classes share."""
        return self.source.fingerprint(part)

    @cached_property
    def calibration(self) -> Tensor:
        """Held-out normals, uint8 (N, 3, H, W): thresholds, p-values and heatmap scales."""
        return self.source.images("train", self._normals(self._split[1]))

    @cached_property
    def validation(self) -> Labelled:
        """Held-out images of all classes, for curves."""
        return self._labelled("train", self._split[1])

    @cached_property
    def test(self) -> Labelled:
        """Test split, to be read once at the end."""
        return self._labelled("test", torch.arange(len(self.source.labels("test"))))

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        return holdout_split(len(self.source.labels("train")))

    def _normals(self, indices: Tensor) -> Tensor:
        return indices[self.source.labels("train")[indices] == self.normal_index]

    def _labelled(self, part: str, indices: Tensor) -> Labelled:
        labels = self.source.labels(part)[indices]
        return Labelled(self.source.images(part, indices), labels, labels != self.normal_index)
