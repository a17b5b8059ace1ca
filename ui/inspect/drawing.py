"""Draw a picture under its heatmap, and describe it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdad.scores import HIGHEST_PATCH
from ui.inspect.detectors import CachedDetector
from ui.inspect.view_controls import PATCH, SCORE, STUDENT, View
from ui.shared.pictures import DISPLAY_SIDE, Picture, to_display

if TYPE_CHECKING:
    from kdad.detection.detector import Prediction
    from kdad.detection.explanation import Contribution

FOUND, TRUE = (255, 255, 255), (61, 220, 151)  # the colours of outlines


@dataclass(frozen=True)
class Drawn:
    """A heatmap (h, w), the unit of its values, the range of its colour scale and a description.

    Values above `found` are called anomalous; it is infinite if no threshold is known.
    """

    heatmap: np.ndarray
    unit: str
    low: float
    high: float
    words: str = ""
    found: float = np.inf

    def in_words(self, picture: Picture) -> str:
        """Alternative text of the heatmap over a picture."""
        return f"{self.words or 'Heatmap'} over {picture.name}: up to {self.heatmap.max():.3g} {self.unit}"


def drawn(picture: Picture, prediction: "Prediction", cached: CachedDetector, view: View) -> Drawn:
    """Heatmap of a picture at its `display_size`, as set in the view."""
    detector = cached.detector
    whole = cached.score_map(picture) if view.method == SCORE else None
    if whole is not None:
        ends = _own_ends(whole.heatmap) if view.own_contrast else whole.colour_range
        return Drawn(whole.heatmap, whole.unit, *ends, found=whole.found)
    if view.method in (SCORE, PATCH):
        heatmap = prediction.heatmap_at(*picture.shown.shape[:2], view.layer)[0]
        unit = "patch error" if detector.calibration is None else HIGHEST_PATCH.unit
        ends = _own_ends(heatmap) if view.own_contrast else detector.colour_range
        return Drawn(heatmap, unit, *ends, found=detector.heatmap_threshold)
    heatmap = cached.localise(picture, view.method)
    if view.method == STUDENT and not view.own_contrast:
        return Drawn(heatmap, HIGHEST_PATCH.unit, *detector.colour_range, found=detector.heatmap_threshold)
    return Drawn(heatmap, view.method, *_own_ends(heatmap))


def of_part(part: "Contribution", own_contrast: bool = False) -> Drawn:
    """Heatmap of one part of a score."""
    assert part.heatmap is not None
    ends = _own_ends(part.heatmap) if own_contrast else part.colour_range
    return Drawn(part.heatmap, part.unit, *ends, part.title)


def _own_ends(heatmap: np.ndarray) -> tuple[float, float]:
    return float(heatmap.min()), float(heatmap.max())


def overlaid(picture: Picture, shown: Drawn, opacity: float, side: int = DISPLAY_SIDE) -> np.ndarray:
    """Overlay a heatmap on the picture: uint8 (h, w, 3), the longer side at most `side`."""
    from kdad.detection.rendering import overlay, resized_map

    pixels = to_display(picture.shown, side)
    return overlay(pixels, resized_map(shown.heatmap, *pixels.shape[:2]), shown.low, shown.high, opacity)


def under(shown: Drawn, picture: Picture, view: View) -> np.ndarray:
    """Overlay a heatmap on the picture at its `display_size`, with outlines if the view shows them."""
    pixels = overlaid(picture, shown, view.opacity)
    return outlined(pixels, shown, picture) if view.outlines else pixels


def outlined(pixels: np.ndarray, shown: Drawn, picture: Picture) -> np.ndarray:
    """Outline the regions called anomalous and the true defect in `pixels`."""
    from kdad.detection.rendering import mask_of, outline

    if np.isfinite(shown.found):
        pixels = outline(pixels, mask_of(shown.heatmap, shown.found), FOUND)
    if picture.mask is not None:
        pixels = outline(pixels, to_display(picture.mask.astype(np.uint8)) > 0, TRUE)
    return pixels
