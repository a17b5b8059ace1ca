"""Altair charts of the results page."""

import altair as alt
import numpy as np
import pandas as pd

from ui.shared.palette import ACCENT, CALM, MUTED, SERIES

POINT, KIND, IMAGE = "point", "kind", "image"  # selections made by a click
KINDS = alt.Scale(domain=["normal", "anomalous"], range=[CALM, ACCENT])
BINS = 40
DASHES = ((1, 0), (6, 4), (2, 3), (9, 3, 2, 3))  # of lines, solid first
COST_POINTS = 200  # of the curve of costs


def over_epochs(history: pd.DataFrame, column: str, title: str, best: pd.DataFrame | None = None) -> alt.LayerChart:
    """One line per run (`run`, `epoch`, `column`); a click in the legend highlights a run, hovering shows values.

    `best` holds the points to ring, if any.
    """
    names = sorted(history["run"].unique())
    colour = alt.Color(
        "run:N",
        scale=alt.Scale(domain=names, range=list(SERIES[: len(names)])),
        legend=alt.Legend(title=None, orient="bottom", columns=1, labelLimit=320, symbolType="stroke"),
    )
    singled = alt.selection_point(name="run", fields=["run"], bind="legend")
    hovered = alt.selection_point(
        name="epoch", fields=["epoch"], on="pointerover", clear="pointerout", nearest=True, empty=False
    )
    x = alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, format="d", grid=False))
    y = alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    shade = alt.condition(singled, alt.value(1), alt.value(0.15))
    tooltip = ["run:N", alt.Tooltip("epoch:Q", format="d"), alt.Tooltip(f"{column}:Q", title=title, format=".4f")]
    base = alt.Chart(history).encode(x, y, color=colour, opacity=shade)
    lines = base.mark_line(strokeWidth=2.5).add_params(singled)
    points = base.mark_point(filled=True).encode(
        size=alt.condition(hovered, alt.value(90), alt.value(30)), tooltip=tooltip
    )
    layers = [lines, points.add_params(hovered)]
    if best is not None:
        ring = alt.Chart(best).mark_point(size=190, strokeWidth=2, filled=False)
        layers.append(ring.encode(x, y, color=colour, opacity=shade, tooltip=tooltip))
    return alt.layer(*layers).properties(height=330)


def roc(curve: pd.DataFrame, at: tuple[float, float] | None) -> alt.LayerChart:
    """ROC curve with the operating point; a click on the curve selects `POINT` by its threshold."""
    axis = alt.Axis(format="%", tickCount=5)
    x = alt.X("false_alarms:Q", title="normal images called anomalous", axis=axis, scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("found:Q", title="anomalous images found", axis=axis, scale=alt.Scale(domain=[0, 1]))
    tooltip = [
        alt.Tooltip("false_alarms:Q", title="false alarms", format=".2%"),
        alt.Tooltip("found:Q", format=".2%"),
        alt.Tooltip("threshold:Q", format=".4f"),
    ]
    base = alt.Chart(curve).encode(x, y)
    area = base.mark_area(color=ACCENT, opacity=0.1, interpolate="step-after", tooltip=None).encode(y=y.stack(None))
    line = base.mark_line(color=ACCENT, strokeWidth=2.5, interpolate="step-after", tooltip=None)
    ends = pd.DataFrame({"false_alarms": [0.0, 1.0], "found": [0.0, 1.0]})
    chance = alt.Chart(ends).mark_line(color=MUTED, strokeDash=[4, 4], tooltip=None).encode(x, y)
    layers = [chance, area, line]
    if at is not None:
        spot = pd.DataFrame([{"false_alarms": at[0], "found": at[1]}])
        layers.append(alt.Chart(spot).mark_rule(color=MUTED, strokeDash=[2, 3], tooltip=None).encode(x))
        layers.append(
            alt.Chart(spot)
            .mark_point(color=ACCENT, filled=True, size=150, stroke="white", strokeWidth=2, tooltip=None)
            .encode(x, y)
        )
    click = alt.selection_point(name=POINT, on="click", fields=["threshold"], nearest=True, toggle=False, empty=False)
    hover = alt.selection_point(
        name="near", on="pointerover", clear="pointerout", fields=["threshold"], nearest=True, empty=False
    )
    dots = base.mark_point(filled=True, color=ACCENT, size=60, cursor="pointer")
    dots = dots.encode(opacity=alt.condition(hover, alt.value(1), alt.value(0)), tooltip=tooltip)
    return alt.layer(*layers, dots.add_params(click, hover)).properties(height=330)


def cost(curve: pd.DataFrame, rate: float, least: float) -> alt.LayerChart:
    """Expected cost per image (`cost`) over the false-positive rate (`rate`), with the point of least cost marked."""
    scale = alt.Scale(type="log", domain=[float(curve["rate"].min()), 1], nice=False)
    axis = alt.Axis(format="~%", tickCount=5, grid=False)
    x = alt.X("rate:Q", title="false-positive rate", scale=scale, axis=axis)
    y = alt.Y(
        "cost:Q", title="expected cost", scale=alt.Scale(type="log", padding=8), axis=alt.Axis(tickCount=3, format="~g")
    )
    tooltip = [
        alt.Tooltip("rate:Q", title="false-positive rate", format=".2%"), alt.Tooltip("found:Q", format=".1%"),
        alt.Tooltip("cost:Q", title="expected cost", format=".4f"),
    ]  # fmt: skip
    line = alt.Chart(curve).mark_line(color=CALM, strokeWidth=2.5, interpolate="step-after", point={"opacity": 0})
    spot = alt.Chart(pd.DataFrame({"rate": [rate], "cost": [least]})).encode(x, y)
    mark = spot.mark_point(color=ACCENT, filled=True, size=150, stroke="white", strokeWidth=2, tooltip=None)
    return alt.layer(line.encode(x, y, tooltip=tooltip), mark).properties(height=200)


def rocs(curves: pd.DataFrame, students: list[str], kinds: list[str]) -> alt.LayerChart:
    """Overlaid ROC curves: the columns of `roc`, `student`, one of `students`, and `line`, one of `kinds`.

    The first kind is drawn solid, the others dashed.
    """
    axis = alt.Axis(format="%", tickCount=5)
    x = alt.X("false_alarms:Q", title="normal images called anomalous", axis=axis, scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("found:Q", title="anomalous images found", axis=axis, scale=alt.Scale(domain=[0, 1]))
    plain = {"title": None, "columns": 1, "labelLimit": 320, "symbolType": "stroke"}
    colour = alt.Color(
        "student:N", scale=alt.Scale(domain=students, range=list(SERIES[: len(students)])),
        legend=alt.Legend(orient="bottom", **plain),
    )  # fmt: skip
    dashes = alt.StrokeDash(
        "line:N", scale=alt.Scale(domain=kinds, range=[list(dash) for dash in DASHES[: len(kinds)]]),
        legend=alt.Legend(orient="top", symbolStrokeColor=MUTED, **plain) if len(kinds) > 1 else None,
    )  # fmt: skip
    rate = {"format": ".2%", "type": "quantitative"}
    tooltip = ["student:N", "line:N", alt.Tooltip("false_alarms", **rate), alt.Tooltip("found", **rate)]
    lines = alt.Chart(curves).mark_line(strokeWidth=2.5, interpolate="step-after")
    ends = pd.DataFrame({"false_alarms": [0.0, 1.0], "found": [0.0, 1.0]})
    chance = alt.Chart(ends).mark_line(color=MUTED, strokeDash=[4, 4], opacity=0.6, tooltip=None).encode(x, y)
    drawn = lines.encode(x, y, color=colour, strokeDash=dashes, tooltip=tooltip)
    return alt.layer(chance, drawn).properties(height=340 + 20 * (len(students) + len(kinds)))


def duel(images: pd.DataFrame, students: list[str], rate: float) -> alt.LayerChart:
    """p-values of images under two students, on log scales; a click selects `IMAGE` by its index.

    Args:
        images: columns `index`, `kind`, `anomalous`, `first`, `second` and optionally `image`, a URL.
        rate: the p-value up to which an image is called anomalous.
    """
    lowest = float(images[["first", "second"]].to_numpy().min())
    scale = alt.Scale(type="log", domain=[lowest * 0.8, 1.1], nice=False)
    axis = alt.Axis(format="~g", tickCount=5, grid=False)
    x = alt.X("first:Q", title=f"p-value under {students[0]}", scale=scale, axis=axis)
    y = alt.Y("second:Q", title=f"p-value under {students[1]}", scale=scale, axis=axis)
    tooltip = ["kind:N", "index:Q", alt.Tooltip("first:Q", format=".4f"), alt.Tooltip("second:Q", format=".4f")]
    tooltip += ["image:N"] if "image" in images else []
    shown = images.assign(what=np.where(images["anomalous"], "anomalous", "normal"))
    points = (
        alt.Chart(shown)
        .mark_point(filled=True, size=70, opacity=0.65, cursor="pointer")
        .encode(
            x, y, tooltip=tooltip, color=alt.Color("what:N", scale=KINDS, legend=alt.Legend(title=None, orient="top")),
        )
        .add_params(alt.selection_point(name=IMAGE, on="click", fields=["index"], nearest=True, toggle=False))
    )  # fmt: skip
    at = pd.DataFrame({"first": [rate], "second": [rate]})
    across = alt.Chart(at).mark_rule(color=MUTED, strokeDash=[4, 3], tooltip=None).encode(y)
    down = alt.Chart(at).mark_rule(color=MUTED, strokeDash=[4, 3], tooltip=None).encode(x)
    return alt.layer(across, down, points).properties(height=430)


def image_map(images: pd.DataFrame, kinds: list[str], axes: tuple[str, str]) -> alt.Chart:
    """Images as points; hovering shows them, a click selects `IMAGE` by its row.

    Args:
        images: columns `x`, `y`, `what` (one of `kinds`), `name`, `row` and `image`, a URL.
        kinds: in the order of the legend.
        axes: the titles of the two axes.
    """
    colours = dict(zip(("normal, training", "normal, test", "anomalous, test"), (MUTED, CALM, ACCENT), strict=True))
    scale = alt.Scale(domain=kinds, range=[colours.get(kind, SERIES[4]) for kind in kinds])
    blank = alt.Axis(labels=False, ticks=False, grid=False, domain=False)
    return (
        alt.Chart(images)
        .mark_point(filled=True, size=70, opacity=0.7, cursor="pointer")
        .encode(
            alt.X("x:Q", title=axes[0], axis=blank, scale=alt.Scale(zero=False, padding=15)),
            alt.Y("y:Q", title=axes[1], axis=blank, scale=alt.Scale(zero=False, padding=15)),
            color=alt.Color("what:N", scale=scale, legend=alt.Legend(title=None, orient="top", columns=2)),
            tooltip=["what:N", "name:N", "image:N"],
        )
        .add_params(alt.selection_point(name=IMAGE, on="click", fields=["row"], nearest=True, toggle=False))
        .properties(height=480)
    )


def pixel_curve(curves: pd.DataFrame, column: str, title: str, most: float) -> alt.LayerChart:
    """`column` over the pixel false-positive rate up to `most`, with the area below it shaded."""
    shown = curves[curves["false_alarms"] <= most]
    axis = alt.Axis(format="%", tickCount=5)
    x = alt.X(
        "false_alarms:Q", title="good pixels called anomalous", axis=axis, scale=alt.Scale(domain=[0, most], nice=False)
    )
    y = alt.Y(f"{column}:Q", title=title, axis=axis, scale=alt.Scale(domain=[0, 1]))
    tooltip = [
        alt.Tooltip("false_alarms:Q", title="false alarms", format=".2%"),
        alt.Tooltip(f"{column}:Q", title=title, format=".2%"),
        alt.Tooltip("threshold:Q", title="σ above normal", format=".2f"),
    ]
    base = alt.Chart(shown).encode(x, y, tooltip=tooltip)
    return alt.layer(
        base.mark_area(color=CALM, opacity=0.12), base.mark_line(color=CALM, strokeWidth=2.5, point={"opacity": 0})
    ).properties(height=260)


def histogram(table: pd.DataFrame, threshold: float | None) -> alt.LayerChart:
    """Histograms of normal and anomalous images' scores, each normalised to its own count, with the threshold."""
    edges = np.linspace(table["score"].min(), table["score"].max(), BINS + 1)
    rows = []
    for truth, anomalous in (("normal", False), ("anomalous", True)):
        counts = np.histogram(table.loc[table["anomalous"] == anomalous, "score"], edges)[0]
        share = counts / max(1, counts.sum())
        rows.append(
            pd.DataFrame({"from": edges[:-1], "to": edges[1:], "images": counts, "share": share, "what": truth})
        )
    tooltip = [
        "what:N", alt.Tooltip("images:Q"), alt.Tooltip("share:Q", format=".1%"),
        alt.Tooltip("from:Q", format=".3f"), alt.Tooltip("to:Q", format=".3f"),
    ]  # fmt: skip
    bars = (
        alt.Chart(pd.concat(rows))
        .mark_bar(opacity=0.6, binSpacing=0.5)
        .encode(
            alt.X("from:Q", bin="binned", title="anomaly score", axis=alt.Axis(tickCount=6, grid=False)),
            alt.X2("to:Q"),
            alt.Y("share:Q", title="share of their kind", stack=None, axis=alt.Axis(format="%", tickCount=4)),
            color=alt.Color("what:N", scale=KINDS, legend=alt.Legend(title=None, orient="top")),
            tooltip=tooltip,
        )
    )
    layers = [bars]
    if threshold is not None:
        where = alt.Chart(pd.DataFrame({"score": [threshold], "label": ["threshold"]})).encode(alt.X("score:Q"))
        layers.append(
            where.mark_rule(color=MUTED, strokeWidth=2.5).encode(tooltip=[alt.Tooltip("score:Q", format=".4f")])
        )
        layers.append(
            where.mark_text(
                align="left", dx=4, dy=-4, baseline="bottom", color=MUTED, fontWeight=600, clip=False
            ).encode(y=alt.value(0), text="label:N")
        )
    return alt.layer(*layers).properties(height=280)


def found(rows: pd.DataFrame) -> alt.Chart:
    """Shares that are found: columns `what`, `found` in 0…1 and `count` in words."""
    rows = rows.assign(label=[f"{row.what}  {row.count}" for row in rows.drop(columns="found").itertuples(index=False)])
    axis = alt.Axis(labelOverlap=False, domain=False, ticks=False, labelLimit=220)
    return (
        alt.Chart(rows)
        .mark_bar(height=15, cornerRadiusEnd=2, color=CALM)
        .encode(
            alt.X("found:Q", title="found", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5)),
            alt.Y("label:N", sort=rows["label"].tolist(), title=None, axis=axis),
            tooltip=["what:N", alt.Tooltip("found:Q", format=".0%"), "count:N"],
        )
        .properties(height=60 + 27 * len(rows))
    )


def by_kind(rows: pd.DataFrame, chosen: str | None) -> alt.Chart:
    """AUROC of normals against each other kind; a click selects `KIND` by name."""
    low = max(0.0, float(rows["auroc"].min()) - max(0.01, (1 - float(rows["auroc"].min())) / 3))
    rows = rows.assign(
        chosen=rows["kind"] == chosen, low=low, label=[f"{row.kind}  {row.auroc:.1%}" for row in rows.itertuples()]
    )
    axis = alt.Axis(labelOverlap=False, domain=False, ticks=False)
    return (
        alt.Chart(rows)
        .mark_bar(height=15, cornerRadiusEnd=2, cursor="pointer")
        .encode(
            alt.X("auroc:Q", title="AUROC", scale=alt.Scale(domain=[low, 1]), axis=alt.Axis(format="%", tickCount=5)),
            alt.X2("low:Q"),
            alt.Y("label:N", sort=rows["label"].tolist(), title=None, axis=axis),
            tooltip=["kind:N", alt.Tooltip("auroc:Q", title="AUROC", format=".2%"), "images:Q"],
            color=alt.condition("datum.chosen", alt.value(ACCENT), alt.value(CALM)),
        )
        .add_params(alt.selection_point(name=KIND, on="click", fields=["kind"]))
        .properties(height=60 + 27 * len(rows))
    )


def by_class(figures: pd.DataFrame, systems: list[str]) -> alt.LayerChart:
    """AUROC per class and system, with its spread from `low` to `high`; a click in the legend highlights a system."""
    order = list(dict.fromkeys(figures["class"]))
    systems = systems[: len(SERIES)]  # further ones have no colour of their own
    figures = figures[figures["system"].isin(systems)]
    colour = alt.Color(
        "system:N",
        scale=alt.Scale(domain=systems, range=list(SERIES[: len(systems)])),
        legend=alt.Legend(title=None, orient="bottom", columns=1, labelLimit=320),
    )
    singled = alt.selection_point(name="system", fields=["system"], bind="legend")
    shade = alt.condition(singled, alt.value(1), alt.value(0.12))
    y = alt.Y(
        "class:N", sort=order, title=None, axis=alt.Axis(labelOverlap=False, labelFlush=False, grid=True, domain=False)
    )
    axis = alt.Axis(format="%", tickCount=6)
    base = alt.Chart(figures)
    spread = base.mark_rule(strokeWidth=2).encode(
        alt.X("low:Q", title="AUROC, test", scale=alt.Scale(zero=False, padding=10), axis=axis), alt.X2("high:Q"), y,
        color=colour, opacity=shade,
    )  # fmt: skip
    dots = base.mark_point(filled=True, size=95).encode(
        alt.X("auroc:Q"), y, color=colour, opacity=shade,
        shape=alt.condition("datum.published", alt.value("diamond"), alt.value("circle")),
        tooltip=["class:N", "system:N", alt.Tooltip("auroc:Q", title="AUROC", format=".2%"), "provenance:N"],
    )  # fmt: skip
    return alt.layer(spread, dots.add_params(singled)).properties(height=90 + 30 * len(order) + 22 * len(systems))
