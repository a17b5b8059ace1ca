"""Downloads: scores as CSV, heatmaps as PNG, a report and a figure."""

import io
import zipfile
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from kdad.spreadsheets import as_csv
from ui.inspect.detectors import CachedDetector, verdict
from ui.inspect.drawing import drawn, overlaid
from ui.inspect.figure import figure
from ui.inspect.triage import decision_on
from ui.inspect.view_controls import View
from ui.shared.figures import FORMATS
from ui.shared.pictures import Picture, png
from ui.shared.words import plain

if TYPE_CHECKING:
    from kdad.detection.detector import Prediction


def downloads(shown: Picture, pictures: list[Picture], detectors: list[CachedDetector], view: View) -> None:
    """Offer scores as CSV, heatmaps as PNG in one archive, a report, and the shown picture as a figure."""
    st.divider()
    st.subheader("Take it with you", anchor=False)
    with st.container(horizontal=True):
        st.download_button(
            "Scores (CSV)", lambda: _csv(pictures, detectors, view), "scores.csv", "text/csv", icon=":material/table:",
            on_click="ignore",
        )  # fmt: skip
        st.download_button(
            "Heatmaps (PNG)", lambda: _archive(pictures, detectors, view), "heatmaps.zip", "application/zip",
            icon=":material/image:", on_click="ignore",
        )  # fmt: skip
        st.download_button(
            "Report (HTML)", lambda: _report(pictures, detectors[0], view), "report.html", "text/html",
            icon=":material/description:", on_click="ignore",
            help=f"One file on all images above and {plain(detectors[0].student.key)}, to print or to send",
        )  # fmt: skip
        for kind, mime in FORMATS.items():
            st.download_button(
                f"Figure ({kind})", partial(figure, shown, detectors, view, kind), f"figure.{kind.lower()}", mime,
                icon=":material/slideshow:", on_click="ignore",
            )  # fmt: skip


def _csv(pictures: list[Picture], detectors: list[CachedDetector], view: View) -> str:
    """One row per picture and student, with the columns of `kdad score --csv` and each layer's part.

    `decision` is what was decided in triage, if anything.
    """
    rows = []
    for cached in detectors:
        for picture in pictures:
            prediction = cached.predict(picture)
            (record,) = prediction.to_records([picture.name])
            called = verdict(cached.detector, prediction, view.fpr)
            layers = {f"layer{i + 1}": float(part) for i, part in enumerate(prediction.measurement.layer_scores[0])}
            asked = {"student": cached.student.key, "is_anomaly": called, "false_positive_rate": view.fpr}
            decided = {"decision": decision_on(picture)}
            rows.append({"image": None, "student": None} | record | asked | decided | layers)
    return as_csv(pd.DataFrame(rows))


def _report(pictures: list[Picture], cached: CachedDetector, view: View) -> str:
    """The file that `kdad report` writes, about all pictures and one student, with heatmaps as the view shows them."""
    from kdad.detection.rendering import overlay, resized_map
    from kdad.detection.report import Report, thumbnail

    def draw(picture: Picture, prediction: "Prediction") -> tuple[np.ndarray, np.ndarray]:
        pixels = thumbnail(picture.pixels)
        shown = drawn(picture, prediction, cached, view)
        heatmap = resized_map(shown.heatmap, *pixels.shape[:2])
        return pixels, overlay(pixels, heatmap, shown.low, shown.high, view.opacity)

    report = Report(cached.detector, view.fpr, view.method)
    for picture in pictures:
        prediction = cached.predict(picture)
        report.add(picture.name, float(prediction.score[0]), partial(draw, picture, prediction))
    return report.html()


def _archive(pictures: list[Picture], detectors: list[CachedDetector], view: View) -> bytes:
    """Zip file with one heatmap PNG per picture and student."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for cached in detectors:
            for index, picture in enumerate(pictures):
                pixels = overlaid(picture, drawn(picture, cached.predict(picture), cached, view), view.opacity)
                archive.writestr(f"{cached.student.key.replace('/', '-')}/{index:03d}.png", png(pixels))
    return file.getvalue()
