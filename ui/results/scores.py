"""One student's test scores: histogram, ROC, operating point, confusion matrix and AUROC per class."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import streamlit as st

from kdad.detection import conformal
from kdad.errors import UserError
from kdad.scores import score_named
from kdad.spreadsheets import as_csv
from kdad.storage.operating_point import OperatingPoint
from ui.results import charts, costs
from ui.results.evaluated import (
    DEFAULT,
    PUBLISHED,
    Evidence,
    auroc,
    auroc_by_kind,
    confusion,
    evidence_of,
    pixel_curves_of,
    roc,
)
from ui.shared import figures
from ui.shared.palette import ACCENT, CALM
from ui.shared.rates import default_rate
from ui.shared.student_index import Student, evaluate_command, sensitivity_of
from ui.shared.student_picker import check_link, provenance, students_or_stop
from ui.shared.words import percent, plain

SCORE_NAMES = {DEFAULT: "Default", PUBLISHED: "Published"}
SCORE_HELP = (
    "Default: this project's default score. Published: the sum over the last three critical layers, as in Salehi et "
    "al. 2020. Both are computed from the same student."
)
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)
ALL = "all others"
CONFUSION_STYLE = """<style>
.kdad-confusion { width: 100%; table-layout: fixed; border-collapse: separate; border-spacing: .3rem; }
.kdad-confusion th, .kdad-confusion td { text-align: center; border: none; }
.kdad-confusion th { font-weight: 500; font-size: .85rem; opacity: .85; }
.kdad-confusion td[style] { border-radius: .5rem; padding: 1.2rem .3rem; }
.kdad-confusion b { font-size: 1.3rem; }
</style>"""


def section() -> None:
    """Draw the section: all about one student's scores."""
    evidence = choose_evidence()
    kinds = auroc_by_kind(evidence.table)
    against = _choose_against(kinds)
    table = evidence.against(None if against == ALL else against)
    rate, threshold = _choose_threshold(evidence, costs.choose_costs(evidence, st.session_state["score"]))
    _figures(evidence, table, against, rate, threshold)
    left, right = st.columns(2, gap="large")
    with left:
        _roc(table, evidence, threshold)
    with right:
        _histogram(table, threshold)
    left, right = st.columns(2, gap="large")
    with left:
        _kinds(kinds, against)
    with right:
        _confusion(table, threshold)
    _localisation(evidence.student)
    _drawn_defects(evidence.student)
    _downloads(evidence, kinds)


def choose_evidence() -> Evidence:
    """Choose student and score; ends the page if there is nothing to show."""
    students = students_or_stop()
    check_link("student", students)
    left, right = st.columns([3, 2])
    keys = list(students)
    evaluated = [key for key in keys if students[key].evaluation]
    first = keys.index(evaluated[0]) if evaluated else 0
    chosen = left.selectbox("Student", keys, index=first, key="student", bind="query-params", persist_state="session")
    student = students[chosen]
    with left:
        provenance(student)
    column = right.segmented_control(
        "Score", list(SCORE_NAMES), default=DEFAULT, required=True, format_func=SCORE_NAMES.get, key="score",
        help=SCORE_HELP, persist_state="session",
    )  # fmt: skip
    return evidence_or_stop(student, column)


def evidence_or_stop(student: Student, column: str) -> Evidence:
    """Evidence of a student; ends the page with instructions if there is none."""
    try:
        evidence = evidence_of(student, column)
    except UserError as error:
        st.error(plain(error), icon=":material/broken_image:")
        evidence = None
    else:
        if evidence is None:
            st.info(f"**{plain(student.key)}** is not evaluated yet. To evaluate it where its data set is available:")
    if evidence is None:
        st.code(evaluate_command(student.folder), language="bash", wrap_lines=True)
        _drawn_defects(student)
        st.stop()
    return evidence


def _choose_against(kinds: pd.DataFrame) -> str:
    options = [ALL, *kinds["kind"]]
    if st.session_state.get("against") not in options:
        st.session_state["against"] = ALL
    return st.pills(
        "Normal against", options, key="against", required=True, help="Or click a bar of “AUROC against each class”.",
        persist_state="session",
    )  # fmt: skip


def _choose_threshold(evidence: Evidence, by_costs: OperatingPoint | None) -> tuple[float | None, float | None]:
    """Choose the false-positive rate; returns it and its threshold, both based on held-out normals.

    `by_costs` is the point of least expected cost, which is offered among the others.
    """
    if evidence.normals is None:
        st.info("This student is not calibrated, so it has no threshold. To calibrate it:")
        st.code(evaluate_command(evidence.student.folder), language="bash", wrap_lines=True)
        return None, None
    kept = costs.kept_point(evidence.student)
    options = _rates(len(evidence.normals), [point.fpr for point in (by_costs, kept) if point])
    usual = default_rate(costs.RATE, options, kept.fpr if kept else conformal.DEFAULT_FPR)
    rate = st.select_slider(
        "Operating point: false-positive rate on held-out normals", options, usual, key=costs.RATE, format_func=percent,
        help="The threshold is set on normals held out from training, never on test images. Or click the ROC curve.",
        persist_state="session", bind="query-params",
    )  # fmt: skip
    return rate, conformal.threshold(evidence.normals, rate)


def _rates(normals: int, further: Iterable[float] = ()) -> list[float]:
    """The rates on offer that so many normals can hold, with `further` ones."""
    lowest = conformal.lowest_fpr(normals)
    return sorted({lowest, *(rate for rate in (*RATES, *further) if rate > lowest)})


def _figures(
    evidence: Evidence, table: pd.DataFrame, against: str, rate: float | None, threshold: float | None
) -> None:
    others = "all others" if against == ALL else plain(against)
    with st.container(horizontal=True, gap="large"):
        st.metric(f"AUROC against {others}", f"{100 * auroc(table):.2f} %", width="content")
        if threshold is not None:
            shares = confusion(table, threshold).set_index(["truth", "verdict"])["share"]
            false_alarms = shares["normal", "called anomalous"]
            st.metric("False alarms on test", percent(false_alarms), width="content")
            st.metric("Anomalies found", percent(shares["anomalous", "called anomalous"]), width="content")
    student, evaluation = evidence.student, evidence.student.evaluation
    words = (
        f"{plain(student.dataset_name)}, {evaluation.get('split', 'test')} split, seed {student.seed}, teacher "
        f"{plain(student.teacher_name)}; {(~table['anomalous']).sum():,} normal and {table['anomalous'].sum():,} "
        f"anomalous images. {score_named(evidence.score).description}"
    )
    if threshold is not None:
        promise = conformal.guarantee(len(evidence.normals), rate, student.calibration)
        words += f" Threshold {threshold:.4f}, for {percent(rate)}. {promise} On test it is {percent(false_alarms)}."
    st.caption(words)


def _roc(table: pd.DataFrame, evidence: Evidence, threshold: float | None) -> None:
    st.subheader("ROC", anchor=False)
    curve, alt = roc(table), f"ROC curve, area {100 * auroc(table):.2f} %"
    if threshold is None:
        figures.chart(charts.roc(curve, None), "roc", alt=alt)
        return
    shares = confusion(table, threshold).set_index(["truth", "verdict"])["share"]
    at = (shares["normal", "called anomalous"], shares["anomalous", "called anomalous"])
    alt += f"; operating point: {percent(at[0])} false alarms, {percent(at[1])} found"
    figures.chart(
        charts.roc(curve, at), "roc", key="roc", on_select=lambda: _take_point(evidence.normals),
        selection_mode=charts.POINT, alt=alt,
    )  # fmt: skip


def _take_point(normals: np.ndarray) -> None:
    """Move the operating point to the rate whose threshold is closest to the clicked one."""
    picked = st.session_state["roc"].selection.get(charts.POINT)
    if picked:
        rates = np.array(_rates(len(normals)))
        clicked = conformal.p_values(np.array([picked[0]["threshold"]]), normals)[0]
        st.session_state["rate"] = float(rates[np.abs(np.log(rates / clicked)).argmin()])


def _histogram(table: pd.DataFrame, threshold: float | None) -> None:
    st.subheader("Scores of normals and anomalies", anchor=False)
    alt = "Histogram of the scores of normal and anomalous test images"
    figures.chart(charts.histogram(table, threshold), "scores", alt=alt)


def _kinds(kinds: pd.DataFrame, against: str) -> None:
    st.subheader("AUROC against each class", anchor=False)
    worst = kinds.iloc[0]
    figures.chart(
        charts.by_kind(kinds, against), "each-other-class", key="kinds", on_select=_take_kind,
        selection_mode=charts.KIND,
        alt=f"AUROC against each class; lowest against {worst['kind']}, {percent(worst['auroc'])}",
    )  # fmt: skip


def _take_kind() -> None:
    picked = st.session_state["kinds"].selection.get(charts.KIND)
    st.session_state["against"] = picked[0]["kind"] if picked else ALL


def _confusion(table: pd.DataFrame, threshold: float | None) -> None:
    """Show the confusion matrix as a table, each cell shaded by its share of the row."""
    if threshold is None:
        return
    st.subheader("At this operating point", anchor=False)
    rows = []
    for truth, cells in confusion(table, threshold).groupby("truth", sort=False):
        shown = [_confusion_cell(truth in cell.verdict, cell.images, cell.share) for cell in cells.itertuples()]
        rows.append(f'<tr><th scope="row">{truth}</th>{"".join(shown)}</tr>')
    head = '<tr><td></td><th scope="col">called normal</th><th scope="col">called anomalous</th></tr>'
    st.html(f'{CONFUSION_STYLE}<table class="kdad-confusion">{head}{"".join(rows)}</table>')


def _confusion_cell(correct: bool, images: int, share: float) -> str:
    colour = f"color-mix(in srgb, {CALM if correct else ACCENT} {10 + 60 * share:.0f}%, transparent)"
    return f'<td style="background: {colour}"><b>{images:,}</b><br>{percent(share)}</td>'


def _localisation(student: Student) -> None:
    """Show how well heatmaps localise defects, if test images have masks."""
    try:
        curves = pixel_curves_of(student)
    except UserError as error:
        st.error(plain(error), icon=":material/broken_image:")
        return
    measured = student.evaluation
    if curves is None or "pixel_auroc" not in measured:
        return
    st.subheader("Localisation: heatmaps against masks", anchor=False)
    with st.container(horizontal=True, gap="large"):
        for name, title in (("pixel_auroc", "Pixel AUROC"), ("pro", "PRO"), ("pixel_ap", "Pixel AP")):
            without = measured.get(f"{name}_without_good")
            delta = None if without is None else f"{100 * without:.2f} % without good images"
            st.metric(
                title, f"{100 * measured[name]:.2f} %", delta, delta_color="off", delta_arrow="off", width="content"
            )
    left, right = st.columns(2, gap="large")
    with left:
        chart = charts.pixel_curve(curves, "found", "defect pixels found", 1.0)
        figures.chart(chart, "pixel-roc", alt=f"Pixel ROC curve, area {100 * measured['pixel_auroc']:.2f} %")
    with right:
        chart = charts.pixel_curve(curves, "overlap", "defect regions covered", 0.3)
        figures.chart(chart, "pro", alt=f"PRO curve up to 30 % false positives, area {100 * measured['pro']:.2f} %")
    st.caption(
        "Left: pixel ROC. Right: mean overlap per connected defect region, up to 30 % false positives; PRO is the "
        "area below it, divided by 30 %. All test images, with the default method, patch."
    )


def _drawn_defects(student: Student) -> None:
    """Show what a student of photographs finds of defects drawn into normal images."""
    tried = sensitivity_of(student.folder)
    if tried is None:
        return
    st.subheader("Drawn defects", anchor=False)
    for line in tried["lines"]:
        st.markdown(plain(line))
    left, right = st.columns(2, gap="large")
    for column, name in ((left, "kinds"), (right, "sizes")):
        rows = [
            {"what": what, "found": found / of, "count": f"{found} of {of}"}
            for what, (found, of) in tried[name].items()
        ]
        with column:
            chart = charts.found(pd.DataFrame(rows))
            alt = "Share of drawn defects found: " + ", ".join(f"{row['what']} {row['count']}" for row in rows)
            figures.chart(chart, f"drawn-{name}", alt=alt)


def _downloads(evidence: Evidence, kinds: pd.DataFrame) -> None:
    name = evidence.student.key.replace("/", "-")
    with st.container(horizontal=True):
        st.download_button(
            "Scores (CSV)", lambda: as_csv(evidence.table), f"{name}-scores.csv", "text/csv",
            icon=":material/table:", on_click="ignore",
        )  # fmt: skip
        st.download_button(
            "AUROC per class (CSV)", lambda: as_csv(kinds), f"{name}-classes.csv", "text/csv",
            icon=":material/table:", on_click="ignore",
        )  # fmt: skip
