"""Comparison of two students of one task on the same test images."""

import numpy as np
import pandas as pd
import streamlit as st

from kdad.data.datasets import at_hand
from kdad.detection import conformal
from kdad.errors import UserError
from ui.results import charts
from ui.results.evaluated import DEFAULT, Evidence, auroc, roc
from ui.results.judged_images import pictures_of
from ui.results.scores import evidence_or_stop
from ui.shared import figures
from ui.shared.links import gallery_link
from ui.shared.page import INSPECT
from ui.shared.pictures import data_url, to_display
from ui.shared.student_index import Student, of_same_task
from ui.shared.student_picker import check_link, provenance, students_or_stop
from ui.shared.words import percent, plain

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
MAX_POINTS, THUMBNAIL = 500, 64
BOTH = ("both", "the first alone", "the second alone", "neither")


def section() -> None:
    """Draw the section: choose two students of one task, and see where they differ."""
    one, other = _choose()
    rate = st.segmented_control(
        "False-positive rate on held-out normals", RATES, default=0.05, required=True, key="arena-rate",
        format_func=percent, persist_state="session", bind="query-params",
    )  # fmt: skip
    table = compared(one, other, rate)
    _counts(table)
    left, right = st.columns([3, 2], gap="large")
    with left:
        _scatter(table, one, other, rate)
    with right:
        _rocs(one, other)


def compared(one: Evidence, other: Evidence, rate: float) -> pd.DataFrame:
    """Test images scored by both students.

    Columns `index`, `kind`, `anomalous`, the p-values `first` and `second`, and `outcome`: which of the
    two calls the image anomalous at the false-positive rate, one of `BOTH`.
    """
    table = one.table.merge(other.table[["index", "score"]], on="index", suffixes=("", "_other"))
    called = {}
    for name, column, evidence in (("first", "score", one), ("second", "score_other", other)):
        assert evidence.normals is not None
        scores = table[column].to_numpy()
        table[name] = conformal.p_values(scores, evidence.normals)
        called[name] = scores > conformal.threshold(evidence.normals, rate)
    first, second = called["first"], called["second"]
    table["outcome"] = np.select([first & second, first, second], BOTH[:3], BOTH[3])
    return table.drop(columns=["score", "score_other"])


def _choose() -> tuple[Evidence, Evidence]:
    """Choose two calibrated students of one task, by default of a VGG and a ViT; ends the page if there are none."""
    check_link("first", students := students_or_stop())
    pairs = {key: _opponents(student, students) for key, student in students.items() if student.evaluation}
    pairs = {key: others for key, others in pairs.items() if others}
    if not pairs:
        st.info("There are no two evaluated students of one task. Train a second one with a different teacher.")
        st.stop()
    left, right = st.columns(2)
    keys = list(pairs)
    favourite = next((index for index, key in enumerate(keys) if students[key].dataset == "patterns-defects"), 0)
    first = left.selectbox("First", keys, index=favourite, key="first", bind="query-params", persist_state="session")
    others = pairs[first]
    vit = next((index for index, key in enumerate(others) if "vit" in students[key].teacher), 0)
    second = right.selectbox("Second", others, index=vit, key=f"second-{first}")
    evidences = []
    for column, key in ((left, first), (right, second)):
        with column:
            provenance(students[key])
        evidences.append(evidence_or_stop(students[key], DEFAULT))
    if any(evidence.normals is None for evidence in evidences):
        st.info("One of the two is not calibrated, so it has no p-values; run evaluate on it.")
        st.stop()
    return evidences[0], evidences[1]


def _opponents(student: Student, students: dict[str, Student]) -> list[str]:
    """The keys of students of the same task with different teachers."""
    return [other.key for other in of_same_task(student, students) if other.teacher != student.teacher]


def _counts(table: pd.DataFrame) -> None:
    anomalous = table[table["anomalous"]]["outcome"]
    alarms = table[~table["anomalous"]]["outcome"]
    with st.container(horizontal=True, gap="large"):
        for outcome in BOTH:
            count = int((anomalous == outcome).sum())
            normals = int((alarms == outcome).sum())
            words = f"{normals:,} normals correctly passed" if outcome == BOTH[3] else f"{normals:,} false alarms"
            title = f"Anomalies found by {outcome}"
            st.metric(title, f"{count:,}", words, delta_color="off", delta_arrow="off", width="content")


def _scatter(table: pd.DataFrame, one: Evidence, other: Evidence, rate: float) -> None:
    st.subheader("p-values under each student", anchor=False)
    shown = telling(table)
    here = at_hand(one.student.dataset)
    pictures = _thumbnails(one.student, shown) if here else None
    frame = shown if pictures is None else shown.assign(image=pictures)
    names = [evidence.student.teacher_name for evidence in (one, other)]
    chart = charts.duel(frame, names, rate)
    figures.chart(
        chart, "p-values", key="duel", on_select="rerun", selection_mode=charts.IMAGE,
        alt="p-values of the test images under both students; images right of or above a line are called normal",
    )  # fmt: skip
    note = f"{len(shown):,} of {len(table):,} test images, preferably those judged differently, the rest at random."
    st.caption(f"{note} Hover to see an image, click to inspect it. Lines: {percent(rate)}.")
    _clicked(shown, one, other, here)


def telling(table: pd.DataFrame) -> pd.DataFrame:
    """Sample at most `MAX_POINTS` rows with a fixed seed, up to half of them images judged differently."""
    apart = table[table["outcome"].isin(BOTH[1:3])]
    apart = apart.sample(min(len(apart), MAX_POINTS // 2), random_state=0)
    rest = table.drop(apart.index)
    return pd.concat([apart, rest.sample(min(len(rest), MAX_POINTS - len(apart)), random_state=0)])


def _thumbnails(student: Student, rows: pd.DataFrame) -> list[str] | None:
    """The test images as data URLs, or None if they cannot be read."""
    pictures = pictures_of(student, rows["index"].to_numpy())
    return None if pictures is None else [data_url(to_display(picture, THUMBNAIL)) for picture in pictures]


def _clicked(rows: pd.DataFrame, one: Evidence, other: Evidence, here: bool) -> None:
    """Describe the clicked image, and link to its inspection."""
    picked = st.session_state["duel"].selection.get(charts.IMAGE) if "duel" in st.session_state else None
    if not picked:
        return
    row = rows[rows["index"] == picked[0]["index"]].iloc[0]
    found = f"p {row['first']:.4f} and {row['second']:.4f}, called anomalous by {row['outcome']}"
    st.markdown(f"**{plain(row['kind'])} {row['index']}**: {found}.")
    if not here:
        return
    try:
        query = gallery_link(one.student, row["kind"], int(row["index"])) | {"compare": other.student.key}
    except UserError as error:
        st.error(plain(error))
        return
    st.page_link(INSPECT, label="Inspect this image", icon=":material/search:", query_params=query)


def _rocs(one: Evidence, other: Evidence) -> None:
    st.subheader("ROC of both", anchor=False)
    curves = [
        roc(evidence.table).assign(student=f"{evidence.student.teacher_name}, {100 * auroc(evidence.table):.2f} %")
        for evidence in (one, other)
    ]
    names = [str(curve["student"].iloc[0]) for curve in curves]
    figures.chart(charts.rocs(pd.concat(curves), names), "roc-of-both", alt=f"ROC curves, AUROC: {'; '.join(names)}")
    st.caption("Both on the same test images, by the default score.")
