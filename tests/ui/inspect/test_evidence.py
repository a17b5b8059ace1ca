"""What the page says of a score's parts."""

import numpy as np
import pytest

from kdad.detection.explanation import Contribution
from kdad.scores import ERROR, HIGHEST_PATCH, LOG_DISTANCE
from ui.inspect import evidence

TITLES = {part.name: part.title for part in (ERROR, HIGHEST_PATCH, LOG_DISTANCE)}


def part(name: str, value: float, lit: float = 0.0) -> Contribution:
    """A part of which so much of the map is bright; normals have 0 to 1."""
    heatmap = np.where(np.arange(100) < 100 * lit, 9.0, 0.0).reshape(10, 10)
    words = TITLES.get(name, name.capitalize()), "unit"
    shown = None if name.startswith("layer") else heatmap
    return Contribution(name, *words, value, np.linspace(0, 1, 101), value, shown, (0.0, 2.0))


@pytest.mark.parametrize(
    ("parts", "anomalous", "said"),
    [
        ([part("distance", 9, 0.9)], True, "The teacher itself sees something far from every normal, all over"),
        ([part("error", 9, 0.2)], True, "The student fails to copy the teacher, in part of the image."),
        ([part("peak", 9, 0.8)], True, "The student fails to copy the teacher, all over the image: it is unusual **as"),
        ([part("layer 3", 9)], True, "The student fails in layer 3."),
        ([part("error", 0.5, 0.9)], False, "Nothing raises the score far above those of normals."),
    ],
)
def test_the_reason_names_what_lifts_the_score_and_whether_it_is_in_one_place(parts, anomalous, said):
    assert evidence._reason(parts, anomalous).startswith(said)


def test_the_sum_in_words_is_a_sum():
    parts = [part("distance", 2.5), part("error", 0.25)]
    assert evidence._sum_in_words(parts) == (
        "Score 2.75 = 1.00 (a typical normal) + 2.00 (teacher's distance) − 0.25 (student's error)"
    )


def test_bars_stand_beside_what_normals_add():
    bars = evidence._bars([part("peak", 3.0)])
    assert bars.to_dict("records") == [
        {"part": "Highest patch error", "adds": 2.5, "low": pytest.approx(-0.45), "high": pytest.approx(0.45)}
    ]
