"""Charts on the page, with downloads for a slide or a paper."""

import io
from functools import partial
from typing import Any

import altair as alt
import streamlit as st

FORMATS = {"PNG": "image/png", "SVG": "image/svg+xml", "PDF": "application/pdf"}
WIDTH, SCALE = 520, 2  # of a saved chart: points, and PNG pixels per point


def chart(made: alt.Chart | alt.LayerChart, name: str, **options: Any) -> None:
    """Draw a chart with buttons to save it as `name` in each of `FORMATS`; `options` go to `st.altair_chart`."""
    st.altair_chart(made, **options)
    with st.popover("Save", type="tertiary", icon=":material/download:"), st.container(horizontal=True):
        for kind, mime in FORMATS.items():
            st.download_button(
                kind, partial(chart_file, made, kind), f"{name}.{kind.lower()}", mime, key=f"save {name} {kind}",
                on_click="ignore",
            )  # fmt: skip


def chart_file(made: alt.Chart | alt.LayerChart, kind: str) -> bytes:
    """Render a chart in one of `FORMATS`."""
    file: io.BytesIO | io.StringIO = io.StringIO() if kind == "SVG" else io.BytesIO()
    finer = {"scale_factor": SCALE} if kind == "PNG" else {}
    made.properties(width=WIDTH).save(file, format=kind.lower(), **finer)
    content = file.getvalue()
    return content.encode() if isinstance(content, str) else content
