"""`photo-textures`: crops of free photographs, parts that share no pixel, and masks of what was drawn."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdad.data import photo_textures
from kdad.data.datasets import DATASETS, at_hand, class_names
from kdad.data.loading import load_task
from kdad.data.photo_defects import PhotoTexturesTask
from kdad.data.photo_textures import CLASSES, DEFECTS, PHOTOGRAPHS
from kdad.networks.teachers.registry import default_image_size, default_teacher


class SmallTask(PhotoTexturesTask):
    counts = {"train": 6, "calibration": 4, "test": 3, "defects": 2}


def test_the_name_leads_to_the_task():
    assert "photo-textures" in DATASETS and at_hand("photo-textures", ("train", "test"))
    assert class_names("photo-textures") == CLASSES
    assert isinstance(load_task("photo-textures", "brick"), PhotoTexturesTask)
    assert default_teacher("photo-textures") == "lite0-imagenet"
    assert default_image_size("lite0-imagenet", "photo-textures") is None  # its own, as large as the crops
    assert default_image_size("lite0-imagenet", "patterns-defects") == 160


def test_an_unknown_texture_is_one_line(refusal):
    assert "choose one of: brick, grass, gravel" in refusal(load_task, "photo-textures", "bricks")


@pytest.mark.parametrize("name", CLASSES)
def test_the_parts_are_as_counted_and_the_same_each_time(name):
    task, again = SmallTask(name), SmallTask(name)
    assert task.train.shape == (6, 3, 256, 256) and task.train.dtype == torch.uint8
    assert len(task.calibration) == 4
    assert len(task.test.images) == 3 + 2 * len(DEFECTS)
    assert task.kinds == ("good", *DEFECTS)
    assert (task.test.anomalous == (task.test.labels > 0)).all()
    assert (task.test.images == again.test.images).all()
    assert task.fingerprint("train") == again.fingerprint("train") != task.fingerprint("test")
    assert task.fingerprint("train") != PhotoTexturesTask(name).fingerprint("train")


def test_training_crops_share_no_pixel_with_the_others(monkeypatch):
    """Of a photograph that is black on the left, training crops alone are black; of other parts, none is."""
    halves = np.zeros((512, 512), np.float32)
    halves[:, 256:] = 200
    monkeypatch.setattr(photo_textures, "_photograph", lambda name: Image.fromarray(halves))
    brightest = {part: photo_textures.normals("grass", part, 40, 0).max((1, 2, 3)) for part in ("train", "test")}
    darkest = photo_textures.normals("grass", "calibration", 40, 0).min((1, 2, 3))
    assert brightest["train"].max() < 40
    assert min(brightest["test"].min(), darkest.min()) > 150


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_mask_covers_what_was_changed(kind, monkeypatch):
    """The same crop, drawn with and without the defect, differs within the mask and at its soft edge."""
    monkeypatch.setattr(photo_textures, "NOISE", 0.0)
    cover, change = DEFECTS[kind]
    images, masks = photo_textures.defective("gravel", kind, 8, 7)
    monkeypatch.setitem(
        photo_textures.DEFECTS, kind, (cover, lambda image, name, rng: [change(image, name, rng), image][1])
    )
    clean, _ = photo_textures.defective("gravel", kind, 8, 7)
    from scipy.ndimage import binary_dilation

    for image, other, mask in zip(images, clean, masks, strict=True):
        changed = np.abs(image.astype(int) - other).max(0)
        assert 0 < mask.mean() < 0.12
        assert not changed[~binary_dilation(mask, iterations=8)].any()
        assert np.median(changed[mask]) > 15


def test_every_photograph_has_its_source_and_licence():
    said = (PHOTOGRAPHS / "SOURCES.txt").read_text()
    files = [file for file in PHOTOGRAPHS.iterdir() if file.suffix != ".txt"]
    assert len(files) == 7
    assert sum(file.stat().st_size for file in files) < 2e6
    for file in files:
        (line,) = [line for line in said.splitlines() if line.startswith(file.name)]
        with Image.open(file) as image:
            assert f"{image.width} × {image.height}" in line
        assert "CC0" in line or "public domain" in line


@pytest.mark.slow
def test_the_shipped_student_is_of_these_images_and_finds_what_is_drawn():
    from helpers.miniatures import ROOT

    from kdad.detection.detector import Detector

    folder = ROOT / "trained_students" / "photo-textures" / "lite0-imagenet" / "brick"
    detector = Detector.load(folder, device="cpu")
    task = PhotoTexturesTask("brick")
    assert detector.config.images_sha256 == task.fingerprint("train")
    good = torch.from_numpy(photo_textures.normals("brick", "test", 20, 900))
    assert detector.predict(good).is_anomaly.mean() <= 0.2
    for kind in DEFECTS:
        images, masks = photo_textures.defective("brick", kind, 4, 900)
        prediction = detector.predict(torch.from_numpy(images))
        assert prediction.is_anomaly.all()
        for heatmap, mask in zip(prediction.heatmap, masks, strict=True):
            assert heatmap[mask].mean() > 3 * heatmap[~mask].mean()
