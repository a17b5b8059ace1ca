"""How scores and heatmaps are read: the controls of the inspect page above its images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from kdad.storage.layout import HELD_OUT
from ui.inspect.detectors import CachedDetector
from ui.shared.words import percent

if TYPE_CHECKING:
    from kdad.detection.detector import Detector

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
KEPT: dict[str, Any] = {"persist_state": "session", "bind": "query-params"}  # by the session, and by a link to it
EXPLANATION, PATCH = "explanation", "patch"


@dataclass(frozen=True)
class View:
    """How scores and heatmaps are read: see `choose_view`."""

    fpr: float | None
    method: str
    layer: int | None
    opacity: float
    own_contrast: bool
    outlines: bool


def choose_view(detectors: list[CachedDetector]) -> View:
    """The controls above the images, where a narrow screen shows them, too: false-positive rate, and how to draw."""
    verdict, heatmap = st.columns([3, 1], gap="small", vertical_alignment="center")
    with verdict:
        fpr = _choose_fpr(detectors)
    with heatmap, st.popover("Heatmap", icon=":material/tune:", width="stretch"):
        return _drawn_as(detectors, fpr)


def _drawn_as(detectors: list[CachedDetector], fpr: float | None) -> View:
    method = _choose_method(detectors)
    grids = detectors[0].detector.teacher.grids
    layer = st.segmented_control(
        "Critical layer", range(len(grids) + 1), default=0, required=True, key="layer", **KEPT,
        format_func=lambda layer: str(layer or "All"), disabled=method != PATCH,
        help="All: the layers together, weighed by how well each finds what was pasted into normal images. Values "
        "are standard deviations above a normal patch. Low numbers see "
        "texture in fine patches, high ones see shapes in coarse patches.",
    )  # fmt: skip
    opacity = st.slider("Opacity, %", 0, 100, 50, 5, key="opacity", **KEPT)
    own = st.toggle(
        "Per-image contrast", key="contrast", **KEPT,
        help="Off: one colour scale for all images, fixed from held-out normals, so that a normal image stays "
        "dark. On: each image is stretched from its own lowest to its own highest value, so that even a "
        "normal image glows somewhere; use it to see structure, not to compare.",
    )  # fmt: skip
    outlines = st.toggle(
        "Outlines", key="outlines", **KEPT,
        help="White, wherever patch errors are shown: what lies above 99 % of the patches of held-out normals, "
        "after a 3×3 opening. Green: where the defect truly is, if that is known.",
    )  # fmt: skip
    return View(fpr, method, layer - 1 if layer and method == PATCH else None, opacity / 100, own, outlines)


def _choose_method(detectors: list[CachedDetector]) -> str:
    """How the place is found; only what all students shown side by side allow."""
    from kdad.detection.localisation import METHODS, methods_for

    allowed = set.intersection(*(set(methods_for(cached.detector)) for cached in detectors))
    options = [EXPLANATION, *(method for method in METHODS if method in allowed)]
    if st.session_state.get("method", EXPLANATION) not in options:  # chosen for another student
        st.session_state["method"] = EXPLANATION
    return st.selectbox(
        "Method", options, key="method", **KEPT,
        help="explanation shows the part of the score that lifts it most above normals. patch compares teacher and "
        "student patch by patch. gradients, smoothgrad and guided-backprop ask which pixels would change the published "
        "score, as the paper does; they are slower and coarser. attention-rollout shows where a ViT teacher looks, "
        "unusual or not. Only explanation and patch compare between images.",
    )  # fmt: skip


def _choose_fpr(detectors: list[CachedDetector]) -> float | None:
    calibrated = [cached.detector for cached in detectors if cached.detector.calibration is not None]
    if not calibrated:
        st.caption("This student was never calibrated: it gives scores, but no p-values and no verdicts.")
        return None
    lowest = max(detector.lowest_fpr for detector in calibrated)
    rates = sorted({lowest, *(rate for rate in RATES if rate > lowest)})
    usual = min(rates, key=lambda rate: abs(rate - 0.05))
    if st.session_state.get("fpr", usual) not in rates:  # chosen for another student
        st.session_state["fpr"] = usual
    fpr = st.select_slider(
        "False-positive rate", rates, usual, key="fpr", format_func=percent, **KEPT,
        help="How many normal images may be called anomalous. The lowest rate is what the held-out normals allow: "
        "one in their number plus one.",
    )  # fmt: skip
    # Of several students, what holds for the one that promises least.
    st.caption(min(calibrated, key=_promise).guarantee(fpr))
    return fpr


def _promise(detector: "Detector") -> tuple[bool, int]:
    """How much a calibration promises: whether there are bounds, then how narrow they are."""
    return detector.calibration.kind == HELD_OUT, len(detector.calibration)
