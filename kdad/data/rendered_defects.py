"""Tasks whose images are made on this machine, and whose test part has defects with exact masks."""

from abc import abstractmethod
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kdad.data.task import Labelled, Task, all_normal
from kdad.errors import one_of

SEEDS = {"train": 2, "calibration": 3, "test": 4, "defects": 5}


class RenderedDefectsTask(Task):
    """Normals of one class; the test part also contains rendered defects of several kinds on it.

    Class attributes: `dataset`, `classes`, `defects` (the kinds of defects) and `counts`, the number of images of
    `train`, `calibration` and `test`, and of each kind of `defects`.
    """

    defects: tuple[str, ...]
    counts: dict[str, int]

    def __init__(self, normal_class: str):
        one_of(f"class of {self.dataset}", normal_class, self.classes)
        self._normal_class = normal_class

    @abstractmethod
    def normals(self, part: str, count: int, seed: int) -> np.ndarray:
        """Normal images of a part, uint8 (count, 3, H, W)."""

    @abstractmethod
    def defective(self, kind: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Test images with a defect, uint8 (count, 3, H, W), and their masks, bool (count, H, W)."""

    @property
    def normal_class(self) -> str:
        return self._normal_class

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("good", *self.defects)

    @property
    def train_size(self) -> int:
        return self.counts["train"]

    @cached_property
    def train(self) -> Tensor:
        return self._normals("train")

    @cached_property
    def calibration(self) -> Tensor:
        return self._normals("calibration")

    @cached_property
    def validation(self) -> Labelled:
        """The calibration normals, for the loss only."""
        return all_normal(self.calibration)

    @cached_property
    def test(self) -> Labelled:
        """Good images (label 0) and as many of each kind of defect (labels 1…), with masks (N, H, W)."""
        good, count = self._normals("test"), self.counts["defects"]
        drawn = [self.defective(kind, count, SEEDS["defects"]) for kind in self.defects]
        bad, masks = (torch.from_numpy(np.concatenate(part)) for part in zip(*drawn, strict=True))
        kinds = torch.arange(1, len(self.defects) + 1).repeat_interleave(count)
        labels = torch.cat([torch.zeros(len(good), dtype=torch.long), kinds])
        no_defect = torch.zeros(len(good), *masks.shape[1:], dtype=torch.bool)
        return Labelled(torch.cat([good, bad]), labels, labels > 0, list(torch.cat([no_defect, masks]).numpy()))

    def _normals(self, part: str) -> Tensor:
        return torch.from_numpy(self.normals(part, self.counts[part], SEEDS[part]))
