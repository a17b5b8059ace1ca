"""Two or three students against each other, from their scores alone."""

import numpy as np
import pandas as pd
import pytest

from kdad.detection import conformal
from ui.results import arena
from ui.results.evaluated import Evidence


def evidence(scores, normals=range(100)) -> Evidence:
    table = pd.DataFrame(
        {"index": np.arange(len(scores)), "kind": "x", "anomalous": np.arange(len(scores)) % 2 == 1, "score": scores}
    )
    return Evidence(None, "peak", table, np.array(normals, float))


def test_each_image_is_found_by_whom_its_scores_say():
    one, other = evidence([200.0, 200.0, 5.0, 5.0]), evidence([200.0, 5.0, 200.0, 5.0])
    table = arena.compared([one, other], 0.05)
    assert table["outcome"].tolist() == ["both", "the first alone", "the second alone", "neither"]
    np.testing.assert_allclose(table["first"], conformal.p_values(one.table["score"].to_numpy(), one.normals))
    np.testing.assert_allclose(table["second"], conformal.p_values(other.table["score"].to_numpy(), other.normals))


def test_of_three_students_each_combination_has_its_outcome():
    found, missed = 200.0, 5.0
    scores = [[found, found, missed, found, missed, missed], [found, found, found, missed, missed, missed]]
    third = [found, missed, found, missed, found, missed]
    table = arena.compared([evidence(each) for each in (*scores, third)], 0.05)
    assert table["outcome"].tolist() == [
        "all three", "two of three", "two of three", "the first alone", "the third alone", "none",
    ]  # fmt: skip
    assert set(table["outcome"]) <= set(arena.outcomes(3))


@pytest.mark.parametrize("count", [10, 3_000])
def test_what_is_drawn_begins_with_what_is_judged_differently(count):
    rng = np.random.default_rng(0)
    table = arena.compared([evidence(rng.uniform(0, 200, count)) for _ in range(2)], 0.05)
    shown = arena.telling(table)
    assert len(shown) == min(count, arena.MAX_POINTS)
    assert not shown["index"].duplicated().any()
    apart = shown["outcome"].isin(["the first alone", "the second alone"]).sum()
    everywhere = table["outcome"].isin(["the first alone", "the second alone"]).sum()
    assert apart >= min(everywhere, arena.MAX_POINTS // 2)
    pd.testing.assert_frame_equal(shown, arena.telling(table))
