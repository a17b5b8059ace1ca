"""Student selection, with instructions if there are no students."""

import streamlit as st

from kdad.data.datasets import PHOTO_TEXTURES
from ui.shared.links import use_link
from ui.shared.page import TRAIN
from ui.shared.student_index import Student, find, root, train_command
from ui.shared.words import auroc, overlap_badge, plain


def choose_students() -> list[Student]:
    """Choose one student, and optionally a second one for comparison; ends the page if there is none."""
    students = students_or_stop()
    check_link("student", students)
    check_link("compare", students)
    keys = list(students)
    left, right = st.columns(2)
    first = left.selectbox("Student", keys, index=_favourite(students), key="student", bind="query-params")
    others = [key for key in keys if key != first]
    second = right.selectbox(
        "Compare with", others, index=None, key="compare", bind="query-params", placeholder="a second student…",
        disabled=not others,
    )  # fmt: skip
    for column, key in ((left, first), (right, second)):
        if key:
            with column:
                provenance(students[key])
    return [students[key] for key in (first, second) if key]


def students_or_stop() -> dict[str, Student]:
    """Available students by key; ends the page with instructions if there are none."""
    students, damaged = find()
    if damaged:
        st.warning(f"Unreadable students are not listed: {', '.join(map(plain, damaged))}. Retrain or remove them.")
    if not students:
        _no_student()
    return students


def _no_student() -> None:
    st.info(f"No students in `{root()}` yet. Train one; this takes a minute or two and needs no data set:")
    st.code(train_command(), language="bash", wrap_lines=True)
    st.stop()


def check_link(name: str, students: dict[str, Student]) -> None:
    asked = st.query_params.get(name)
    if asked and asked not in students:
        st.warning(f"The link refers to a student that is not available: {plain(asked)}. Choose one below.")


def _favourite(students: dict[str, Student]) -> int:
    """Index of a student that fits the built-in samples, of photographs if there is one, or 0."""
    datasets = [student.dataset for student in students.values()]
    return next((datasets.index(name) for name in (PHOTO_TEXTURES, "patterns-defects") if name in datasets), 0)


def provenance(student: Student) -> None:
    known = f"normal class **{plain(student.normal_class)}**"
    figures = f" · test AUROC {auroc(student.evaluation['auroc'])}" if student.evaluation else ""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        overlap_badge(student.label_overlap)
        st.caption(known + figures, width="content")
        st.page_link(
            TRAIN, label="Use it", icon=":material/terminal:", query_params=use_link(student), width="content"
        )  # fmt: skip
