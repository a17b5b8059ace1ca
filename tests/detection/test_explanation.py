"""A score as the sum of its parts, and maps that add up to each."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdad.detection.detector import Detector
from kdad.detection.explanation import distance_map, explain, score_map
from kdad.detection.mahalanobis import Gaussian
from kdad.scores import DISTANT_ERROR, DISTANT_PEAK, LAST_LAYER, MKD, PEAK


@pytest.fixture(scope="module")
def detector(student_folder, vgg_teacher):
    return Detector.load(student_folder, teacher=vgg_teacher, device="cpu")


def scored_by(detector: Detector, score: str) -> Detector:
    """The same student, whose default score is another."""
    weight = torch.tensor([0.7]) if score == DISTANT_PEAK else None
    calibration = replace(detector.calibration, distance_weight=weight)
    return Detector(replace(detector.config, score=score), detector.student, detector.teacher, calibration)


def image(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.mark.parametrize("score", [DISTANT_ERROR, DISTANT_PEAK, LAST_LAYER, MKD, PEAK])
def test_an_explanation_adds_up_to_the_score_and_begins_with_what_lifts_it_most(detector, score):
    detector = scored_by(detector, score)
    prediction, parts = detector.predict(image()), explain(detector, image())
    assert sum(part.value for part in parts) == pytest.approx(float(prediction.score[0]), abs=1e-4)
    excesses = [part.excess for part in parts]
    assert excesses == sorted(excesses, reverse=True)
    for part in parts:
        assert part.normals.shape == (len(detector.calibration),)
        if part.heatmap is not None:
            drawn = part.heatmap.max() if part.name == "peak" else part.heatmap.mean()
            assert drawn == pytest.approx(part.quantity, rel=0.02)
            assert part.colour_range[0] < part.colour_range[1]


def test_of_places_the_mean_of_the_worst_is_what_a_part_adds(place_student_folder, vgg_teacher):
    detector = Detector.load(place_student_folder, teacher=vgg_teacher, device="cpu")
    prediction, parts = detector.predict(image()), explain(detector, image(), size=(32, 32))
    assert {part.name for part in parts} == {"nearest", "gaussian"}
    assert sum(part.value for part in parts) == pytest.approx(float(prediction.score[0]), abs=1e-4)
    assert sum(part.heatmap for part in parts) == pytest.approx(prediction.heatmap[0], abs=1e-4)
    for part in parts:
        assert part.normals.shape == (len(detector.calibration),) == (44,)
        assert part.colour_range == detector.colour_range


@pytest.mark.parametrize("unit_length", [False, True])
@pytest.mark.parametrize("name", ["vgg_teacher", "vit_teacher", "timm_teacher"])
def test_what_patches_give_has_the_summary_as_its_mean(request, monkeypatch, name, unit_length):
    teacher = request.getfixturevalue(name)
    monkeypatch.setattr(teacher.network, "unit_length", unit_length)
    features = teacher(teacher.preprocessing(image()[None]))
    parts, summary = teacher.network.summarised(features), teacher.network.summary(features)
    torch.testing.assert_close(parts.mean(1), summary, rtol=1e-4, atol=1e-5)
    assert torch.allclose(summary.norm(dim=1), torch.ones(1)) == unit_length


def test_shares_have_the_distance_as_their_mean():
    torch.manual_seed(0)
    gaussian, parts = Gaussian.fit([torch.randn(40, 6)]), torch.randn(3, 5, 6)
    torch.testing.assert_close(gaussian.shares(parts).mean(1), gaussian.distance(parts.mean(1)), rtol=1e-3, atol=1e-4)


def test_the_part_that_is_far_from_normals_has_the_largest_share():
    torch.manual_seed(0)
    gaussian, parts = Gaussian.fit([torch.randn(40, 6)]), torch.randn(3, 5, 6)
    parts[:, 2] += 30
    assert gaussian.shares(parts).argmax(1).tolist() == [2, 2, 2]


def test_a_tiled_student_is_explained_over_the_whole_image(detector):
    tiled = Detector(replace(detector.config, tile_size=32), detector.student, detector.teacher, detector.calibration)
    large = torch.cat([image(seed) for seed in range(3)], 2)
    for part in explain(tiled, large):
        assert part.heatmap.shape == (32, 96)


def test_without_calibration_or_distance_there_is_a_reason_and_no_map(detector, refusal):
    bare = Detector(detector.config, detector.student, detector.teacher, None)
    assert "has no normals to explain" in refusal(explain, bare, image())
    assert "does not read how far" in refusal(distance_map, bare, image()[None], (32, 32))


@pytest.mark.parametrize("score", [DISTANT_ERROR, DISTANT_PEAK, LAST_LAYER, PEAK])
def test_of_two_maps_of_a_score_the_brighter_one_is_that_of_the_higher_score(detector, score):
    detector = scored_by(detector, score)
    scores, brightness = [], []
    for level in range(6):
        pixels = (image(3) * (level / 5)).byte()
        prediction = detector.predict(pixels)
        shown = score_map(detector, pixels, prediction)
        scores.append(float(prediction.score[0]))
        of_peak = score in (DISTANT_PEAK, PEAK)
        brightness.append(shown.heatmap.max() if of_peak else np.log(np.exp(shown.heatmap).mean()))
        assert shown.colour_range[0] < shown.colour_range[1]
    np.testing.assert_allclose(np.diff(brightness), np.diff(scores), atol=0.02)


def test_a_score_whose_parts_have_no_map_has_none(detector):
    detector = scored_by(detector, MKD)
    assert score_map(detector, image()) is None
