"""The operating point of least expected cost, by hand and against a search over all thresholds."""

import shutil

import numpy as np
import pandas
import pytest
from helpers.miniatures import TinyTask, evaluated, reseal

from kdad.detection.conformal import DEFAULT_FPR, threshold
from kdad.detection.detector import Detector
from kdad.evaluation import operating_points
from kdad.evaluation.operating_points import choose, least_cost
from kdad.evaluation.saved_scores import read_calibration_scores, read_test_scores
from kdad.storage.layout import CARD, OPERATING_POINT
from kdad.storage.operating_point import Costs, load_operating_point

COSTS = Costs(miss=10, false_alarm=1, defects=0.02)


@pytest.fixture(scope="module")
def tested(student_folder, tmp_path_factory):
    """A student with figures; read-only."""
    folder = shutil.copytree(student_folder, tmp_path_factory.mktemp("tested") / "student")
    evaluated(folder, TinyTask(), Detector.load(folder))
    return folder


@pytest.fixture
def folder(tested, tmp_path):
    return shutil.copytree(tested, tmp_path / "student")


def test_least_cost_by_hand():
    """Of four normals the rates are 0.2 to 0.8; a threshold at 3 finds one anomaly of two, one at 1 finds both."""
    normals, anomalies = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.5, 9.0])
    assert least_cost(normals, anomalies, Costs(0.5, 1, 0.5)) == (0.2, 0.5)  # 0.1 + 0.125, instead of 0.3
    assert least_cost(normals, anomalies, Costs(4, 1, 0.5)) == (0.6, 1.0)  # 0.3, instead of 0.1 + 1
    assert COSTS.expected(0.2, 0.5) == pytest.approx(0.98 * 0.2 + 10 * 0.02 * 0.5)


@pytest.mark.parametrize("digits", [8, 1], ids=["distinct", "ties"])
@pytest.mark.parametrize("miss", [0.5, 10, 1000])
def test_no_rate_that_can_be_held_costs_less(miss, digits):
    rng = np.random.default_rng(0)
    normals, anomalies = rng.normal(size=57).round(digits), rng.normal(2, size=200).round(digits)
    costs = Costs(miss, 1, 0.1)
    fpr, found = least_cost(normals, anomalies, costs)
    rates = [k / 58 for k in range(1, 58)]
    shares = [(anomalies > threshold(normals, rate)).mean() for rate in rates]
    assert found == pytest.approx((anomalies > threshold(normals, fpr)).mean())
    every = [costs.expected(*point) for point in zip(rates, shares, strict=True)]
    assert costs.expected(fpr, found) == pytest.approx(min(every))


@pytest.mark.parametrize(
    "values", [(0, 1, 0.5), (1, -1, 0.5), (1, float("nan"), 0.5), (float("inf"), 1, 0.5), (1, 1, 0), (1, 1, 1)]
)
def test_impossible_costs_are_refused(values, refusal):
    assert "must" in refusal(Costs, *values)


def test_saved_scores_are_those_of_the_detector(folder):
    detector = Detector.load(folder)
    scores = read_calibration_scores(folder, detector.config.score)
    assert scores == pytest.approx(detector.calibration_scores)
    table = read_test_scores(folder, {}, ["score", "nothing"])
    assert list(table) == ["score"]
    assert read_calibration_scores(folder.parent, "mkd") is None


def test_a_kept_point_decides_verdicts_and_is_on_the_card(folder):
    point = choose(folder, COSTS)
    operating_points.keep(folder, point)
    detector = Detector.load(folder)
    assert detector.operating_point == point
    assert detector.default_fpr == point.fpr
    images = TinyTask().test.images
    assert detector.predict(images).is_anomaly.tolist() == detector.predict(images, fpr=point.fpr).is_anomaly.tolist()
    card = (folder / CARD).read_text()
    assert point.line in card
    assert "figures at it flatter" in card
    found = detector.predict(images).is_anomaly[TinyTask().test.anomalous.numpy()].mean()
    assert point.found == pytest.approx(found)
    operating_points.clear(folder)
    assert Detector.load(folder).default_fpr == DEFAULT_FPR
    assert "5 % by default" in (folder / CARD).read_text()


def test_a_point_that_is_damaged_or_of_other_weights_is_refused(folder, refusal):
    operating_points.keep(folder, choose(folder, COSTS))
    reseal(folder / OPERATING_POINT, weights_sha256="0" * 64)
    assert "belongs to other weights" in refusal(Detector.load, folder)
    reseal(folder / OPERATING_POINT, fpr=2)
    assert "is damaged" in refusal(Detector.load, folder)
    (folder / OPERATING_POINT).write_text("[]")
    assert "--clear" in refusal(Detector.load, folder)
    operating_points.clear(folder)
    assert load_operating_point(folder, "") is None


def test_without_a_test_part_it_says_what_is_needed(student_folder, folder, refusal):
    assert "test/good and test/<defect>" in refusal(choose, student_folder, COSTS)
    (folder / "calibration.safetensors").unlink()
    assert "not calibrated" in refusal(choose, folder, COSTS)
    assert "no student folder" in refusal(choose, folder / "nothing", COSTS)


def test_an_exchanged_table_is_refused(folder, refusal):
    table = pandas.read_parquet(folder / "scores.parquet")
    table.assign(score=0.0).to_parquet(folder / "scores.parquet")
    assert "is damaged" in refusal(choose, folder, COSTS)
