"""The images that say most: those a student misjudges most, and those two students disagree on."""

import numpy as np
import pandas as pd
import streamlit as st

from kdad.data.datasets import at_hand
from kdad.detection import conformal
from kdad.errors import UserError
from ui.results.evaluated import Evidence, disagreement, misjudged
from ui.results.scores import choose_evidence, evidence_or_stop
from ui.shared.pictures import gallery, to_display
from ui.shared.student_index import Student, find
from ui.shared.words import percent, plain

SHOWN, SIDE = 12, 128
MISJUDGED, DISAGREED = "Most misjudged", "Where two students disagree"


def section() -> None:
    """Test images chosen by their scores."""
    evidence = choose_evidence()
    by = st.segmented_control(
        "Images", [MISJUDGED, DISAGREED], default=MISJUDGED, required=True, key="telling", persist_state="session"
    )
    here = at_hand(evidence.student.dataset)
    if not here:
        st.info(
            f"The images of {plain(evidence.student.dataset)} are not on this machine, so their numbers stand for "
            "them. Put the data set below `$KDAD_DATA` and start the app again, or train once with a network: it then "
            "stays in the Hugging Face cache.",
            icon=":material/folder_off:",
        )
    if by == MISJUDGED:
        _misjudged(evidence, here)
    else:
        _disagreement(evidence, here)


def _misjudged(evidence: Evidence, here: bool) -> None:
    normal, anomalous = misjudged(evidence.table, SHOWN)
    kind = plain(evidence.student.normal_class)
    st.subheader(f"Normal {kind}, judged most unusual", anchor=False)
    _show(evidence.student, normal, _among_normals(evidence, normal), here, "normal")
    st.subheader("Anomalous, judged most ordinary", anchor=False)
    _show(evidence.student, anomalous, _among_normals(evidence, anomalous), here, "anomalous")
    st.caption(
        f"{plain(evidence.student.dataset)}, test split, seed {evidence.student.seed}. p: the share of held-out "
        "normals that score as high; a student without calibration shows the score alone."
    )


def _among_normals(evidence: Evidence, rows: pd.DataFrame) -> list[str]:
    scores = [f"{score:.3f}" for score in rows["score"]]
    if evidence.normals is None:
        return scores
    p_values = conformal.p_values(rows["score"].to_numpy(), evidence.normals)
    return [f"{score}, p {p:.3f}" for score, p in zip(scores, p_values, strict=True)]


def _disagreement(evidence: Evidence, here: bool) -> None:
    others = _rivals(evidence.student)
    if not others:
        student = evidence.student
        st.info(
            f"No other evaluated student knows **{plain(student.normal_class)}** of {plain(student.dataset)}. Train "
            "one under another teacher, then compare them here:"
        )
        other_student = "vit-cifar10" if "vgg" in student.teacher else "vgg-cifar10"
        st.code(
            f"python -m kdad train --dataset {student.dataset} --teacher {other_student} "
            f"--normal-class {student.normal_class}", language="bash", wrap_lines=True,
        )  # fmt: skip
        return
    key = st.selectbox("Disagreeing with", list(others), key=f"rival-{evidence.student.key}")
    other_student = evidence_or_stop(others[key], st.session_state["score"])
    table = disagreement(evidence, other_student)
    agreement = float(np.corrcoef(table["rank"], table["other"])[0, 1])
    one, other = plain(evidence.student.teacher_name), plain(other_student.student.teacher_name)
    if one == other:
        one, other = (f"seed {each.student.seed}" for each in (evidence, other_student))
    st.metric("Rank correlation of the two", f"{agreement:.3f}", width="content")
    for first, second, rows in (
        (one, other, table[table["gap"] > 0].head(SHOWN)),
        (other, one, table[table["gap"] < 0].head(SHOWN)),
    ):
        st.subheader(f"More unusual to {first} than to {second}", anchor=False)
        words = [f"{percent(row.rank)} / {percent(row.other)}" for row in rows.itertuples()]
        _show(evidence.student, rows, words, here, first)
    st.caption(
        f"Below each image: the share of test images that score no higher, to {one} / to {other}. Scores of two "
        f"students have no common unit; ranks do. {plain(evidence.student.dataset)}, test split."
    )
    st.download_button(
        "Ranks of both (CSV)", lambda: table.to_csv(index=False), "disagreement.csv", "text/csv",
        icon=":material/table:", on_click="ignore",
    )  # fmt: skip


def _rivals(student: Student) -> dict[str, Student]:
    """Evaluated students of the same task, those of another teacher first."""
    students, _ = find()
    task = (student.dataset, student.normal_class)
    others = [
        other
        for other in students.values()
        if (other.dataset, other.normal_class) == task and other.key != student.key and other.evaluation
    ]
    return {other.key: other for other in sorted(others, key=lambda other: other.teacher == student.teacher)}


def _show(student: Student, rows: pd.DataFrame, words: list[str], here: bool, place: str) -> None:
    """A grid of test images, or a table of their numbers, with a few words below each."""
    pictures = pictures_of(student, rows["index"].to_numpy()) if here else None
    if pictures is None:
        frame = pd.DataFrame({"test image": rows["index"], "class": rows["kind"], "judged": words})
        st.dataframe(frame, hide_index=True, alt=f"Test images: {place}")
        return
    grid = st.grid(6, min_column_width=100, gap="small")
    for picture, row, judged in zip(pictures, rows.itertuples(), words, strict=True):
        with grid.cell():
            alt = f"{row.kind}, test image {row.index}: {judged}"
            st.image(to_display(picture, SIDE), width="stretch", output_format="PNG", alt=alt)
            st.caption(f"**{plain(row.kind)}** {row.index}  \n{judged}", text_alignment="center")


def pictures_of(student: Student, indices: np.ndarray) -> list[np.ndarray] | None:
    """Test images (H, W, 3) by index, or None, with a message, if they cannot be read."""
    import torch

    try:
        fetch = gallery(student.dataset, student.normal_class)[2]
        images, _ = fetch(torch.tensor(indices))
    except UserError as error:
        st.error(plain(error))
        return None
    return [image.permute(1, 2, 0).contiguous().numpy() for image in images]
