"""What is learned from held-out normals, and what must not be."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.miniatures import TinyTask, narrow_student

from kdad.data.preprocessing import Preprocessing
from kdad.detection.calibration import FittedStudent, calibrate, fit_statistics, largest_distance
from kdad.detection.conformal import lowest_fpr, p_values, realised_fpr
from kdad.detection.discrepancy import Observation, observe
from kdad.detection.heatmaps import HeatmapRenderer, MapNormalization
from kdad.detection.mahalanobis import Gaussian
from kdad.detection.normal_patches import worst_places
from kdad.detection.tiles import WholeImages
from kdad.scores import DISTANT_PEAK, LOCAL_DISTANCE, PEAK
from kdad.storage.layout import CROSS_FITTED, HELD_OUT, LEFT_OUT

TILER = WholeImages(Preprocessing(4, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


@pytest.fixture
def student():
    return narrow_student()


def test_what_is_read_does_not_depend_on_the_normals_that_calibrate_it(student, vgg_teacher, tiny_task):
    """But for a unit that all images share: else p-values of few normals would be too low."""
    read = []
    for held_out in tiny_task.calibration.split(5)[:2]:
        fitted = fit_statistics(student, vgg_teacher, tiny_task, DISTANT_PEAK)
        found = calibrate(fitted, vgg_teacher, [(fitted, held_out)], tiny_task.train, DISTANT_PEAK, 0)
        read.append(torch.cat([found.normalization.weights / found.normalization.std, found.distance_weight]))
    torch.testing.assert_close(read[0] / read[0].norm(), read[1] / read[1].norm())


def errors_of_normals(count: int, rng: np.random.Generator) -> list[torch.Tensor]:
    """Patch errors of normal images in two layers: images vary as a whole, and have heavy tails."""
    image = rng.lognormal(0, 0.4, (count, 1, 1))
    return [torch.from_numpy(image * rng.lognormal(0, 0.5, (count, 4, 4))).float() for _ in range(2)]


def peaks(errors: list[torch.Tensor], held_out: list[torch.Tensor]) -> np.ndarray:
    """The peaks of heatmaps read in units of held-out normals, as `calibrate` and `Detector` read them."""
    mean, std = (torch.stack([statistic(layer) for layer in held_out]) for statistic in (torch.mean, torch.std))
    normalization = MapNormalization(mean, std, std * torch.tensor([1.0, 0.5]))
    renderer = HeatmapRenderer(TILER, normalization.weights)
    return renderer.combine(normalization.standardise(errors)).amax((1, 2)).numpy()


@pytest.mark.parametrize(("normals", "times"), [(10, 600), (30, 300), (100, 200), (1000, 40)])
def test_the_false_positive_rate_is_held_however_few_normals_there_are(normals, times):
    rng, tested = np.random.default_rng(normals), 200
    found = []
    for _ in range(times):
        held_out, images = errors_of_normals(normals, rng), errors_of_normals(tested, rng)
        found.append(p_values(peaks(images, held_out), peaks(held_out, held_out)))
    for rate in (0.01, 0.05, 0.1):
        realised = np.mean(np.array(found) <= rate, axis=1)
        if rate < lowest_fpr(normals):
            assert not realised.any()
            continue
        exact = np.floor(rate * (normals + 1) + 1e-9) / (normals + 1)
        noise = 4 * realised.std() / np.sqrt(times)
        assert realised.mean() == pytest.approx(exact, abs=noise)
        low, high = realised_fpr(normals, rate)
        sampling = 2 * np.sqrt(rate * (1 - rate) / tested)
        assert np.mean((realised >= low - sampling) & (realised <= high + sampling)) > 0.9


def test_a_calibration_says_how_its_normals_were_held_out(student, vgg_teacher):
    task = TinyTask()
    fitted = FittedStudent(student, None)
    whole = calibrate(fitted, vgg_teacher, [(fitted, task.calibration)], task.train, PEAK, 0)
    parts = [(fitted, part) for part in task.calibration.split(10)]
    folded = calibrate(fitted, vgg_teacher, parts, task.train, PEAK, 0)
    assert (whole.kind, folded.kind) == (HELD_OUT, CROSS_FITTED)
    assert len(whole) == len(folded) == 20


def test_distances_of_a_fold_are_measured_by_what_the_others_taught(student, vgg_teacher):
    """By a Gaussian that knows the images they would be near, and new ones far: their p-values too low."""
    task = TinyTask()
    fitted = fit_statistics(student, vgg_teacher, task, DISTANT_PEAK)
    parts = task.train[:12], task.train[12:]
    folds = [
        (fit_statistics(student, vgg_teacher, SimpleNamespace(train=parts[1 - index]), DISTANT_PEAK), parts[index])
        for index in range(2)
    ]
    found = calibrate(fitted, vgg_teacher, folds, task.train, DISTANT_PEAK, 0)
    seen = calibrate(fitted, vgg_teacher, [(fitted, task.train)], task.train, DISTANT_PEAK, 0)
    assert found.distances.mean() > 1.5 * seen.distances.mean()
    for tensor, of_all in zip(found.gaussian.packed().values(), fitted.gaussian.packed().values(), strict=True):
        assert torch.equal(tensor, of_all)


def test_patches_are_those_of_all_normals_each_compared_with_the_others(student, vgg_teacher):
    task = TinyTask()
    fitted = fit_statistics(student, vgg_teacher, task, LOCAL_DISTANCE)
    found = calibrate(fitted, vgg_teacher, [(fitted, task.calibration)], task.train, LOCAL_DISTANCE, 0)
    normals = torch.cat([task.train, task.validation.images[~task.validation.anomalous]])
    assert (found.kind, len(found), len(found.layer_errors)) == (LEFT_OUT, len(normals), len(task.calibration))
    tiler = WholeImages(vgg_teacher.preprocessing)
    known = worst_places(observe(student, vgg_teacher, normals, tiler, patches=found.patches).distances)
    assert known.sum(1).mean() < found.local_distances.sum(1).mean()  # those were not compared with themselves


def test_of_tiles_the_farthest_counts():
    gaussian = Gaussian(torch.zeros(2), torch.eye(2))
    summaries = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 0.0]]])
    assert largest_distance(gaussian, Observation(torch.empty(2, 1, 2), summaries, [])).tolist() == [25, 1]


def test_of_very_many_images_some_are_summarised_that_are_chosen_evenly(student, vgg_teacher, monkeypatch):
    train = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 3, 32, 32).contiguous()
    seen = []
    summary = vgg_teacher.network.summary
    monkeypatch.setattr("kdad.detection.calibration.MAX_GAUSSIAN_IMAGES", 4)
    monkeypatch.setattr(
        vgg_teacher.network, "summary", lambda features: seen.append(len(features[0])) or summary(features)
    )
    gaussian = fit_statistics(student, vgg_teacher, SimpleNamespace(train=train), DISTANT_PEAK).gaussian
    assert sum(seen) == 4
    few = fit_statistics(student, vgg_teacher, SimpleNamespace(train=train[[0, 10, 19, 29]]), DISTANT_PEAK).gaussian
    torch.testing.assert_close(gaussian.mean, few.mean)
