"""What is drawn over a picture."""

import numpy as np
import pytest

from ui.inspect.drawing import FOUND, TRUE, Drawn, outlined
from ui.shared.pictures import DISPLAY_SIDE, Picture

PIXELS = np.zeros((DISPLAY_SIDE, DISPLAY_SIDE, 3), np.uint8)


@pytest.fixture
def spot():
    """A heatmap of a bright square on a dark ground."""
    heatmap = np.zeros(PIXELS.shape[:2], np.float32)
    heatmap[100:200, 100:200] = 5.0
    return heatmap


@pytest.mark.parametrize(("found", "lined"), [(2.0, True), (9.0, False), (np.inf, False)])
def test_what_lies_above_nearly_all_normal_patches_is_outlined(spot, found, lined):
    drawn = outlined(PIXELS, Drawn(spot, "σ above normal", 0, 1, found=found), Picture("a", PIXELS))
    assert (drawn == FOUND).all(2).any() == lined


def test_where_a_defect_truly_is_is_outlined_too(spot):
    drawn = outlined(PIXELS, Drawn(spot, "", 0, 1), Picture("a", PIXELS, "defect", spot > 0))
    assert (drawn == TRUE).all(2).any()
