"""Normals that vary in hardly anything: statistics of them must stay finite, and find what is different."""

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kdad.data import folders
from kdad.data.folders import FolderTask
from kdad.detection.detector import Detector
from kdad.networks.recipes import Recipe
from kdad.training.distillation import train_student

SIDE = 32


def grey_levels(index: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), index, np.uint8)


def black_but_one_pixel(index: int) -> np.ndarray:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[index, 0] = 1
    return pixels


def black_or_white(index: int) -> np.ndarray:
    pixels = np.full((SIDE, SIDE, 3), 255 * (index % 2), np.uint8)
    pixels[0, 0, 0] = index
    return pixels


def all_but_one_alike(index: int) -> np.ndarray:
    return grey_levels(120) if index else np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("tile_size", "normal"),
    [
        *((0, normal) for normal in (grey_levels, black_but_one_pixel, black_or_white, all_but_one_alike)),
        *((SIDE, normal) for normal in (black_but_one_pixel, all_but_one_alike)),
    ],
)
def test_training_ends_with_finite_scores_that_find_noise(tile_size, normal, timm_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "TRAINING_TILES", 12)
    monkeypatch.setattr(folders, "FOLDS", 2)
    root = tmp_path / "normals"
    root.mkdir()
    for index in range(12):
        about = PngInfo()
        about.add_text("number", str(index))  # files of their own, even where their pixels are not
        Image.fromarray(normal(index)).save(root / f"{index}.png", pnginfo=about)
    task = FolderTask(root, timm_teacher.preprocessing, tile_size=tile_size)
    recipe = Recipe(epochs=1, batch_size=12, min_steps=2)
    folder = train_student(task, timm_teacher, tmp_path / "out", recipe=recipe, device="cpu")
    noise = np.random.default_rng(1).integers(0, 256, (1, 3, SIDE, SIDE), dtype=np.uint8)
    known = normal(5).transpose(2, 0, 1)[None].copy()
    images = torch.from_numpy(np.concatenate([noise, known]))
    prediction = Detector.load(folder, teacher=timm_teacher, device="cpu").predict(images)
    assert np.isfinite(prediction.score).all() and np.isfinite(prediction.heatmap).all()
    assert prediction.score[0] > prediction.score[1]
