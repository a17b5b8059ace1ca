"""The registry of scores: what each reads, and that it is the sum of its parts."""

import numpy as np
import pytest
import torch

from kdad.detection.explanation import MAPS
from kdad.scores import (
    DISTANCE,
    DISTANCE_WEIGHT,
    DISTANT_ERROR,
    DISTANT_PEAK,
    LAST_LAYER,
    LOCAL_DISTANCE,
    LOCAL_DISTANCES,
    MKD,
    PEAK,
    SCORES,
    Measurement,
    layer_scores,
    published_score,
    score_named,
)

ERRORS = torch.tensor(
    [[[0.1, 10.0], [0.2, 20.0], [0.3, 30.0], [0.4, 40.0]], [[0.0, 0.0], [0.5, 0.0], [0.0, 2.0], [1.0, 1.0]]]
)


def measured(seed: int = 0, images: int = 7) -> Measurement:
    rng = np.random.default_rng(seed)
    errors, distance = rng.uniform(0, 2, (images, 4, 2)), rng.uniform(0, 9, images)
    maps = (rng.normal(size=(images, 4, 4)), rng.normal(size=(images, 2, 2)))
    local = tuple(rng.normal(size=(2, images)))
    weight = np.array([0.3])
    return Measurement(errors, distance, rng.normal(size=images), 0.01, weight, maps, local, maps[:1] * 2)


def test_layer_scores_weigh_the_mse():
    expected = torch.tensor([[0.2, 0.4, 0.6, 0.8], [0.0, 0.5, 0.02, 1.01]])
    torch.testing.assert_close(layer_scores(ERRORS, 0.01), expected)


def test_the_published_score_sums_the_last_three_layers():
    assert published_score(ERRORS, 0.01).tolist() == pytest.approx([1.8, 1.53])


def test_scores_by_name():
    distance, peak, weight = np.array([0.5, 2.0]), np.array([3.0, 5.0]), np.array([0.5])
    local = (np.array([1.0, 2.0]), np.array([0.5, -1.0]))
    seen = Measurement(ERRORS.numpy(), distance, peak, 0.01, weight, local_distances=local)
    read = {name: score(seen).tolist() for name, score in SCORES.items()}
    assert read[DISTANT_ERROR] == pytest.approx(np.log([0.4 * 0.5, 1.0 * 2]))
    assert read[LAST_LAYER] == pytest.approx([0.4, 1.0])
    assert read[MKD] == pytest.approx([1.8, 1.53])
    assert read[PEAK] == [3, 5]
    assert read[LOCAL_DISTANCE] == [1.5, 1]
    assert read[DISTANT_PEAK] == pytest.approx([3 + 0.5 * np.log(0.5), 5 + 0.5 * np.log(2)])


@pytest.mark.parametrize("score", SCORES.values(), ids=list(SCORES))
def test_numpy_and_torch_agree(score):
    arrays = measured()
    tensors = Measurement(*map(torch.from_numpy, (arrays.layer_errors, arrays.distance, arrays.peak)), 0.01,
                          torch.from_numpy(arrays.distance_weight),
                          local_distances=tuple(map(torch.from_numpy, arrays.local_distances)))  # fmt: skip
    np.testing.assert_allclose(score(tensors).numpy(), score(arrays))


@pytest.mark.parametrize("score", SCORES.values(), ids=list(SCORES))
def test_every_part_is_said_in_words_and_has_a_map_unless_it_is_a_layer(score):
    assert score.description.endswith(".") and score.selection
    for part in score.parts_of(measured()):
        assert part.title and part.unit
        assert part.name in MAPS or part.name.startswith("layer ")


def test_a_score_says_which_statistics_of_normals_it_needs():
    assert {name: set(score.needs) for name, score in SCORES.items()} == {
        DISTANT_ERROR: {DISTANCE},
        DISTANT_PEAK: {DISTANCE, DISTANCE_WEIGHT},
        LOCAL_DISTANCE: {LOCAL_DISTANCES},
        LAST_LAYER: set(),
        MKD: set(),
        PEAK: set(),
    }


def test_a_perfect_copy_still_has_a_score():
    perfect = Measurement(np.zeros((1, 4, 2)), np.ones(1), np.zeros(1), 0.01)
    assert np.isfinite(score_named(DISTANT_ERROR)(perfect))


def test_an_unknown_score_is_refused_by_name(refusal):
    assert "unknown score 'best'; choose one of: distant-error, " in refusal(score_named, "best")


def test_measurements_are_put_together_and_taken_apart():
    one, other = measured(0, 3), measured(1, 5)
    both = Measurement.concatenated([one, other])
    assert [layer.shape for layer in both.patch_maps] == [(8, 4, 4), (8, 2, 2)]
    for part, kept in ((one, slice(0, 3)), (other, slice(3, 8))):
        again = both[kept]
        for name in ("layer_errors", "distance", "peak"):
            np.testing.assert_array_equal(getattr(again, name), getattr(part, name))
        for name, index in (("patch_maps", 1), ("local_distances", 1), ("distance_maps", 0)):
            np.testing.assert_array_equal(getattr(again, name)[index], getattr(part, name)[index])
        assert (again.mse_weight, again.distance_weight) == (part.mse_weight, one.distance_weight)
