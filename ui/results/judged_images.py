"""Test images of interest: those a student misjudges most, and those on which two students disagree."""

import numpy as np
import pandas as pd
import streamlit as st

from kdad.data.datasets import at_hand
from kdad.detection import conformal
from kdad.errors import UserError
from kdad.spreadsheets import as_csv
from ui.results.evaluated import Evidence, disagreement, misjudged
from ui.results.scores import choose_evidence, evidence_or_stop
from ui.shared.pictures import Gallery, channels_last, gallery, to_display
from ui.shared.student_index import Student, find, of_same_task, train_command
from ui.shared.words import percent, plain

SHOWN, SIDE = 12, 128
MISJUDGED, DISAGREED = "Most misjudged", "Where two students disagree"


def section() -> None:
    """Draw the section: test images selected by their scores."""
    evidence = choose_evidence()
    by = st.segmented_control(
        "Images", [MISJUDGED, DISAGREED], default=MISJUDGED, required=True, key="telling", persist_state="session"
    )
    here = at_hand(evidence.student.dataset)
    if not here:
        st.info(
            f"The images of {plain(evidence.student.dataset_name)} are not on this machine, so only their numbers are "
            "shown. Put the data set below `$KDAD_DATA` and restart the app, or train once with network access: the "
            "data set then stays in the Hugging Face cache.",
            icon=":material/folder_off:",
        )
    if by == MISJUDGED:
        _misjudged(evidence, here)
    else:
        _disagreement(evidence, here)


def _misjudged(evidence: Evidence, here: bool) -> None:
    normal, anomalous = misjudged(evidence.table, SHOWN)
    kind = plain(evidence.student.normal_class)
    st.subheader(f"Normal {kind} with the highest scores", anchor=False)
    _show(evidence.student, normal, _among_normals(evidence, normal), here, "normal")
    st.subheader("Anomalies with the lowest scores", anchor=False)
    _show(evidence.student, anomalous, _among_normals(evidence, anomalous), here, "anomalous")
    st.caption(
        f"{plain(evidence.student.dataset_name)}, test split, seed {evidence.student.seed}. p: conformal p-value from "
        "held-out normals; students without calibration show the score alone."
    )


def _among_normals(evidence: Evidence, rows: pd.DataFrame) -> list[str]:
    scores = [f"{score:.3f}" for score in rows["score"]]
    if evidence.normals is None:
        return scores
    p_values = conformal.p_values(rows["score"].to_numpy(), evidence.normals)
    return [f"{score}, p {p:.3f}" for score, p in zip(scores, p_values, strict=True)]


def _disagreement(evidence: Evidence, here: bool) -> None:
    students, _ = find()
    others = {other.key: other for other in of_same_task(evidence.student, students)}
    if not others:
        student = evidence.student
        st.info(
            f"There is no other evaluated student of **{plain(student.normal_class)}** of "
            f"{plain(student.dataset_name)}. To compare, train one with a different teacher:"
        )
        other_student = "vit-cifar10" if "vgg" in student.teacher else "vgg-cifar10"
        command = train_command(student.dataset, student.normal_class, other_student)
        st.code(command, language="bash", wrap_lines=True)
        return
    key = st.selectbox("Compare with", list(others), key=f"rival-{evidence.student.key}")
    other_student = evidence_or_stop(others[key], st.session_state["score"])
    table = disagreement(evidence, other_student)
    agreement = float(np.corrcoef(table["rank"], table["other"])[0, 1])
    one, other = plain(evidence.student.teacher_name), plain(other_student.student.teacher_name)
    if one == other:
        one, other = (f"seed {each.student.seed}" for each in (evidence, other_student))
    st.metric("Rank correlation", f"{agreement:.3f}", width="content")
    for first, second, rows in (
        (one, other, table[table["gap"] > 0].head(SHOWN)),
        (other, one, table[table["gap"] < 0].head(SHOWN)),
    ):
        st.subheader(f"More unusual to {first} than to {second}", anchor=False)
        words = [f"{percent(row.rank)} / {percent(row.other)}" for row in rows.itertuples()]
        _show(evidence.student, rows, words, here, first)
    st.caption(
        f"Below each image: share of test images that score no higher, for {one} / for {other}. Scores of different "
        f"students have no common unit, so ranks are compared. {plain(evidence.student.dataset_name)}, test split."
    )
    st.download_button(
        "Ranks of both (CSV)", lambda: as_csv(table), "disagreement.csv", "text/csv",
        icon=":material/table:", on_click="ignore",
    )  # fmt: skip


def _show(student: Student, rows: pd.DataFrame, words: list[str], here: bool, place: str) -> None:
    """Show a grid of test images with captions, or a table of their numbers if they cannot be read."""
    pictures = pictures_of(student, rows["index"].to_numpy()) if here else None
    if pictures is None:
        frame = pd.DataFrame({"test image": rows["index"], "class": rows["kind"], "judged": words})
        st.dataframe(frame, hide_index=True, alt=f"Test images: {place}")
        return
    grid = st.grid(6, min_column_width=100, gap="small")
    for (name, pixels), row, judged in zip(pictures, rows.itertuples(), words, strict=True):
        with grid.cell():
            alt = f"{row.kind}, test image {row.index}: {judged}"
            st.image(to_display(pixels, SIDE), width="stretch", output_format="PNG", alt=alt)
            st.caption(f"**{plain(name)}**  \n{judged}", text_alignment="center")


def _check_unchanged(student: Student, shown: Gallery) -> None:
    """Raise a `UserError` if the test images are no longer those that the student was evaluated on."""
    measured = (student.evaluation or {}).get("test_images_sha256")
    if not measured or not shown.files:
        return
    with st.spinner("Looking at the test images…"):
        same = shown.fingerprint() == measured
    if not same:
        raise UserError(
            f"test images or masks of {student.dataset_name} have changed since it was evaluated: evaluate it anew"
        )


def pictures_of(student: Student, indices: np.ndarray) -> list[tuple[str, np.ndarray]] | None:
    """Names and pixels (H, W, 3) of test images by index; None, with a message on the page, if they cannot be read."""
    import torch

    try:
        shown = gallery(student.dataset, student.normal_class)
        _check_unchanged(student, shown)
        images, _ = shown.fetch(torch.tensor(indices))
    except UserError as error:
        st.error(plain(error))
        return None
    return [(shown.name(index), channels_last(image.numpy())) for index, image in zip(indices, images, strict=True)]
