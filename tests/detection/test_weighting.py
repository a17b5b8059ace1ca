"""What counts how much is learned from pseudo-anomalies of training images."""

import numpy as np
import pytest
import torch
from helpers.miniatures import TinyTask, narrow_student

from kdad.data.preprocessing import Preprocessing
from kdad.detection import weighting
from kdad.detection.discrepancy import Observation
from kdad.detection.weighting import SyntheticPairs, logistic_weights

PIXELS = Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def pairs(peak: float, distance: float, images: int = 200) -> SyntheticPairs:
    """Pairs whose odd image has an error higher by `peak` in one patch, and a summary off by `distance`."""
    rng = np.random.default_rng(0)
    errors = torch.from_numpy(rng.normal(0, 1, (2, images, 8, 8))).float()
    summaries = torch.from_numpy(rng.normal(0, 1, (2, images, 1, 4))).float()
    masks = torch.zeros(images, 8, 8, dtype=torch.bool)
    masks[:, 2, 5] = True
    errors[1][masks] += peak
    summaries[1] += distance
    table = torch.zeros(images, 1, 2)
    normal, anomalous = (Observation(table, summary, [error]) for summary, error in zip(summaries, errors, strict=True))
    return SyntheticPairs(normal, anomalous, masks, PIXELS)


def test_layers_that_find_what_was_blended_in_count_and_others_do_not():
    rng = np.random.default_rng(0)
    pasted = rng.random(4000) < 0.2
    points = rng.normal(size=(4000, 3)) + np.array([2.0, 0.0, 0.0]) * pasted[:, None]
    weights = logistic_weights(points, pasted)
    assert weights[0] > 1
    assert weights[1:].abs().max() < 0.2


def test_the_layer_weights_read_errors_as_they_are():
    found = pairs(peak=5, distance=0)
    both = (found.normal, found.anomalous)
    normal, anomalous = (Observation(o.errors, o.summaries, [3 + 10 * o.maps[0]]) for o in both)
    shifted = SyntheticPairs(normal, anomalous, found.masks, PIXELS)
    torch.testing.assert_close(10 * shifted.layer_weights(), found.layer_weights(), rtol=1e-3, atol=0)


def test_a_distance_counts_as_far_as_it_tells():
    one = torch.ones(1)
    none, some = pairs(peak=5, distance=0).distance_weight(one), pairs(peak=2, distance=0.7).distance_weight(one)
    assert none < 0.3 * some
    assert some > 0


def test_a_distance_that_speaks_for_anomalies_being_nearer_does_not_count():
    found = pairs(peak=3, distance=2)
    swapped = SyntheticPairs(
        found.normal._replace(summaries=found.anomalous.summaries),
        found.anomalous._replace(summaries=found.normal.summaries * 0.2 + 2),
        found.masks,
        PIXELS,
    )
    assert swapped.distance_weight(torch.ones(1)) == 0


def test_a_distance_never_counts_more_than_the_peak():
    found = pairs(peak=0, distance=3)
    weight = found.distance_weight(torch.ones(1))
    peaks = found.normal.maps[0].flatten(1).amax(1)
    distances = found._distances()[0].log()
    assert (weight * distances).std() == pytest.approx(peaks.std().item(), rel=0.2)


def test_images_from_all_over_the_training_set_are_taken(vgg_teacher, tiny_task, monkeypatch):
    """Of tiled images, the first few hundred training images are tiles of three of them."""
    chosen, draw = [], weighting.draw_pseudo_anomalies
    monkeypatch.setattr(weighting, "draw_pseudo_anomalies", lambda images: (chosen.append(images), draw(images))[1])
    SyntheticPairs.of(narrow_student(), vgg_teacher, tiny_task.train, most=4)
    rows = [
        next(i for i, image in enumerate(tiny_task.train) if np.array_equal(image.permute(1, 2, 0).numpy(), picked))
        for picked in chosen[0]
    ]
    assert rows == [0, 8, 15, 23]


@pytest.mark.parametrize("images", [5, 8])
def test_few_images_give_finite_weights(vgg_teacher, images):
    found = SyntheticPairs.of(narrow_student(), vgg_teacher, TinyTask().train[:images], 300)
    weights = found.layer_weights()
    assert weights.isfinite().all()
    assert found.distance_weight(weights).isfinite()
