"""Scores as CSV, heatmaps as PNG, and a figure."""

import io
import zipfile
from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from ui.inspect.drawing import drawn, overlaid
from ui.inspect.figure import figure
from ui.inspect.judges import Judge
from ui.inspect.view_controls import View
from ui.shared.figures import FORMATS
from ui.shared.pictures import Picture, png


def downloads(shown: Picture, pictures: list[Picture], judges: list[Judge], view: View) -> None:
    """Scores as CSV, heatmaps as PNG in one archive, and the picture that is shown as a figure."""
    st.divider()
    st.subheader("Take it with you", anchor=False)
    with st.container(horizontal=True):
        st.download_button(
            "Scores (CSV)", lambda: _csv(pictures, judges, view), "scores.csv", "text/csv", icon=":material/table:",
            on_click="ignore",
        )  # fmt: skip
        st.download_button(
            "Heatmaps (PNG)", lambda: _archive(pictures, judges, view), "heatmaps.zip", "application/zip",
            icon=":material/image:", on_click="ignore",
        )  # fmt: skip
        for kind, mime in FORMATS.items():
            st.download_button(
                f"Figure ({kind})", partial(figure, shown, judges, view, kind), f"figure.{kind.lower()}", mime,
                icon=":material/slideshow:", on_click="ignore",
            )  # fmt: skip


def _csv(pictures: list[Picture], judges: list[Judge], view: View) -> str:
    """One row per picture and student, as `kdad score --csv` writes them, with each layer's part."""
    rows = []
    for judge in judges:
        for picture in pictures:
            prediction = judge(picture)
            p_value = float(prediction.p_value[0])
            rows.append(
                {
                    "image": picture.name,
                    "student": judge.student.key,
                    "score": float(prediction.score[0]),
                    "p_value": None if np.isnan(p_value) else p_value,
                    "is_anomaly": judge.is_anomaly(prediction, view.fpr),
                    "false_positive_rate": view.fpr,
                    **{f"layer{i + 1}": float(part) for i, part in enumerate(prediction.layer_scores[0])},
                }
            )
    return pd.DataFrame(rows).to_csv(index=False)


def _archive(pictures: list[Picture], judges: list[Judge], view: View) -> bytes:
    """A zip file with one heatmap PNG per picture and student."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for judge in judges:
            for index, picture in enumerate(pictures):
                pixels = overlaid(picture, drawn(picture, judge(picture), judge, view), view.opacity)
                archive.writestr(f"{judge.student.key.replace('/', '-')}/{index:03d}.png", png(pixels))
    return file.getvalue()
