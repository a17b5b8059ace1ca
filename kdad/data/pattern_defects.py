"""`patterns-defects`: the built-in task with exact masks."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kdad.data import patterns
from kdad.data.task import Labelled, Task, all_normal
from kdad.errors import one_of
from kdad.scores import DISTANT_PEAK


class PatternDefectsTask(Task):
    """Normals of one texture; the test split also contains defects on it."""

    dataset = "patterns-defects"
    score = DISTANT_PEAK  # textures have no positions to compare
    classes = patterns.CLASSES
    kinds = ("good", *patterns.DEFECTS)
    counts = {"train": 1080, "calibration": 200, "test": 200, "defects": 50}

    def __init__(self, normal_class: str):
        self.normal_index = self.classes.index(one_of("class of patterns-defects", normal_class, self.classes))

    @property
    def normal_class(self) -> str:
        return self.classes[self.normal_index]

    @cached_property
    def train(self) -> Tensor:
        return self._normals("train", seed=2)

    @property
    def train_size(self) -> int:
        return self.counts["train"]

    def fingerprint(self, part: str) -> str:
        return patterns.fingerprint(f"{self.dataset} {part} {self.counts}")

    @cached_property
    def calibration(self) -> Tensor:
        return self._normals("calibration", seed=3)

    @cached_property
    def validation(self) -> Labelled:
        """The calibration normals, for the loss only."""
        return all_normal(self.calibration)

    @cached_property
    def test(self) -> Labelled:
        """200 good images (label 0) and 50 of each defect (labels 1…), with masks (N, 32, 32)."""
        good = self._normals("test", seed=4)
        drawn = [patterns.defects(self.normal_class, kind, self.counts["defects"], 5) for kind in patterns.DEFECTS]
        bad, masks = (torch.from_numpy(np.concatenate(part)) for part in zip(*drawn, strict=True))
        kinds = torch.arange(1, len(patterns.DEFECTS) + 1).repeat_interleave(self.counts["defects"])
        labels = torch.cat([torch.zeros(len(good), dtype=torch.long), kinds])
        no_defect = torch.zeros(len(good), *masks.shape[1:], dtype=torch.bool)
        return Labelled(torch.cat([good, bad]), labels, labels > 0, list(torch.cat([no_defect, masks]).numpy()))

    def _normals(self, part: str, seed: int) -> Tensor:
        return torch.from_numpy(patterns.normals(self.normal_class, self.counts[part], seed))
