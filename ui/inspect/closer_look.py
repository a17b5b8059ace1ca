"""One picture in detail, side by side under every judge."""

import numpy as np
import pandas as pd
import streamlit as st

from kdad.detection import conformal
from kdad.storage.layout import DISTANT_ERROR, DISTANT_PEAK
from ui.inspect import charts, perturbation_controls
from ui.inspect.drawing import colour_range, is_anomaly, outlined
from ui.inspect.judges import Judge
from ui.inspect.view_controls import PATCH, View
from ui.shared.pictures import Picture
from ui.shared.student_index import evaluate_command
from ui.shared.words import SCORE_IN_WORDS, percent, plain, unusualness

COMBINED_CELLS = 16  # cells a side that show the value of all layers together
MOST_CELLS = 64


def closer_look(picture: Picture, others: list[Picture], judges: list[Judge], view: View) -> Picture:
    """One picture in detail, side by side under every judge; returns it as the controls have changed it."""
    st.divider()
    st.subheader(plain(picture.name) + (f" · {plain(picture.truth)}" if picture.truth else ""), anchor=False)
    columns = st.columns(3, gap="medium")
    with columns[0]:
        if len(judges) > 1:
            st.markdown("**Image**")
        place = st.container()
        change = perturbation_controls.choose_change(picture, others)
        with place:
            _input(change)
    for column, judge in zip(columns[1:], judges, strict=False):
        with column:
            if len(judges) > 1:
                st.markdown(f"**{plain(judge.student.key)}**")
            prediction = judge(change.picture)
            _heatmap(change.picture, prediction, judge, view)
            _verdict(picture, prediction, judge, view, change)
            if len(judges) > 1:
                _evidence(prediction, judge, view)
    if len(judges) == 1:
        with columns[2]:
            _evidence(prediction, judges[0], view)
    return change.picture


def _input(change: perturbation_controls.Change) -> None:
    cells = charts.grid_cells(perturbation_controls.GRID, perturbation_controls.GRID)
    chart = charts.picture(change.picture.shown, cells, "", clickable=change.clickable, box=change.box)
    alt = f"{change.picture.name}, as the student gets it"
    if change.clickable:
        st.altair_chart(
            chart, key="picture", on_select=perturbation_controls.take_click, selection_mode=charts.CELL, alt=alt
        )
    else:
        st.altair_chart(chart, alt=alt)


def _heatmap(picture: Picture, prediction, judge: Judge, view: View) -> None:
    from kdad.detection.rendering import overlay

    if view.method == PATCH:
        heatmap = judge.heatmap(prediction, view.layer, *picture.shown.shape[:2])
        unit = "σ above normal" if judge.normals is not None else "patch error"
        cells = _cells(prediction, judge, view)
    else:
        heatmap, unit = judge.localise(picture, view.method), view.method
        cells = charts.grid_cells(COMBINED_CELLS, COMBINED_CELLS, _coarse(heatmap))
    low, high = colour_range(heatmap, judge, view)
    pixels = overlay(picture.shown, heatmap, low, high, view.opacity)
    if view.outlines:
        pixels = outlined(pixels, heatmap, picture, judge, view)
    alt = f"Heatmap over {picture.name}: up to {heatmap.max():.3g} {unit}"
    st.altair_chart(charts.picture(pixels, cells, unit), alt=alt)
    charts.scale_bar(low, high, unit)
    if view.method != PATCH:
        st.caption(f"{view.method} has no unit of its own: these colours cannot be compared with another image's.")
    elif view.own_contrast:
        st.caption("Per-image contrast: these colours cannot be compared with another image's.")


def _cells(prediction, judge: Judge, view: View) -> pd.DataFrame:
    """The patches of a heatmap: a layer's own, or a grid over all layers together."""
    if view.layer is None:
        values = judge.detector.heatmap(prediction, COMBINED_CELLS, COMBINED_CELLS)[0]
        return charts.grid_cells(*values.shape, values)
    preprocessing = judge.detector.teacher.preprocessing
    border = (preprocessing.resize - preprocessing.crop) / 2 / preprocessing.resize
    values = prediction.patch_maps[view.layer][0]
    if max(values.shape) > MOST_CELLS:  # stitched tiles
        values, border = judge.heatmap(prediction, view.layer, COMBINED_CELLS, COMBINED_CELLS), 0.0
    return charts.grid_cells(*values.shape, values, border)


def _coarse(heatmap: np.ndarray) -> np.ndarray:
    """The mean of a map (h, w) over each of `COMBINED_CELLS`² cells."""
    rows = np.array_split(heatmap, COMBINED_CELLS)
    return np.array([[cell.mean() for cell in np.array_split(row, COMBINED_CELLS, 1)] for row in rows])


def _verdict(picture: Picture, prediction, judge: Judge, view: View, change: perturbation_controls.Change) -> None:
    score = float(prediction.score[0])
    before = float(judge(picture).score[0])
    delta = None if change.words is None else f"{score - before:+.3f} {change.words}"
    anomalous = is_anomaly(prediction, judge, view)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.metric("Anomaly score", f"{score:.3f}", delta, delta_color="off", width="content")
        if anomalous is not None:
            word, colour = ("Anomaly", "orange") if anomalous else ("Normal", "green")
            st.badge(word, color=colour, help=f"At a false-positive rate of {percent(view.fpr)}")
    if judge.normals is None:
        st.caption("No p-value: this student was never calibrated. This does it, where its data set is at hand:")
        st.code(evaluate_command(judge.student), language="bash", wrap_lines=True)
        return
    share = float(conformal.share_below(prediction.score, judge.normals)[0])
    st.markdown(unusualness(share, len(judge.normals), judge.student.normal_class))
    st.caption(f"p-value {prediction.p_value[0]:.4f}")


def _evidence(prediction, judge: Judge, view: View) -> None:
    """Where the score stands among normals, and what each layer adds."""
    if judge.normals is not None:
        st.markdown("**Among held-out normals**")
        chart = charts.among_normals(judge.normals, float(prediction.score[0]), judge.threshold(view.fpr))
        st.altair_chart(chart, alt="Histogram of the normals' scores, with this image's score and the threshold")
    st.markdown("**What each critical layer adds**")
    grids = judge.detector.teacher.grids
    names = [f"{index + 1} ({height}×{width})" for index, (height, width) in enumerate(grids)]
    chart = charts.layers(prediction.layer_scores[0], judge.detector.calibration_layer_scores, names)
    st.altair_chart(chart, alt="The image's error in each critical layer, beside the middle 90 % of normals")
    band = "" if judge.normals is None else "Bar: this image. Band: the middle 90 % of normals. "
    st.caption(band + SCORE_IN_WORDS[judge.detector.config.score] + _parts(prediction, judge))


def _parts(prediction, judge: Judge) -> str:
    """The two parts of a score that has two."""
    if judge.normals is None:
        return ""
    error, peak, distance = prediction.layer_errors[0, -1, 0], prediction.peak[0], prediction.distance[0]
    return {
        DISTANT_ERROR: f" Here: {error:.3f} × {distance:.2f}.",
        DISTANT_PEAK: f" Here: {peak:.1f} + {judge.detector.distance_weight:.2f} × log {distance:.2f}.",
    }.get(judge.detector.config.score, "")
