"""Altair charts: heatmaps with hover and click, and the small charts of evidence beside them."""

import json
from functools import lru_cache

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from ui.shared.palette import ACCENT, CALM, MUTED
from ui.shared.pictures import data_url

PICTURE_HEIGHT = 300
COARSE = 16  # cells per side of a map without patches
CELL, REGION = "cell", "region"  # selections made by a click on a picture, and by drawing a rectangle
# Scales a picture to fit a box of any width while keeping its aspect ratio.
FIT = "min(width / {w}, height / {h})"


def picture(
    pixels: np.ndarray, cells: pd.DataFrame, value_title: str, *, clickable: bool = False, box: tuple | None = None
) -> dict:
    """Vega-Lite specification of uint8 pixels (H, W, 3) under a grid of cells that show their values on hover.

    Args:
        cells: as returned by `grid_cells`.
        value_title: tooltip title of a cell's value.
        clickable: whether a click selects a cell by row and column, in the selection `CELL`.
        box: (top, bottom, left, right) in 0…1, drawn as an outline.
    """
    spec = json.loads(
        _picture(*pixels.shape[:2], value_title if "value" in cells else None, clickable, box is not None)
    )
    shown = pd.DataFrame({"x": [0.5], "y": [0.5], "url": [data_url(pixels)]})
    edges = [] if box is None else [dict(zip(("top", "bottom", "left", "right"), box, strict=True))]
    return spec | {"datasets": {"picture": shown, "cells": cells, "box": pd.DataFrame(edges)}}


# Altair validates every part of a chart against its schema, which takes longer than scoring an image. Charts redrawn at
# every step of a control are therefore built once per kind and filled with data.
@lru_cache(maxsize=64)
def _picture(height: int, width: int, value_title: str | None, clickable: bool, boxed: bool) -> str:
    fit = FIT.format(w=width, h=height)
    x = alt.Scale(domain=[0, 1], range=[0, alt.expr(f"{fit} * {width}")], nice=False)
    y = alt.Scale(domain=[0, 1], range=[0, alt.expr(f"{fit} * {height}")], nice=False)
    image = (
        _chart_of("picture")
        .mark_image(width=alt.expr(f"{fit} * {width}"), height=alt.expr(f"{fit} * {height}"), aspect=False)
        .encode(
            alt.X("x:Q", scale=x, axis=None), alt.Y("y:Q", scale=y, axis=None), url="url:N", tooltip=alt.value(None)
        )
    )
    layers = [image, _cells(value_title, clickable), *([_outline()] if boxed else [])]
    box_height = round(PICTURE_HEIGHT * min(1, height / width))
    return alt.layer(*layers).properties(height=box_height, padding=0).configure_view(stroke=None).to_json()


def _chart_of(data: str) -> alt.Chart:
    """Chart of a named data set that is supplied later."""
    return alt.Chart(alt.NamedData(name=data))


def _cells(value_title: str | None, clickable: bool) -> alt.Chart:
    place = ["row", "column"]
    hover = alt.selection_point(name="hover", on="pointerover", clear="pointerout", fields=place, empty=False)
    tooltip = [alt.Tooltip("row:Q"), alt.Tooltip("column:Q")]
    if value_title is not None:
        tooltip.append(alt.Tooltip("value:Q", title=value_title, format=".2f"))
    chart = (
        _chart_of("cells")
        .mark_rect(fill="white", fillOpacity=0, stroke="white", cursor="crosshair" if clickable else "default")
        .encode(
            alt.X("left:Q"), alt.X2("right:Q"), alt.Y("top:Q"), alt.Y2("bottom:Q"),
            strokeWidth=alt.condition(hover, alt.value(2), alt.value(0.4 if clickable else 0)),
            strokeOpacity=alt.condition(hover, alt.value(1), alt.value(0.35)),
            tooltip=tooltip,
        )
        .add_params(hover)
    )  # fmt: skip
    if clickable:
        chart = chart.add_params(alt.selection_point(name=CELL, on="click", fields=place, toggle=False))
    return chart


def _outline() -> alt.Chart:
    return (
        _chart_of("box")
        .mark_rect(fillOpacity=0, stroke="white", strokeWidth=2, strokeDash=[4, 3], tooltip=None)
        .encode(alt.X("left:Q"), alt.X2("right:Q"), alt.Y("top:Q"), alt.Y2("bottom:Q"))
    )


def region(pixels: np.ndarray) -> dict:
    """Specification of uint8 pixels (H, W, 3) to draw a rectangle on: the selection `REGION` of x and y in 0…1."""
    height, width = pixels.shape[:2]
    fit = FIT.format(w=width, h=height)
    x = alt.Scale(domain=[0, 1], range=[0, alt.expr(f"{fit} * {width}")], nice=False)
    y = alt.Scale(domain=[0, 1], range=[0, alt.expr(f"{fit} * {height}")], nice=False)
    frame = pd.DataFrame({"x": [0.5], "y": [0.5], "url": [data_url(pixels)]})
    mark = {"width": alt.expr(f"{fit} * {width}"), "height": alt.expr(f"{fit} * {height}"), "aspect": False}
    chart = (
        alt.Chart(frame)
        .mark_image(**mark)
        .encode(
            alt.X("x:Q", scale=x, axis=None), alt.Y("y:Q", scale=y, axis=None), url="url:N", tooltip=alt.value(None)
        )
        .add_params(alt.selection_interval(name=REGION, encodings=["x", "y"]))
        .properties(height=round(PICTURE_HEIGHT * min(1, height / width)))
        .configure_view(stroke=None)
    )
    return json.loads(chart.to_json())


def grid_cells(rows: int, columns: int, values: np.ndarray | None = None, border: float = 0.0) -> pd.DataFrame:
    """Cells of a picture: row and column counted from 1, edges in 0…1 and, if given, values (rows, columns).

    `border` is the margin around the grid, as a share of the picture's side.
    """
    row, column = (index.ravel() for index in np.mgrid[0:rows, 0:columns])
    inner = 1 - 2 * border
    frame = pd.DataFrame(
        {
            "row": row + 1,
            "column": column + 1,
            "top": border + inner * row / rows,
            "bottom": border + inner * (row + 1) / rows,
            "left": border + inner * column / columns,
            "right": border + inner * (column + 1) / columns,
        }
    )
    return frame if values is None else frame.assign(value=np.asarray(values, np.float64).ravel())


def coarse_cells(heatmap: np.ndarray) -> pd.DataFrame:
    """Average a map (h, w) over `COARSE`² cells, or as many as it has pixels, as in `grid_cells`."""
    down, across = (min(COARSE, side) for side in heatmap.shape)
    rows = np.array_split(heatmap, down)
    means = np.array([[cell.mean() for cell in np.array_split(row, across, 1)] for row in rows])
    return grid_cells(down, across, means)


def scale_bar(low: float, high: float, unit: str) -> None:
    """Draw the colour scale of a heatmap with its end values."""
    low, high = (round(end, 2) + 0.0 for end in (low, high))  # without negative zeros
    label = f"Colour scale from {low:.2f} to {high:.2f} {unit}"
    st.html(
        f'<div class="kdad-scale" role="img" aria-label="{label}"><span>{low:.2f}</span><i></i>'
        f"<span>{high:.2f} {unit}</span></div>"
    )


def among_normals(normals: np.ndarray, score: float, threshold: float) -> alt.LayerChart:
    """Histogram of held-out normals' scores (N,) with an image's score and the threshold."""
    low, high = min(normals.min(), score), max(normals.max(), score, threshold)
    edges = np.linspace(low, high, 31)
    counts = np.histogram(normals, edges)[0]
    bars = pd.DataFrame({"from": edges[:-1], "to": edges[1:], "images": counts})
    x = alt.X("from:Q", bin="binned", title="score", axis=alt.Axis(tickCount=5, grid=False))
    histogram = (
        alt.Chart(bars)
        .mark_bar(color=CALM, opacity=0.75, binSpacing=0.5, tooltip=True)
        .encode(x, alt.X2("to:Q"), alt.Y("images:Q", title="normal images", axis=alt.Axis(tickCount=3)))
    )
    rules = pd.DataFrame({"score": [threshold, score], "what": ["threshold", "this image"]})
    lines = (
        alt.Chart(rules)
        .mark_rule(strokeWidth=2.5)
        .encode(
            alt.X("score:Q"),
            color=alt.Color(
                "what:N",
                scale=alt.Scale(domain=["this image", "threshold"], range=[ACCENT, MUTED]),
                legend=alt.Legend(title=None, orient="top"),
            ),
            tooltip=["what:N", alt.Tooltip("score:Q", format=".4f")],
        )
    )
    return alt.layer(histogram, lines).properties(height=220)


def parts(frame: pd.DataFrame) -> dict:
    """Contribution of each part of a score and the middle 90 % of normals: columns `part`, `adds`, `low`, `high`."""
    return json.loads(_parts(tuple(frame["part"]))) | {"datasets": {"parts": frame}}


@lru_cache(maxsize=64)
def _parts(names: tuple[str, ...]) -> str:
    y = alt.Y("part:N", sort=list(names), title=None, axis=alt.Axis(labelOverlap=False, labelLimit=160))
    x = alt.X("low:Q", title="added to the score", axis=alt.Axis(tickCount=5))
    ranges = _chart_of("parts").mark_bar(color=CALM, opacity=0.45, height=24).encode(x, alt.X2("high:Q"), y)
    bars = (
        _chart_of("parts")
        .mark_bar(color=ACCENT, height=12)
        .encode(alt.X("adds:Q"), y, tooltip=["part:N", alt.Tooltip("adds:Q", format="+.3f")])
    )
    return alt.layer(ranges, bars).properties(height=60 + 36 * len(names)).to_json()


def over_strength(frame: pd.DataFrame, title: str, amount: int, threshold: float | None) -> alt.LayerChart:
    """One line per student over the strength of an image change: columns `amount`, `student` and `share` in 0…1.

    Args:
        amount: the current strength.
        threshold: the share of normals from which an image is called anomalous.
    """
    y = alt.Y(
        "share:Q", title="more unusual than", axis=alt.Axis(format="%", tickCount=5), scale=alt.Scale(domain=[0, 1])
    )
    legend = alt.Legend(title=None, orient="bottom", columns=1)
    colour = alt.Color("student:N", scale=alt.Scale(range=[ACCENT, CALM]), sort=None, legend=legend)
    lines = (
        alt.Chart(frame)
        .mark_line(point=True)
        .encode(
            alt.X("amount:Q", title=title), y,
            color=colour,
            tooltip=["student:N", "amount:Q", alt.Tooltip("share:Q", format=".1%")],
        )
    )  # fmt: skip
    rules = [
        alt.Chart(pd.DataFrame({"amount": [amount]})).mark_rule(color=MUTED, strokeDash=[4, 3]).encode(x="amount:Q")
    ]
    if threshold is not None:
        rules.append(alt.Chart(pd.DataFrame({"share": [threshold]})).mark_rule(color=MUTED).encode(y="share:Q"))
    return alt.layer(lines, *rules).properties(height=240)


def layers(parts: np.ndarray, normals: np.ndarray | None, names: list[str]) -> alt.LayerChart:
    """Critical layers' parts of the published score (L,) and the middle 90 % of normals (N, L)."""
    frame = pd.DataFrame({"layer": names, "part": parts.astype(float)})
    y = alt.Y("layer:N", sort=names, title=None, axis=alt.Axis(labelOverlap=False))
    bars = (
        alt.Chart(frame)
        .mark_bar(color=ACCENT, height=12)
        .encode(
            alt.X("part:Q", title="error", axis=alt.Axis(tickCount=5)),
            y,
            tooltip=["layer:N", alt.Tooltip("part:Q", title="this image", format=".4f")],
        )
    )
    if normals is None:
        return alt.layer(bars).properties(height=190)
    low, middle, high = np.quantile(normals, [0.05, 0.5, 0.95], axis=0)
    band = pd.DataFrame({"layer": names, "low": low, "median": middle, "high": high})
    tooltip = ["layer:N", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("low", "median", "high"))]
    ranges = (
        alt.Chart(band)
        .mark_bar(color=CALM, opacity=0.45, height=24)
        .encode(alt.X("low:Q", title="error"), alt.X2("high:Q"), y, tooltip=tooltip)
    )
    medians = alt.Chart(band).mark_tick(color=CALM, thickness=2.5, size=24).encode(alt.X("median:Q"), y)
    return alt.layer(ranges, bars, medians).properties(height=190)


def ranking(rows: list[dict], chosen: str) -> alt.Chart:
    """Bars of how unusual an image is to each student; `rows` as from `ui.inspect.detectors.rank`, `chosen` a key."""
    frame = pd.DataFrame(rows).assign(chosen=lambda frame: frame["key"] == chosen)
    return (
        alt.Chart(frame)
        .mark_bar(height=14, cornerRadiusEnd=2)
        .encode(
            alt.X("deviations:Q", title="standard deviations above its own normals' mean score"),
            alt.Y("normal_class:N", sort=None, title=None, axis=alt.Axis(labelOverlap=False)),
            color=alt.condition("datum.chosen", alt.value(ACCENT), alt.value(CALM)),
            tooltip=[
                alt.Tooltip("normal_class:N", title="normal class"),
                alt.Tooltip("deviations:Q", format=".2f"),
                alt.Tooltip("score:Q", format=".4f"),
                alt.Tooltip("p_value:Q", title="p-value", format=".4f"),
            ],
        )
        .properties(height=70 + 24 * len(rows))
    )
