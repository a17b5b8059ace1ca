"""Predicting through the app's caches gives what the detector gives, and notices changed files."""

import shutil

import numpy as np
import pytest
import torch

from kdad.detection.detector import Detector
from ui.inspect import detectors
from ui.shared import student_index
from ui.shared.pictures import Picture
from ui.shared.samples import of_pattern

DOTS, STRIPES = "patterns/tiny-vgg/dots", "patterns/tiny-vgg/stripes"


@pytest.fixture
def root(monkeypatch, students_root, tmp_path):
    shutil.copytree(students_root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("KDAD_STUDENTS", str(tmp_path))
    return tmp_path


def cached(key: str = DOTS) -> detectors.CachedDetector:
    return detectors.cached_detector(student_index.find()[0][key])


def test_a_cached_detector_says_what_the_detector_says(root):
    detector = Detector.load(root / DOTS)
    for picture in of_pattern("dots", 0):
        seen, expected = cached().predict(picture), detector.predict([picture.pixels])
        np.testing.assert_allclose(seen.score, expected.score, rtol=1e-5)
        assert seen.p_value == expected.p_value
        heatmap = seen.heatmap_at(32, 32)[0]
        np.testing.assert_allclose(heatmap, expected.heatmap[0], rtol=1e-5)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("side", "threads"), [(32, 1), (200, 2)])
def test_only_what_is_small_is_computed_by_one_thread(root, monkeypatch, two_threads, side, threads):
    seen, predict = [], Detector.predict

    def watched(*given, **options):
        seen.append(torch.get_num_threads())
        return predict(*given, **options)

    monkeypatch.setattr(Detector, "predict", watched)
    cached().predict(Picture.of("noise", np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)))
    assert seen == [threads]


def test_students_of_one_teacher_share_it(root):
    assert cached(DOTS).detector.teacher is cached(STRIPES).detector.teacher


def test_a_student_is_loaded_once_and_again_when_its_files_change(root):
    first = cached()
    assert cached().detector is first.detector
    (root / DOTS / "calibration.safetensors").unlink()
    assert cached().detector is not first.detector
    assert cached().detector.calibration is None


def test_a_threshold_agrees_with_the_detector_s_verdict(root):
    picture = of_pattern("stripes", 0)[0]
    for fpr in (0.05, 0.1, 0.5):
        called = detectors.verdict(cached().detector, cached().predict(picture), fpr)
        assert called == Detector.load(root / DOTS).predict([picture.pixels], fpr=fpr).is_anomaly


def test_a_ranking_is_in_order_and_in_each_student_s_own_units(root):
    picture = of_pattern("dots", 0)[0]
    rows = detectors.rank([cached(DOTS), cached(STRIPES)], picture)
    assert sorted(row["key"] for row in rows) == [DOTS, STRIPES]
    deviations = [row["deviations"] for row in rows]
    assert deviations == sorted(deviations)
    own = next(row for row in rows if row["key"] == DOTS)
    normals = cached(DOTS).detector.calibration_scores.astype(float)
    assert own["score"] == cached(DOTS).predict(picture).score[0]
    assert own["deviations"] == pytest.approx((own["score"] - normals.mean()) / normals.std(), rel=1e-5)


def test_students_without_calibration_are_left_out_of_a_ranking(root):
    (root / DOTS / "calibration.safetensors").unlink()
    assert [row["key"] for row in detectors.rank([cached(DOTS), cached(STRIPES)], of_pattern("dots", 0)[0])] == [
        STRIPES
    ]
    assert detectors.rank([cached(DOTS)], of_pattern("dots", 0)[0]) == []
