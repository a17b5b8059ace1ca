"""Comparison of two or three students of one task, and of their teachers alone, on the same test images."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import streamlit as st

from kdad.data.datasets import at_hand
from kdad.detection import conformal
from kdad.errors import UserError
from ui.results import charts
from ui.results.evaluated import DEFAULT, Baseline, Evidence, auroc, baselines_of, confusion, roc
from ui.results.judged_images import pictures_of
from ui.results.scores import evidence_or_stop
from ui.shared import figures
from ui.shared.links import ORDINALS, gallery_link
from ui.shared.page import INSPECT, arrived
from ui.shared.pictures import data_url, to_display
from ui.shared.student_index import Student, of_same_task
from ui.shared.student_picker import check_link, provenance, students_or_stop
from ui.shared.words import percent, plain

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
MAX_POINTS, THUMBNAIL = 500, 64
NONE = {2: "neither", 3: "none"}  # by number of students
ALL = {2: "both", 3: "all three"}
TWO = "two of three"
DEFAULT_SCORE = "default score"


def section() -> None:
    """Draw the section: choose students of one task, and see where they differ."""
    evidences = _choose()
    rate = _choose_rate(evidences)
    table = compared(evidences, rate)
    _counts(table, len(evidences))
    left, right = st.columns([3, 2], gap="large")
    with left:
        _scatter(table, evidences, rate)
    with right:
        rows = _rocs(evidences, rate)
    _table(rows, rate)


def compared(evidences: Sequence[Evidence], rate: float) -> pd.DataFrame:
    """Test images scored by two or three students.

    Columns `index`, `kind`, `anomalous`, the p-values `first`, `second` and, of three, `third`, and `outcome`: which of
    the students call the image anomalous at the false-positive rate, one of `outcomes`.
    """
    table = evidences[0].table.drop(columns="score")
    called = []
    for name, evidence in zip(ORDINALS, evidences, strict=False):
        assert evidence.normals is not None
        table = table.merge(evidence.table[["index", "score"]], on="index")
        scores = table.pop("score").to_numpy()
        table[name] = conformal.p_values(scores, evidence.normals)
        called.append(scores > conformal.threshold(evidence.normals, rate))
    count = sum(verdicts.astype(int) for verdicts in called)
    number = len(called)
    table["outcome"] = np.select(
        [count == number, count == 0, count == 2, *called],
        [ALL[number], NONE[number], TWO, *map(_alone, ORDINALS[:number])],
        "",
    )
    return table


def outcomes(number: int) -> list[str]:
    """All that `number` students can say of an image together."""
    some = [TWO] if number > 2 else []
    return [ALL[number], *some, *map(_alone, ORDINALS[:number]), NONE[number]]


def _alone(name: str) -> str:
    return f"the {name} alone"


def _choose_rate(evidences: Sequence[Evidence]) -> float:
    """Choose the false-positive rate among those that all can hold."""
    lowest = max(conformal.lowest_fpr(len(evidence.normals)) for evidence in evidences if evidence.normals is not None)
    rates = [rate for rate in RATES if rate >= lowest] or [lowest]
    usual = min(rates, key=lambda rate: abs(rate - conformal.DEFAULT_FPR))
    if st.session_state.get("arena-rate", usual) not in rates:  # chosen for other students
        st.session_state["arena-rate"] = usual
    return st.segmented_control(
        "False-positive rate on held-out normals", rates, default=usual, required=True, key="arena-rate",
        format_func=percent, persist_state="session", bind="query-params",
    )  # fmt: skip


def _choose() -> list[Evidence]:
    """Choose two or three calibrated students of one task, by default of a VGG and a ViT; ends the page without any."""
    students = students_or_stop()
    pairs = {key: _opponents(student, students) for key, student in students.items() if student.evaluation}
    pairs = {key: others for key, others in pairs.items() if others}
    if not pairs:
        st.info("There are no two evaluated students of one task. Train a second one with a different teacher.")
        st.stop()
    check_link("first", pairs)
    columns = st.columns(3)
    keys = list(pairs)
    favourite = next((index for index, key in enumerate(keys) if students[key].dataset == "patterns-defects"), 0)
    first = columns[0].selectbox(
        "First", keys, index=favourite, key="first", bind="query-params", persist_state="session"
    )
    others = pairs[first]
    if arrived():
        check_link("second", others)
    vit = next((index for index, key in enumerate(others) if "vit" in students[key].teacher), 0)
    asked = st.query_params.get("second")
    second = columns[1].selectbox(
        "Second", others, index=vit, key="second", bind="query-params", persist_state="session"
    )
    rest = [key for key in others if students[key].teacher != students[second].teacher]
    if arrived() and asked in (None, "", second):  # else, the third may stand in for the second
        check_link("third", rest)
    third = columns[2].selectbox(
        "Third", rest, index=None, key="third", bind="query-params", persist_state="session", disabled=not rest,
        placeholder="none",
    )  # fmt: skip
    evidences = []
    for column, key in zip(columns, (first, second, third), strict=True):
        if key is not None:
            with column:
                provenance(students[key])
            evidences.append(evidence_or_stop(students[key], DEFAULT))
    if any(evidence.normals is None for evidence in evidences):
        st.info("One of them is not calibrated, so it has no p-values; run evaluate on it.")
        st.stop()
    return evidences


def _opponents(student: Student, students: dict[str, Student]) -> list[str]:
    """The keys of students of the same task with different teachers."""
    return [other.key for other in of_same_task(student, students) if other.teacher != student.teacher]


def _counts(table: pd.DataFrame, number: int) -> None:
    st.subheader("Anomalies found", anchor=False)
    anomalous = table[table["anomalous"]]["outcome"]
    alarms = table[~table["anomalous"]]["outcome"]
    grid = st.grid(4 if number == 2 else 3, min_column_width=155, gap="small")
    for outcome in outcomes(number):
        count = int((anomalous == outcome).sum())
        normals = int((alarms == outcome).sum())
        words = f"{normals:,} normals passed" if outcome == NONE[number] else f"{normals:,} false alarms"
        with grid.cell():
            st.metric(f"By {outcome}", f"{count:,}", words, delta_color="off", delta_arrow="off")


def _scatter(table: pd.DataFrame, evidences: Sequence[Evidence], rate: float) -> None:
    st.subheader("p-values under each student", anchor=False)
    shown = telling(table)
    here = at_hand(evidences[0].student.dataset)
    pictures = _thumbnails(evidences[0].student, shown) if here else None
    frame = shown if pictures is None else shown.assign(image=pictures)
    across, up = _choose_axes(len(evidences))
    names = [evidences[axis].student.teacher_name for axis in (across, up)]
    on_axes = frame.assign(first=frame[ORDINALS[across]], second=frame[ORDINALS[up]])
    figures.chart(
        charts.duel(on_axes, names, rate), "p-values", key="duel", on_select="rerun", selection_mode=charts.IMAGE,
        alt="p-values of the test images under both students; images right of or above a line are called normal",
    )  # fmt: skip
    note = f"{len(shown):,} of {len(table):,} test images, preferably those judged differently, the rest at random."
    st.caption(f"{note} Hover to see an image, click to inspect it. Lines: {percent(rate)}.")
    _clicked(shown, evidences, pictures is not None)


def _choose_axes(number: int) -> tuple[int, int]:
    """Choose which two of the students are the axes."""
    pairs = list(combinations(range(number), 2))
    if len(pairs) == 1:
        return pairs[0]
    chosen = st.segmented_control(
        "Axes", range(len(pairs)), default=0, required=True, key="arena-axes",
        format_func=lambda index: ", ".join(ORDINALS[axis] for axis in pairs[index]),
    )  # fmt: skip
    return pairs[chosen]


def telling(table: pd.DataFrame) -> pd.DataFrame:
    """Sample at most `MAX_POINTS` rows with a fixed seed, up to half of them images judged differently."""
    apart = table[~table["outcome"].isin([*ALL.values(), *NONE.values()])]
    apart = apart.sample(min(len(apart), MAX_POINTS // 2), random_state=0)
    rest = table.drop(apart.index)
    return pd.concat([apart, rest.sample(min(len(rest), MAX_POINTS - len(apart)), random_state=0)])


def _thumbnails(student: Student, rows: pd.DataFrame) -> list[str] | None:
    """The test images as data URLs, or None if they cannot be read."""
    pictures = pictures_of(student, rows["index"].to_numpy())
    return None if pictures is None else [data_url(to_display(pixels, THUMBNAIL)) for _, pixels in pictures]


def _clicked(rows: pd.DataFrame, evidences: Sequence[Evidence], here: bool) -> None:
    """Describe the clicked image, and link to its inspection."""
    picked = st.session_state["duel"].selection.get(charts.IMAGE) if "duel" in st.session_state else None
    if not picked or picked[0]["index"] not in rows["index"].array:
        return
    row = rows[rows["index"] == picked[0]["index"]].iloc[0]
    values = ", ".join(f"{row[name]:.4f}" for name in ORDINALS[: len(evidences)])
    st.markdown(f"**{plain(row['kind'])} {row['index']}**: p {values}, called anomalous by {row['outcome']}.")
    if not here:
        return
    student, others = evidences[0].student, [evidence.student.key for evidence in evidences[1:]]
    try:
        query = gallery_link(student, row["kind"], int(row["index"]))
    except UserError as error:
        st.error(plain(error))
        return
    links = [*query.items(), *(("compare", key) for key in others)]
    st.page_link(INSPECT, label="Inspect this image", icon=":material/search:", query_params=links)


def _rocs(evidences: Sequence[Evidence], rate: float) -> list[dict[str, str]]:
    """Draw the curves; returns the figures of each."""
    st.subheader("ROC", anchor=False)
    try:
        baselines = [(evidence, baseline) for evidence in evidences for baseline in baselines_of(evidence)]
    except UserError as error:
        st.error(plain(error), icon=":material/broken_image:")
        baselines = []
    wanted = bool(baselines) and st.toggle(
        "Teachers without a student", True, key="arena-baselines", persist_state="session",
        help="How far an image is from normals in the teacher's own features: what the score reads beside the student, "
        "or instead of it.",
    )  # fmt: skip
    lines = [(evidence, DEFAULT_SCORE, evidence) for evidence in evidences]
    lines += [(evidence, baseline.title, baseline) for evidence, baseline in baselines] if wanted else []
    curves = [
        roc(measured.table).assign(student=evidence.student.teacher_name, line=title)
        for evidence, title, measured in lines
    ]
    rows = [_row(evidence, title, measured, rate) for evidence, title, measured in lines]
    names = [evidence.student.teacher_name for evidence in evidences]
    kinds = list(dict.fromkeys(title for _, title, _ in lines))
    alt = "ROC curves, AUROC: " + "; ".join(f"{row['teacher']}, {row['score']}, {row['AUROC']}" for row in rows)
    figures.chart(charts.rocs(pd.concat(curves), names, kinds), "rocs", alt=alt)
    return rows


def _table(rows: list[dict[str, str]], rate: float) -> None:
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt=f"AUROC, and shares found at {percent(rate)}")
    st.caption(
        f"Per cent, all on the same test images; found and false alarms on test at {percent(rate)}. Default score: a "
        "student's, which may read the teacher's distance, too. A teacher's distance alone trains nothing."
    )


def _row(evidence: Evidence, title: str, measured: Evidence | Baseline, rate: float) -> dict[str, str]:
    """The figures of one line, in words."""
    assert measured.normals is not None
    shares = confusion(measured.table, conformal.threshold(measured.normals, rate))
    shares = shares[shares["verdict"] == "called anomalous"].set_index("truth")["share"]
    return {
        "teacher": evidence.student.teacher_name,
        "score": title,
        "AUROC": f"{100 * auroc(measured.table):.2f}",
        "found": f"{100 * shares['anomalous']:.1f}",
        "false alarms": f"{100 * shares['normal']:.1f}",
    }
