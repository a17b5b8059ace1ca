"""Controls of the inspect page for verdicts and heatmaps."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from kdad.storage.layout import HELD_OUT
from ui.inspect.detectors import CachedDetector
from ui.shared.rates import default_rate
from ui.shared.words import percent

if TYPE_CHECKING:
    from kdad.detection.detector import Detector

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
KEPT: dict[str, Any] = {"persist_state": "session", "bind": "query-params"}  # in the session and in links
SCORE, PATCH, STUDENT = "score", "patch", "student"


@dataclass(frozen=True)
class View:
    """Settings for verdicts and heatmaps; see `choose_view`."""

    fpr: float | None
    method: str
    layer: int | None
    opacity: float
    own_contrast: bool
    outlines: bool


def choose_view(detectors: list[CachedDetector]) -> View:
    """Draw the controls for false-positive rate and heatmap above the images, where narrow screens show them too."""
    verdict, heatmap = st.columns([3, 1], gap="small", vertical_alignment="center")
    with verdict:
        fpr = _choose_fpr(detectors)
    with heatmap, st.popover("Heatmap", icon=":material/tune:", width="stretch"):
        return _drawn_as(detectors, fpr)


def _drawn_as(detectors: list[CachedDetector], fpr: float | None) -> View:
    method = _choose_method(detectors)
    layers = min(len(cached.detector.teacher.grids) for cached in detectors)
    layer = st.segmented_control(
        "Critical layer", range(layers + 1), default=0, required=True, key="layer", **KEPT,
        format_func=lambda layer: str(layer or "All"), disabled=method != PATCH,
        help="All: all layers, weighted by how well each finds patches pasted into normal images. Values are standard "
        "deviations above a normal patch. Lower layers respond to texture in fine patches, higher layers to "
        "shapes in coarse patches.",
    )  # fmt: skip
    opacity = st.slider("Opacity, %", 0, 100, 50, 5, key="opacity", **KEPT)
    own = st.toggle(
        "Per-image contrast", key="contrast", **KEPT,
        help="Off: one colour scale for all images, set on held-out normals, so normal images stay dark. "
        "On: each image is scaled from its lowest to its highest value, so even normal images glow somewhere; "
        "use it to see structure, not to compare images.",
    )  # fmt: skip
    outlines = st.toggle(
        "Outlines", key="outlines", **KEPT,
        help="White: patch errors above those of 99 % of the patches of held-out normals, after a 3×3 opening. "
        "Green: the true defect, if known.",
    )  # fmt: skip
    return View(fpr, method, layer - 1 if layer and method == PATCH else None, opacity / 100, own, outlines)


def _choose_method(detectors: list[CachedDetector]) -> str:
    """Choose the localisation method among those that all shown students support."""
    from kdad.detection.localisation import METHODS, methods_for

    allowed = set.intersection(*(set(methods_for(cached.detector)) for cached in detectors))
    options = [SCORE, *(method for method in METHODS if method in allowed)]
    if st.session_state.get("method", SCORE) not in options:  # chosen for another student
        st.session_state["method"] = SCORE
    return st.selectbox(
        "Method", options, key="method", **KEPT,
        help="score shows the whole score on one scale: brighter images have higher scores. patch shows patch errors "
        "or, of photographs, distances from normal patches; student where the student fails to copy the teacher. "
        "gradients, smoothgrad and guided-backprop show the pixels to which the published score is most sensitive, as "
        "in the paper; they are slower and coarser. attention-rollout shows what a ViT teacher attends to, unusual or "
        "not. Only score, patch and student are comparable between images.",
    )  # fmt: skip


def _choose_fpr(detectors: list[CachedDetector]) -> float | None:
    calibrated = [cached.detector for cached in detectors if cached.detector.calibration is not None]
    if not calibrated:
        st.caption("This student is not calibrated: it gives scores, but no p-values or verdicts.")
        return None
    lowest = max(detector.lowest_fpr for detector in calibrated)
    wanted = calibrated[0].default_fpr  # that of the student's operating point, if it has one
    rates = sorted({lowest, *(rate for rate in (*RATES, wanted) if rate > lowest)})
    usual = default_rate("fpr", rates, wanted)
    fpr = st.select_slider(
        "False-positive rate", rates, usual, key="fpr", format_func=percent, **KEPT,
        help="Share of normal images that may be called anomalous. With n held-out normals, the lowest possible rate "
        "is 1 / (n + 1).",
    )  # fmt: skip
    # With several students, show the weakest guarantee.
    st.caption(min(calibrated, key=_promise).guarantee(fpr))
    return fpr


def _promise(detector: "Detector") -> tuple[bool, int]:
    """Strength of a calibration's guarantee: whether it has bounds, then how narrow they are."""
    return detector.calibration.kind == HELD_OUT, len(detector.calibration)
