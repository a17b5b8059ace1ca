"""What is drawn over a picture."""

import numpy as np
import pytest

from ui.inspect.detectors import cached_detector
from ui.inspect.drawing import FOUND, TRUE, Drawn, drawn, outlined
from ui.inspect.view_controls import SCORE, View
from ui.shared import student_index
from ui.shared.pictures import DISPLAY_SIDE, Picture
from ui.shared.samples import of_pattern

PIXELS = np.zeros((DISPLAY_SIDE, DISPLAY_SIDE, 3), np.uint8)


@pytest.fixture
def spot():
    """A heatmap of a bright square on a dark ground."""
    heatmap = np.zeros(PIXELS.shape[:2], np.float32)
    heatmap[100:200, 100:200] = 5.0
    return heatmap


@pytest.mark.parametrize(("found", "lined"), [(2.0, True), (9.0, False), (np.inf, False)])
def test_what_lies_above_nearly_all_normal_patches_is_outlined(spot, found, lined):
    drawn = outlined(PIXELS, Drawn(spot, "σ above normal", 0, 1, found=found), Picture.of("a", PIXELS))
    assert (drawn == FOUND).all(2).any() == lined


def test_where_a_defect_truly_is_is_outlined_too(spot):
    drawn = outlined(PIXELS, Drawn(spot, "", 0, 1), Picture.of("a", PIXELS, "defect", spot > 0))
    assert (drawn == TRUE).all(2).any()


def test_over_a_set_brighter_maps_belong_to_higher_scores(monkeypatch, students_root):
    from scipy.stats import spearmanr

    monkeypatch.setenv("KDAD_STUDENTS", str(students_root))
    cached = cached_detector(student_index.find()[0]["patterns/tiny-vgg/dots"])
    view = View(fpr=0.1, method=SCORE, layer=None, opacity=0.5, own_contrast=False, outlines=False)
    scores, brightness = [], []
    for picture in [*of_pattern("dots", 0), *of_pattern("dots", 1), *of_pattern("stripes", 0)]:
        prediction = cached.predict(picture)
        shown = drawn(picture, prediction, cached, view)
        scores.append(float(prediction.score[0]))
        brightness.append(((shown.heatmap - shown.low) / (shown.high - shown.low)).clip(0, 1).mean())
    assert spearmanr(scores, brightness).statistic > 0.9
