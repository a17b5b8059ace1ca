"""Evidence for a verdict: the parts of the score, compared with those of normals."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from kdad.storage.layout import CROSS_FITTED
from ui.inspect import charts
from ui.inspect.detectors import CachedDetector, verdict
from ui.inspect.drawing import Drawn, of_part, overlaid
from ui.inspect.view_controls import View
from ui.shared.pictures import Picture, png

if TYPE_CHECKING:
    from kdad.detection.detector import Detector, Prediction
    from kdad.detection.explanation import Contribution

PART_WIDTH = 150  # pixels
WIDE = 0.5  # share of the image's area above which the whole image counts as unusual


def evidence(picture: Picture, prediction: "Prediction", cached: CachedDetector, view: View) -> None:
    """Show what the score consists of and how it compares with normals."""
    detector = cached.detector
    if detector.calibration_scores is None:
        _layers(prediction, detector)
        return
    parts = cached.explain(picture)
    grid = st.grid(2, min_column_width=230, gap="medium")
    with grid.cell():
        st.markdown("**Why**")
        st.markdown(_reason(parts, verdict(detector, prediction, view.fpr)))
        total, chart = _sum_in_words(parts), charts.parts(_bars(parts))
        st.vega_lite_chart(spec=chart, alt=f"What raises the score above a typical normal's: {total}")
        st.caption(f"{total}. Band: the middle 90 % of normals.")
    shown = [of_part(part) for part in parts if part.heatmap is not None]
    with grid.cell():
        for column, part in zip(st.columns(max(1, len(shown)), gap="small"), shown, strict=False):
            with column:
                _part(part, picture, view)
    # Drawn only when opened: charts take most of the time of a rerun.
    more = st.expander("The score, normals and layers", key=f"more-{cached.student.key}", on_change="rerun")
    if more.open:
        with more:
            st.caption(detector.score.description)
            threshold = detector.threshold(view.fpr)
            chart = charts.among_normals(detector.calibration_scores, float(prediction.score[0]), threshold)
            st.altair_chart(chart, alt="Histogram of the normals' scores, with this image's score and the threshold")
            _layers(prediction, detector)


def _part(shown: Drawn, picture: Picture, view: View) -> None:
    """Show the map of a part."""
    pixels = overlaid(picture, shown, view.opacity, side=2 * PART_WIDTH)  # for high-density screens
    st.image(png(pixels), width="stretch", alt=shown.in_words(picture))
    charts.scale_bar(shown.low, shown.high, "")
    st.caption(f"**{shown.words}**, {shown.unit}")


def _layers(prediction: "Prediction", detector: "Detector") -> None:
    """Show the student's error in each critical layer."""
    st.markdown("**The student's error in each critical layer**")
    grids = detector.teacher.grids
    names = [f"{index + 1} ({height}×{width})" for index, (height, width) in enumerate(grids)]
    normals = None if detector.normals is None else detector.normals.layer_scores
    chart = charts.layers(prediction.measurement.layer_scores[0], normals, names)
    st.altair_chart(chart, alt="The image's error in each critical layer and the middle 90 % of normals")
    if normals is None:
        st.caption(detector.score.description)
    elif detector.calibration is not None and detector.calibration.kind == CROSS_FITTED:
        st.caption(
            "The band is of the helper networks that calibrated this student, so it lies to the right of its own."
        )


def _bars(parts: "list[Contribution]") -> pd.DataFrame:
    """A row per part: how much it adds to a typical normal's score, and the range of the middle 90 % of normals."""
    rows = []
    for part in parts:
        low, high = np.quantile(part.normals, [0.05, 0.95]) - np.median(part.normals)
        rows.append({"part": part.title, "adds": part.excess, "low": low, "high": high})
    return pd.DataFrame(rows)


def _sum_in_words(parts: "list[Contribution]") -> str:
    """Write the score as the sum of a typical normal's score and what each part adds."""
    ordinary = sum(part.value - part.excess for part in parts)
    added = " ".join(
        f"{'−' if part.excess < 0 else '+'} {abs(part.excess):.2f} ({part.title.lower()})" for part in parts
    )
    return f"Score {sum(part.value for part in parts):.2f} = {ordinary:.2f} (a typical normal) {added}"


def _reason(parts: "list[Contribution]", anomalous: bool | None) -> str:
    """Explain the verdict in a sentence: its main cause, and whether that is local."""
    top = parts[0]
    if not anomalous:
        return "Nothing raises the score far above those of normals."
    seen = {
        "error": "The student fails to copy the teacher",
        "distance": "The teacher itself sees something far from every normal",
        "peak": "The student fails to copy the teacher",
        "nearest": "The teacher sees patches that no normal shows nearby",
        "gaussian": "The teacher sees what is unusual at this place",
    }.get(top.name, f"The student fails in {top.name}")
    if top.heatmap is None:
        return f"{seen}."
    bright = float((top.heatmap > np.mean(top.colour_range)).mean())  # above nearly all normals
    return f"{seen}, {'all over the image: it is unusual **as a whole**' if bright > WIDE else 'in part of the image'}."
