"""The operating point of least expected cost: what wrong verdicts cost, and the false-positive rate that follows."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from kdad.detection import conformal
from kdad.errors import UserError
from kdad.evaluation.operating_points import choose, clear, curve, keep
from kdad.storage.operating_point import Costs, OperatingPoint, load_operating_point
from ui.results import charts
from ui.results.evaluated import DEFAULT, Evidence
from ui.shared import figures
from ui.shared.student_index import Student, cost_command, root
from ui.shared.words import percent, plain

USUAL = Costs(miss=10.0, false_alarm=1.0, defects=0.02)
RATE = "rate"  # session key of the operating point's slider
KEPT: dict[str, Any] = {"format": "%g", "persist_state": "session", "bind": "query-params"}


def kept_point(student: Student) -> OperatingPoint | None:
    """The operating point that is kept with a student; None, with a message on the page if it is damaged."""
    try:
        return load_operating_point(student.folder, student.weights_sha256)
    except UserError as error:
        st.error(plain(error), icon=":material/broken_image:")
        return None


def choose_costs(evidence: Evidence, column: str) -> OperatingPoint | None:
    """Ask for costs, and offer the rate that follows; returns its point, None if the score has none to keep."""
    if evidence.normals is None or column != DEFAULT:
        return None
    with st.expander("Choose the operating point by costs", icon=":material/balance:", key="by-costs"):
        columns = st.columns(3)
        miss = columns[0].number_input(
            "A miss costs", 0.01, 1e6, USUAL.miss, key="miss", help="An anomalous image that is called normal.", **KEPT
        )
        false_alarm = columns[1].number_input(
            "A false alarm costs", 0.01, 1e6, USUAL.false_alarm, key="false-alarm",
            help="A normal image that is called anomalous, in the same unit.", **KEPT,
        )  # fmt: skip
        defects = columns[2].number_input(
            "Anomalous, % of images to come", 0.01, 99.0, 100 * USUAL.defects, key="defects", **KEPT
        )
        costs = Costs(miss, false_alarm, defects / 100)
        try:
            point = choose(evidence.student.folder, costs)
        except UserError as error:
            st.error(plain(error), icon=":material/broken_image:")
            return None
        _explain(evidence, point)
        _offer(evidence.student, point)
    return point


def _explain(evidence: Evidence, point: OperatingPoint) -> None:
    anomalies = evidence.table.loc[evidence.table["anomalous"], "score"].to_numpy()
    rates, found = curve(evidence.normals, anomalies)
    frame = pd.DataFrame({"rate": rates, "found": found, "cost": point.costs.expected(rates, found)})
    at_usual = frame.iloc[int(np.abs(frame["rate"] - conformal.DEFAULT_FPR).argmin())]
    nothing = point.costs.expected(0.0, 0.0)
    st.markdown(
        f"Least expected cost at a false-positive rate of **{percent(point.fpr)}**: **{point.expected_cost:.3g}** per "
        f"image, instead of {at_usual['cost']:.3g} at {percent(at_usual['rate'])} and {nothing:.3g} if every image is "
        "called normal."
    )
    alt = f"Expected cost per image over the false-positive rate, least at {percent(point.fpr)}"
    figures.chart(charts.cost(_thinned(frame), point.fpr, point.expected_cost), "expected-cost", alt=alt)
    st.caption(
        f"Cost = false alarm × normal share × rate + miss × anomalous share × missed. Found on the {point.anomalies:,} "
        f"anomalous test images ({percent(point.found)} at this point), which therefore choose it: figures at it "
        "flatter, and real defects may differ from those tested."
    )


def _thinned(frame: pd.DataFrame) -> pd.DataFrame:
    """At most some hundred rows, evenly on a log scale."""
    rows = np.unique(np.geomspace(1, len(frame), charts.COST_POINTS).round().astype(int)) - 1
    return frame.iloc[rows]


def _offer(student: Student, point: OperatingPoint) -> None:
    """Offer to move the slider there, and to keep the point with a student that may be written to."""
    kept = kept_point(student)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Show it below", icon=":material/arrow_downward:", on_click=_move, args=(point.fpr,))
        if student.folder.is_relative_to(root()):
            st.button(
                "Use it by default", icon=":material/save:", type="primary", on_click=_keep, args=(student, point),
                disabled=kept == point, help="Keeps it with the student: score, serve, report and Inspect then decide "
                "at this rate unless another is asked for.",
            )  # fmt: skip
            if kept:
                st.button("Back to 5 %", icon=":material/undo:", on_click=_clear, args=(student,))
    if kept:
        st.success(f"Kept with this student: {plain(kept.line)}", icon=":material/check:")
    st.caption("The same from the shell:")
    st.code(cost_command(student, point.costs), language="bash", wrap_lines=True)


def _move(rate: float) -> None:
    st.session_state[RATE] = rate


def _keep(student: Student, point: OperatingPoint) -> None:
    _changed(lambda: keep(student.folder, point))
    _move(point.fpr)


def _clear(student: Student) -> None:
    _changed(lambda: clear(student.folder))
    _move(conformal.DEFAULT_FPR)


def _changed(change) -> None:
    """Change a student's folder; what prevents it is said on the page."""
    try:
        change()
    except (UserError, OSError) as error:
        st.toast(plain(error), icon=":material/error:")
