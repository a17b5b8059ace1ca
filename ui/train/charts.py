"""Charts of a running training."""

import math

import altair as alt
import pandas as pd

from ui.shared.palette import ACCENT, CALM, SERIES


def losses(history: list[dict], trace: list[tuple[float, float]], epochs: int) -> alt.LayerChart:
    """Training loss from `trace`, (epochs done, loss), and validation loss after each epoch of `history`."""
    validation = [(row["epoch"], row["loss"]) for row in history if row["split"] == "validation"]
    trained = trace or [(row["epoch"], row["loss"]) for row in history if row["split"] == "train"]
    rows = [*((*point, "training") for point in trained), *((*point, "validation") for point in validation)]
    return _by_epoch(rows, alt.Scale(zero=False), epochs, "loss")


def validation_auroc(history: list[dict], epochs: int) -> alt.LayerChart:
    """Validation AUROC in per cent; `history` holds only rows with an AUROC."""
    rows = [(row["epoch"], 100 * row["auroc"], "validation") for row in history]
    lowest = min(90, *(10 * math.floor(value / 10) for _, value, _ in rows))
    return _by_epoch(rows, alt.Scale(domain=[lowest, 100], nice=False), epochs, "AUROC, %")


def together(frame: pd.DataFrame, names: list[str], title: str, shown: str) -> alt.Chart:
    """Lines of several students over the share of their training: columns `teacher`, `done` and `value`.

    `shown` is the format of values.
    """
    colour = alt.Color(
        "teacher:N", scale=alt.Scale(domain=names, range=list(SERIES[: len(names)])),
        legend=alt.Legend(title=None, orient="bottom", columns=2, labelLimit=160, symbolType="stroke"),
    )  # fmt: skip
    tooltip = ["teacher:N", alt.Tooltip("done:Q", format=".0%"), alt.Tooltip("value:Q", title=title, format=shown)]
    axis = alt.Axis(format="%", tickCount=5)
    return (
        alt.Chart(frame)
        .mark_line(strokeWidth=2, point={"size": 20})
        .encode(
            alt.X("done:Q", title="share of training", scale=alt.Scale(domain=[0, 1]), axis=axis),
            alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4, format=shown)),
            color=colour, tooltip=tooltip,
        )
        .properties(height=240)
    )  # fmt: skip


def _by_epoch(rows: list[tuple], scale: alt.Scale, epochs: int, title: str) -> alt.LayerChart:
    """Lines of (epoch, value, split), with a dot for every validation value."""
    frame = pd.DataFrame(rows, columns=["epoch", "value", "split"])
    last = int(max(epochs, frame["epoch"].max()))
    axis = alt.Axis(tickCount=min(last, 6), tickMinStep=1, format="d", grid=False)
    lines = (
        alt.Chart(frame)
        .mark_line(strokeWidth=2)
        .encode(
            alt.X("epoch:Q", scale=alt.Scale(domain=[0, last], nice=False), axis=axis),
            alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=4)),
            color=alt.Color(
                "split:N", scale=alt.Scale(domain=["training", "validation"], range=[ACCENT, CALM]), legend=None
            ),
            tooltip=[
                "split:N",
                alt.Tooltip("epoch:Q", format=".3~r"),
                alt.Tooltip("value:Q", title=title, format=".4~r"),
            ],
        )
    )
    layers = [lines]
    if (frame["split"] == "validation").any():  # an empty layer logs a warning in the browser's console
        layers.append(lines.mark_point(filled=True, size=40).transform_filter(alt.datum.split == "validation"))
    return alt.layer(*layers).properties(height=180)
