"""What several tests of the benchmarks need."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def defect_folder(tmp_path):
    """Twelve grey images to train on, four to test on, two with a white square and its mask."""
    root, rng = tmp_path / "screws", np.random.default_rng(0)
    for place, count in (("train/good", 12), ("test/good", 4), ("test/hole", 2)):
        (root / place).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(90, 110, (40, 40, 3), dtype=np.uint8)
            if place == "test/hole":
                pixels[10:22, 10:22] = 255
            Image.fromarray(pixels).save(root / place / f"{index}.png")
    (root / "ground_truth" / "hole").mkdir(parents=True)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:22, 10:22] = 255
    for index in range(2):
        Image.fromarray(mask).save(root / "ground_truth" / "hole" / f"{index}_mask.png")
    return root
