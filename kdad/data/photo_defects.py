"""`photo-textures`: the built-in task of photographed textures with exact masks."""

import numpy as np

from kdad.data import photo_textures
from kdad.data.datasets import PHOTO_TEXTURES
from kdad.data.rendered_defects import RenderedDefectsTask
from kdad.scores import DISTANT_PEAK


class PhotoTexturesTask(RenderedDefectsTask):
    """Normals of one photographed texture at 256 px; the test split also contains defects on it."""

    dataset = PHOTO_TEXTURES
    score = DISTANT_PEAK  # crops have no positions to compare
    classes, defects = photo_textures.CLASSES, tuple(photo_textures.DEFECTS)
    counts = {"train": 240, "calibration": 100, "test": 100, "defects": 20}

    def fingerprint(self, part: str) -> str:
        return photo_textures.fingerprint(f"{self.dataset} {part} {self.counts}")

    def normals(self, part: str, count: int, seed: int) -> np.ndarray:
        return photo_textures.normals(self.normal_class, part, count, seed)

    def defective(self, kind: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return photo_textures.defective(self.normal_class, kind, count, seed)
