import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from kdad.errors import UserError
from kdad.evaluation.metrics import auroc, pixel_ranking, pro, roc_curve


def random_scores(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    anomalous = rng.random(n) < 0.4
    return rng.normal(anomalous, 1), anomalous


def pairwise_auroc(scores: np.ndarray, anomalous: np.ndarray) -> float:
    """The share of (anomalous, normal) pairs in the right order; ties count half."""
    difference = scores[anomalous][:, None] - scores[~anomalous][None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


@pytest.mark.parametrize("scale", [1, 100, -1], ids=["plain", "above 1", "negated"])
@pytest.mark.parametrize("digits", [8, 0], ids=["distinct", "ties"])
def test_auroc_equals_scikit_learn_and_the_pairwise_definition(scale, digits):
    scores, anomalous = random_scores(seed=1)
    scores = scale * scores.round(digits)
    assert auroc(scores, anomalous) == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-12)
    assert auroc(scores, anomalous) == pytest.approx(pairwise_auroc(scores, anomalous), abs=1e-12)


def test_auroc_by_hand():
    assert auroc([1, 2, 3, 4], [0, 0, 1, 1]) == 1
    assert auroc([4, 3, 2, 1], [0, 0, 1, 1]) == 0
    assert auroc([5, 5, 5, 5], [0, 0, 1, 1]) == 0.5
    assert auroc([10, 30, 20, 40], [0, 0, 1, 1]) == 0.75


def test_auroc_of_float32_scores_does_not_merge_close_ones():
    scores = np.float32([1, np.nextafter(np.float32(1), np.float32(2))])
    assert auroc(scores, [False, True]) == 1


@pytest.mark.parametrize("metric", [auroc, roc_curve])
@pytest.mark.parametrize("anomalous", [[True, True], [False, False]])
def test_one_class_is_an_error(metric, anomalous):
    with pytest.raises(UserError, match="both normal and anomalous"):
        metric([0.1, 0.2], anomalous)


@pytest.mark.parametrize("metric", [auroc, roc_curve])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_an_error(metric, bad):
    with pytest.raises(UserError, match="finite"):
        metric([0.1, bad], [False, True])


def test_roc_curve_encloses_the_auroc():
    scores, anomalous = random_scores(seed=2)
    false_positive, true_positive, thresholds = roc_curve(scores.round(1), anomalous)
    assert (false_positive[0], true_positive[0]) == (0, 0)
    assert (false_positive[-1], true_positive[-1]) == (1, 1)
    assert np.trapezoid(true_positive, false_positive) == pytest.approx(auroc(scores.round(1), anomalous))
    at = len(thresholds) // 2
    assert true_positive[at] == pytest.approx((scores.round(1) >= thresholds[at])[anomalous].mean())


def test_pixel_auroc_ranks_all_pixels_together():
    heatmaps = np.array([[[0.0, 1.0]], [[2.0, 3.0]]])
    masks = np.array([[[False, False]], [[False, True]]])
    assert pixel_ranking(heatmaps, masks) == (1, 1)
    assert pixel_ranking(-heatmaps, masks)[0] == 0
    assert pixel_ranking(heatmaps, np.array([[[False, True]], [[False, False]]]))[0] == pytest.approx(1 / 3)


def test_pixel_auroc_without_defects_is_an_error():
    with pytest.raises(UserError):
        pixel_ranking(np.zeros((2, 4, 4)), np.zeros((2, 4, 4), bool))


def one_row(values) -> np.ndarray:
    return np.array(values)[None, None]


def test_pro_by_hand():
    """Ten good pixels 1…10; one region of 11, another of 9.5 and 7.5.

    With 0, 1, 2, 3 false alarms the threshold lies at 10, 9, 8, 7 and the mean overlap is
    1/2, 3/4, 3/4, 1: the trapezoids under it hold 0.225, of 0.3 at most.
    """
    heatmap = one_row([11, 10, 9.5, 7.5, 9, 8, 7, 6, 5, 4, 3, 2, 1])
    mask = one_row([1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]).astype(bool)
    assert pro(heatmap, mask) == pytest.approx(0.75)
    # Up to one false alarm: the trapezoid from 1/2 to 3/4.
    assert pro(heatmap, mask, most_fpr=0.1) == pytest.approx(0.625)


def test_pro_weighs_regions_and_not_pixels():
    """A found defect of one pixel and a missed one of sixteen count alike."""
    heatmap, mask = np.random.default_rng(0).random((1, 20, 20)), np.zeros((1, 20, 20), bool)
    mask[0, 2, 2] = mask[0, 10:14, 10:14] = True
    heatmap[0, 2, 2], heatmap[0, 10:14, 10:14] = 2, -1
    assert pro(heatmap, mask) == pytest.approx(0.5)


def test_pro_joins_pixels_that_touch_at_a_corner():
    heatmap, mask = np.random.default_rng(0).random((1, 20, 20)), np.zeros((1, 20, 20), bool)
    mask[0, 2, 2] = mask[0, 3, 3] = mask[0, 10, 10] = True
    heatmap[0, 2, 2], heatmap[0, 3, 3], heatmap[0, 10, 10] = 2, 2, -1
    assert pro(heatmap, mask) == pytest.approx(1 / 2)


def random_defects(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = np.zeros((6, 32, 32), bool)
    for mask in masks[:4]:
        y, x = rng.integers(0, 24, 2)
        mask[y : y + 6, x : x + 8] = True
    return masks + rng.normal(0, 1.0, masks.shape), masks


def test_a_perfect_heatmap_has_pro_one():
    _, masks = random_defects(seed=0)
    assert pro(masks.astype(float), masks) == 1


def test_an_inverted_heatmap_has_pro_zero():
    _, masks = random_defects(seed=0)
    assert pro(1.0 - masks, masks) == 0


def test_a_constant_heatmap_finds_nothing():
    _, masks = random_defects(seed=0)
    assert pro(np.ones(masks.shape), masks) == 0


def test_a_chance_heatmap_has_pro_half_of_its_highest_rate():
    """Overlap then equals the false-positive rate: the mean of 0…0.3."""
    _, masks = random_defects(seed=0)
    masks = np.tile(masks, (60, 1, 1))
    heatmaps = np.random.default_rng(1).random(masks.shape)
    assert pro(heatmaps, masks) == pytest.approx(0.15, abs=0.02)


def test_pro_and_pixel_auroc_depend_on_ranks_alone():
    heatmaps, masks = random_defects(seed=3)
    assert 0.1 < pro(heatmaps, masks) < 0.9
    assert pro(np.exp(2 * heatmaps) + 7, masks) == pytest.approx(pro(heatmaps, masks))
    assert pixel_ranking(np.exp(2 * heatmaps) + 7, masks) == pytest.approx(pixel_ranking(heatmaps, masks))


def test_pro_hardly_depends_on_how_finely_it_is_integrated():
    heatmaps, masks = random_defects(seed=4)
    assert pro(heatmaps, masks, thresholds=200) == pytest.approx(pro(heatmaps, masks), abs=5e-3)


def test_pro_without_defects_is_an_error():
    with pytest.raises(UserError):
        pro(np.zeros((2, 4, 4)), np.zeros((2, 4, 4), bool))
