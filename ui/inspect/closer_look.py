"""Detailed view of one picture, with all detectors side by side."""

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from ui.inspect import charts, perturbation_controls
from ui.inspect.detectors import CachedDetector, share_below, verdict
from ui.inspect.downloads import downloads
from ui.inspect.drawing import drawn, under
from ui.inspect.evidence import evidence
from ui.inspect.ranking import ranking
from ui.inspect.view_controls import PATCH, SCORE, STUDENT, View
from ui.shared import figures
from ui.shared.pictures import Picture
from ui.shared.student_index import evaluate_command, find
from ui.shared.student_picker import switch_to
from ui.shared.words import percent, plain, unusualness

if TYPE_CHECKING:
    from kdad.detection.detector import Detector, Prediction

MAX_CELLS = 64


@st.fragment
def studied(chosen: Picture, pictures: list[Picture], detectors: list[CachedDetector], view: View) -> None:
    """Draw everything about one picture, as a fragment: its controls rerun only this part of the page."""
    shown = _closer_look(chosen, pictures, detectors, view)
    ranking(shown, detectors[0])
    # A changed picture is downloaded in addition to the originals.
    downloads(shown, pictures if shown is chosen else [*pictures, shown], detectors, view)


def _closer_look(picture: Picture, others: list[Picture], detectors: list[CachedDetector], view: View) -> Picture:
    """Show one picture in detail, with all detectors side by side; returns it as changed by the controls."""
    st.subheader(plain(picture.name) + (f" · {plain(picture.truth)}" if picture.truth else ""), anchor=False)
    grid = st.grid(2 if len(detectors) % 2 else 3, min_column_width=230, gap="medium")
    with grid.cell():
        st.markdown("**Image**")
        place = st.container()
        change = perturbation_controls.choose_change(picture, others)
        with place:
            _input(change)
        if change.strength is not None:
            _over_strength(change.strength, detectors, view)
            _suggestion(detectors)
    for cached in detectors:
        with grid.cell():
            _heading(cached if len(detectors) > 1 else None)
            prediction = cached.predict(change.picture)
            _heatmap(change.picture, prediction, cached, view)
            _verdict(picture, prediction, cached, view, change)
            if len(detectors) > 1:
                evidence(change.picture, prediction, cached, view)
    if len(detectors) == 1:
        evidence(change.picture, prediction, detectors[0], view)
    return change.picture


def _over_strength(strength: perturbation_controls.Strength, detectors: list[CachedDetector], view: View) -> None:
    """Plot how unusual the image is to each detector over the strength of the change."""
    calibrated = [cached for cached in detectors if cached.detector.calibration is not None]
    if not calibrated or not st.toggle("Curve over strength", key="curve", persist_state="page"):
        return
    rows = []
    for amount in strength.amounts:
        picture = strength.changed(amount)
        for cached in calibrated:
            share = share_below(cached.detector, cached.predict(picture))
            rows.append({"amount": amount, "student": cached.student.key, "share": share})
    called = None if view.fpr is None else 1 - view.fpr
    chart = charts.over_strength(pd.DataFrame(rows), strength.title, strength.amount, called)
    alt = "Share of held-out normals that are less unusual, over the strength of the change"
    figures.chart(chart, "over-strength", alt=alt)


def _suggestion(detectors: list[CachedDetector]) -> None:
    """Offer a student of defects, since one-vs-rest students are not trained for local changes."""
    students, _ = find()
    of_defects = [key for key, student in students.items() if student.dataset == "patterns-defects"]
    if of_defects and not any(cached.student.dataset == "patterns-defects" for cached in detectors):
        words = "This student judges whole images. Try one for defects"
        if st.button(words, icon=":material/arrow_forward:", type="tertiary"):
            switch_to(of_defects[0])
            st.rerun()


def _heading(cached: CachedDetector | None) -> None:
    st.markdown("**Heatmap**" if cached is None else f"**{plain(cached.student.key)}**")


def _input(change: perturbation_controls.Change) -> None:
    cells = charts.grid_cells(perturbation_controls.GRID, perturbation_controls.GRID)
    chart = charts.picture(change.picture.shown, cells, "", clickable=change.clickable, box=change.box)
    alt = f"{change.picture.name}, as the student sees it"
    if change.clickable:
        st.vega_lite_chart(
            spec=chart, key="picture", on_select=perturbation_controls.take_click, selection_mode=charts.CELL, alt=alt
        )
    else:
        st.vega_lite_chart(spec=chart, alt=alt)


def _heatmap(picture: Picture, prediction: "Prediction", cached: CachedDetector, view: View) -> None:
    shown = drawn(picture, prediction, cached, view)
    layer = view.layer
    cells = charts.coarse_cells(shown.heatmap) if layer is None else _cells(prediction, cached.detector, layer)
    pixels = under(shown, picture, view)
    st.vega_lite_chart(spec=charts.picture(pixels, cells, shown.unit), alt=shown.in_words(picture))
    charts.scale_bar(shown.low, shown.high, shown.unit)
    if view.method not in (SCORE, PATCH, STUDENT):
        st.caption(f"{view.method} has no unit: its colours cannot be compared between images.")
    elif view.own_contrast:
        st.caption("Per-image contrast: colours cannot be compared between images.")


def _cells(prediction: "Prediction", detector: "Detector", layer: int) -> pd.DataFrame:
    """The patches of a critical layer as cells, or a coarse grid if they are too many."""
    preprocessing = detector.teacher.preprocessing
    border = preprocessing.border[0] / preprocessing.resize[0]
    values = prediction.measurement.patch_maps[layer][0]
    if max(values.shape) > MAX_CELLS:  # stitched tiles
        values, border = prediction.heatmap_at(charts.COARSE, charts.COARSE, layer)[0], 0.0
    return charts.grid_cells(*values.shape, values, border)


def _verdict(
    picture: Picture, prediction: "Prediction", cached: CachedDetector, view: View, change: perturbation_controls.Change
) -> None:
    detector = cached.detector
    score, share = float(prediction.score[0]), share_below(detector, prediction)
    before = float(cached.predict(picture).score[0])
    delta = "" if change.words is None else f" ({score - before:+.3f} {plain(change.words)})"
    if share is None:
        st.metric("Anomaly score", f"{score:.3f}", width="content")
        st.caption(
            f"No p-value: this student is not calibrated.{delta} To calibrate it where its data set is available:"
        )
        st.code(evaluate_command(cached.student.folder), language="bash", wrap_lines=True)
        return
    anomalous = verdict(detector, prediction, view.fpr)
    if anomalous is not None:
        word, colour = ("Anomaly", "orange") if anomalous else ("Normal", "green")
        st.badge(word, color=colour, help=f"At a false-positive rate of {percent(view.fpr)}")
    st.markdown(unusualness(share, len(detector.calibration), cached.student.normals_in_words))
    st.caption(f"p-value {prediction.p_value[0]:.4f} · score {score:.3f}{delta}")
