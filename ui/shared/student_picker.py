"""Student selection, with instructions if there are no students."""

from collections.abc import Collection

import streamlit as st

from kdad.data.datasets import PHOTO_TEXTURES
from ui.shared.links import use_link
from ui.shared.page import TRAIN
from ui.shared.student_index import Student, comparable, find, root, train_command
from ui.shared.words import auroc, overlap_badge, plain

MAX_COMPARED = 2


def choose_students() -> list[Student]:
    """Choose one student, and up to two others to compare it with; ends the page if there is none."""
    students = students_or_stop()
    if wanted := st.session_state.pop("switch-to", None):
        st.session_state["student"] = wanted
    check_link("student", students)
    check_link("compare", students)
    keys = list(students)
    left, right = st.columns(2)
    first = left.selectbox("Student", keys, index=_favourite(students), key="student", bind="query-params")
    others = [student.key for student in comparable(students[first], students)]
    compared = right.multiselect(
        "Compare with", others, key="compare", bind="query-params", placeholder="one or two others…",
        max_selections=MAX_COMPARED, disabled=not others,
    )  # fmt: skip
    with left:
        provenance(students[first])
    with right:
        for key in compared:
            provenance(students[key])
    return [students[key] for key in (first, *compared)]


def switch_to(key: str) -> None:
    """Choose another student in the next run of the page."""
    st.session_state["switch-to"] = key


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


def check_link(name: str, students: Collection[str]) -> None:
    """Say it where a link names a student that is not among these keys."""
    asked = st.query_params.get(name)
    if asked and asked not in students:
        st.warning(f"The link refers to a student that cannot be chosen here: {plain(asked)}. Choose one below.")


def _favourite(students: dict[str, Student]) -> int:
    """Index of a student that fits the built-in samples, of photographs if there is one, or 0."""
    datasets = [student.dataset for student in students.values()]
    return next((datasets.index(name) for name in (PHOTO_TEXTURES, "patterns-defects") if name in datasets), 0)


def provenance(student: Student) -> None:
    kind = "trained on" if student.own else "normal class"
    known = f"{kind} **{plain(student.dataset_name if student.own else student.normal_class)}**"
    figures = f" · test AUROC {auroc(student.evaluation['auroc'])}" if student.evaluation else ""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        overlap_badge(student.label_overlap, student.dataset)
        st.caption(known + figures, width="content")
        st.page_link(
            TRAIN, label="Use it", icon=":material/terminal:", query_params=use_link(student), width="content"
        )  # fmt: skip
