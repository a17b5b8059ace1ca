"""`patterns-defects`: the built-in task of procedural textures with exact masks."""

import numpy as np

from kdad.data import patterns
from kdad.data.rendered_defects import RenderedDefectsTask
from kdad.scores import DISTANT_PEAK


class PatternDefectsTask(RenderedDefectsTask):
    """Normals of one texture of 32 px; the test split also contains defects on it."""

    dataset = "patterns-defects"
    score = DISTANT_PEAK  # textures have no positions to compare
    classes, defects = patterns.CLASSES, patterns.DEFECTS
    counts = {"train": 1080, "calibration": 200, "test": 200, "defects": 50}

    def fingerprint(self, part: str) -> str:
        return patterns.fingerprint(f"{self.dataset} {part} {self.counts}")

    def normals(self, part: str, count: int, seed: int) -> np.ndarray:
        return patterns.normals(self.normal_class, count, seed)

    def defective(self, kind: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return patterns.defects(self.normal_class, kind, count, seed)
