"""How a picture is drawn under its heatmap, and what it is called."""

import numpy as np

from ui.inspect.judges import Judge
from ui.inspect.view_controls import PATCH, View
from ui.shared.pictures import DISPLAY_SIDE, Picture, to_display

FOUND, TRUE = (255, 255, 255), (61, 220, 151)  # the colours of outlines


def is_anomaly(prediction, judge: Judge, view: View) -> bool | None:
    if judge.normals is None or view.fpr is None:
        return None
    return bool(prediction.score[0] > judge.threshold(view.fpr))


def colour_range(heatmap: np.ndarray, judge: Judge, view: View) -> tuple[float, float]:
    own = view.own_contrast or view.method != PATCH
    return (float(heatmap.min()), float(heatmap.max())) if own else judge.detector.colour_range


def overlaid(picture: Picture, prediction, judge: Judge, view: View, side: int = DISPLAY_SIDE) -> np.ndarray:
    """The picture under its heatmap, uint8 (h, w, 3), with no side above `side`."""
    from kdad.detection.rendering import overlay

    pixels = to_display(picture.shown, side)
    heatmap = judge.heatmap(prediction, view.layer, *pixels.shape[:2])
    return overlay(pixels, heatmap, *colour_range(heatmap, judge, view), view.opacity)


def outlined(pixels: np.ndarray, heatmap: np.ndarray, picture: Picture, judge: Judge, view: View) -> np.ndarray:
    """`pixels` with lines around what is called anomalous, and around what truly is."""
    from kdad.detection.rendering import mask_of, outline

    if view.method == PATCH and judge.mask_threshold is not None:
        pixels = outline(pixels, mask_of(heatmap, judge.mask_threshold), FOUND)
    if picture.mask is not None:
        pixels = outline(pixels, to_display(picture.mask.astype(np.uint8)) > 0, TRUE)
    return pixels
