"""Charts as files."""

import pandas as pd
import pytest

from ui.results.charts import over_epochs, roc
from ui.shared.figures import FORMATS, chart_file

CURVE = pd.DataFrame({"false_alarms": [0.0, 0.2, 1.0], "found": [0.0, 0.9, 1.0], "threshold": [3.0, 2.0, 1.0]})
HISTORY = pd.DataFrame({"run": ["a run"] * 2, "epoch": [1, 2], "loss": [0.5, 0.25]})
BEGINS = {"PNG": b"\x89PNG", "SVG": b"<svg", "PDF": b"%PDF"}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_chart_is_saved_in_every_format(kind):
    assert chart_file(roc(CURVE, (0.2, 0.9)), kind).startswith(BEGINS[kind])


def test_the_words_of_a_drawing_stay_words():
    assert b">a run<" in chart_file(over_epochs(HISTORY, "loss", "loss"), "SVG")
