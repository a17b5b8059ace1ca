"""What is found of drawn defects: counted by kind and size, and never with the image itself in memory."""

import shutil

import numpy as np
import pytest
import torch
from helpers.miniatures import TinyTask

from kdad.data.pseudo_anomalies import KINDS
from kdad.detection.detector import Detector
from kdad.evaluation import sensitivity
from kdad.evaluation.sensitivity import DrawnDefects, draw_and_judge, drawing, try_drawn_defects
from kdad.scores import LOCAL_DISTANCE
from kdad.storage import student_folder as storage


@pytest.fixture
def task():
    made = TinyTask()
    made.score = LOCAL_DISTANCE
    return made


@pytest.fixture
def folder(place_student_folder, tmp_path):
    return shutil.copytree(place_student_folder, tmp_path / "student")


@pytest.fixture
def detector(folder, vgg_teacher):
    return Detector.load(folder, teacher=vgg_teacher, device="cpu")


def drawn(normals: int = 200) -> DrawnDefects:
    kinds = ["spot", "spot", "crack", "blur"]
    found = np.array([True, True, True, False])
    return DrawnDefects(kinds, np.array([0.001, 0.02, 0.005, 0.3]), found, 0.05, normals)


def test_found_defects_are_counted_by_kind_and_by_size():
    assert {kind: of for kind, of in drawn().of_kinds.items() if of[1]} == {
        "spot": (2, 2),
        "crack": (1, 1),
        "blur": (0, 1),
    }
    assert drawn().of_sizes == {"under 1 %": (2, 2), "1 to 10 %": (1, 1), "over 10 %": (0, 1)}
    first, second = drawn().lines
    assert first.startswith("Of 4 defects drawn into normal images, 3 are found at 5 % false alarms")
    assert "blur (0 of 1)" in second and "crack" not in second


def test_what_would_help_depends_on_how_many_normals_there_are():
    assert "More normal images than 40" in drawn(40).lines[1]
    assert "larger image size" in drawn(200).lines[1]


def test_a_student_is_tried_on_every_kind_and_says_so_on_its_card(detector, task, folder):
    lines = try_drawn_defects(task, detector, folder)
    tried = storage.load_sensitivity(folder)
    assert tried["lines"] == lines
    assert set(tried["kinds"]) == set(KINDS)
    assert {of for _, of in tried["kinds"].values()} == {sensitivity.DRAWN}
    assert lines[0] in (folder / "README.md").read_text()


def test_an_image_is_not_compared_with_itself(detector, task, monkeypatch):
    """Undamaged, a normal in memory would have no distance at all."""
    monkeypatch.setattr(sensitivity, "draw_pseudo_anomalies", lambda images, seed: _undamaged(images))
    judged = []
    predict = Detector.predict

    def watched(self, *given, **options):
        judged.append(predict(self, *given, **options))
        return judged[-1]

    monkeypatch.setattr(Detector, "predict", watched)
    result = draw_and_judge(detector, task)
    nearest = np.concatenate([each.measurement.local_distances[0] for each in judged])
    assert nearest.min() > detector.predict(task.train[:1]).measurement.local_distances[0].max()
    assert len(result.found) == len(nearest)


def _undamaged(images):
    from kdad.data.pseudo_anomalies import PseudoAnomalies

    return PseudoAnomalies(images, np.ones(images.shape[:3], bool), ["spot"] * len(images))


def test_other_scores_are_not_tried(student_folder, vgg_teacher, tmp_path):
    detector, task = Detector.load(student_folder, teacher=vgg_teacher, device="cpu"), TinyTask()
    assert not try_drawn_defects(task, detector, tmp_path)
    assert not drawing(task)
    assert not list(tmp_path.iterdir())


def test_memory_without_some_normals_keeps_the_others(detector):
    patches = detector.calibration.patches
    kept = patches.without([0, 2]).nearest.memory
    torch.testing.assert_close(kept[:, :, 0], patches.nearest.memory[:, :, 1])
    assert kept.shape[2] == patches.nearest.memory.shape[2] - 2
