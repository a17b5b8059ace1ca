"""p-values, thresholds and what they guarantee."""

import re

import numpy as np
import pytest

from kdad.detection.conformal import (
    guarantee,
    lowest_fpr,
    p_values,
    realised_fpr,
    share_below,
    standardised,
    threshold,
    warning,
)
from kdad.errors import UserError
from kdad.storage.layout import CROSS_FITTED, HELD_OUT, UNKNOWN


def test_p_values_by_hand():
    calibration = [3.0, 1.0, 2.0, 2.0]
    # 1 + how many of the four are at least as high, over 5
    assert p_values([0, 1, 1.5, 2, 2.5, 3, 9], calibration).tolist() == [1, 1, 0.8, 0.8, 0.4, 0.4, 0.2]


@pytest.mark.parametrize("digits", [8, 1, 0], ids=["distinct", "some ties", "many ties"])
@pytest.mark.parametrize("n", [1, 19, 20, 99, 100, 500])
def test_p_values_and_threshold_give_one_verdict(n, digits):
    rng = np.random.default_rng(n)
    calibration = rng.gamma(2, size=n).round(digits).astype(np.float32)
    scores = np.concatenate([rng.gamma(3, size=200).round(digits).astype(np.float32), calibration])
    rates = [rate for rate in (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.9, *rng.random(20)) if lowest_fpr(n) <= rate]
    rates += [k / (n + 1) for k in range(1, n + 1, max(1, n // 20))]
    for fpr in rates:
        verdict = scores > threshold(calibration, fpr)
        assert np.array_equal(verdict, p_values(scores, calibration) <= fpr), fpr


def test_threshold_by_hand():
    """Of 19 normals one may be as high: 5 % is the lowest rate they can hold."""
    calibration = np.arange(19.0)
    assert lowest_fpr(19) == 0.05
    assert threshold(calibration, 0.05) == 18
    assert threshold(calibration, 0.1) == 17
    assert threshold(calibration, 0.14) == 17


@pytest.mark.parametrize("fpr", [0, -0.1, 0.0499, 1, 1.5, float("nan"), float("inf")])
def test_a_rate_that_cannot_be_held_is_an_error(fpr):
    with pytest.raises(UserError, match=r"cannot be held with 19 calibration images.*0\.0500"):
        threshold(np.arange(19.0), fpr)


@pytest.mark.parametrize("n", [1, 12, 13, 100, 500])
def test_the_lowest_rate_that_the_error_names_works(n):
    with pytest.raises(UserError) as error:
        threshold(np.arange(n), 0)
    named = float(re.search(r"from ([\d.]+) to", str(error.value))[1])
    assert threshold(np.arange(n), named) == n - 1


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.2])
def test_the_realised_false_positive_rate_is_the_nominal_one(fpr):
    """500 held-out normals, 400 times over: on average new normals are flagged at the rate that was asked for."""
    rng = np.random.default_rng(0)
    realised = [(rng.lognormal(size=400) > threshold(rng.lognormal(size=500), fpr)).mean() for _ in range(400)]
    exact = np.floor(fpr * 501) / 501
    assert np.mean(realised) == pytest.approx(exact, abs=4 * np.std(realised) / 20)
    assert np.mean(realised) < 1.1 * fpr


def test_p_values_of_normals_are_uniform():
    rng = np.random.default_rng(0)
    values = p_values(rng.normal(size=20_000), rng.normal(size=5_000))
    assert np.quantile(values, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.03)


def test_share_below_by_hand():
    assert share_below([0, 1, 1.5, 2, 9], [3.0, 1.0, 2.0, 2.0]).tolist() == [0, 0, 0.25, 0.25, 1]


def test_standardised_scores_count_deviations_of_the_calibration():
    assert standardised([2, 5, -1], [1.0, 3.0]).tolist() == [0, 3, -3]
    assert np.isfinite(standardised([1, 2], [1.0, 1.0])).all()


def test_the_realised_rate_of_the_issue_s_example():
    low, high = realised_fpr(500, 0.01)
    assert (round(low, 3), round(high, 3)) == (0.003, 0.020)


def test_the_realised_rate_covers_what_simulated_calibrations_give():
    rng = np.random.default_rng(0)
    low, high = realised_fpr(100, 0.05)
    cuts = np.array([threshold(rng.random(100), 0.05) for _ in range(2000)])  # uniform scores: 1 − cut is the rate
    assert ((cuts < 1 - low) & (cuts > 1 - high)).mean() == pytest.approx(0.95, abs=0.015)


def test_few_calibration_images_are_pointed_out():
    assert warning(100, HELD_OUT) is None
    assert "only 99 calibration images" in warning(99, HELD_OUT)
    assert "0.010" in warning(99, HELD_OUT)


@pytest.mark.parametrize(("kind", "words"), [(CROSS_FITTED, "as an estimate"), (UNKNOWN, "no bound is given")])
def test_a_weaker_calibration_promises_no_bound_and_always_warns(kind, words):
    assert words in warning(5000, kind)
    assert words in guarantee(5000, 0.05, kind)
    assert "between" not in guarantee(5000, 0.05, kind)
    assert "between 3.4 % and 6.87 %" in guarantee(600, 0.05, HELD_OUT)
