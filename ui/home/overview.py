"""The parts of the home page: an example, and what is here. No torch, so that it is painted at once."""

import json
from collections import defaultdict

import streamlit as st

from ui.shared.page import ASSETS, INSPECT
from ui.shared.student_index import Student, find, root, train_command
from ui.shared.words import auroc, overlap_badge, plain, unusualness


def example() -> None:
    """A defect and its heatmap under each student that ships for it; made by docs/make_pictures.py."""
    made = json.loads((ASSETS / "example.json").read_text())
    name = f"{made['texture']} with a {made['defect']}"
    columns = st.columns(1 + len(made["students"]), wrap=False)
    columns[0].image(str(ASSETS / "example.png"), width="stretch", alt=f"A small texture of {name}")
    columns[0].caption(f"The image: {name}.")
    for column, judged in zip(columns[1:], made["students"], strict=True):
        with column:
            words = unusualness(judged["share_below"], judged["normals"], made["texture"])
            st.image(str(ASSETS / judged["heatmap"]), width="stretch", alt=f"Its heatmap: the {made['defect']} glows")
            st.caption(f"**Score {judged['score']:.3f}** under {judged['teacher']}. {words}")


def here() -> None:
    """The students on this machine, one card for each data set and teacher, from their JSON files alone."""
    students, _ = find()
    if students:
        st.subheader("Ready to use", anchor=False)
        families: dict[tuple, list[Student]] = defaultdict(list)
        for student in students.values():
            families[student.dataset, student.teacher].append(student)
        grid = st.grid(3, min_column_width=260, border=True)
        for family in families.values():
            with grid.cell():
                card(family)
    else:
        st.info(f"No student is in `{root()}` yet.", icon=":material/info:")
    st.subheader("Train one", anchor=False)
    st.markdown("One command trains, calibrates and tests a student of built-in textures, in a minute or two:")
    st.code(train_command(), language="bash", wrap_lines=True)


def card(family: list[Student]) -> None:
    """What one teacher's students of one data set can do."""
    first = family[0]
    st.markdown(f"**{plain(first.dataset)}** · {plain(first.teacher_name)}")
    overlap_badge(first.label_overlap)
    figures = [student.evaluation["auroc"] for student in family if student.evaluation]
    classes = sorted({student.normal_class for student in family})
    lines = [f"{len(family)} student{'s' if len(family) > 1 else ''}, normal: {', '.join(map(plain, classes))}"]
    if figures:
        seeds = ", ".join(str(seed) for seed in sorted({student.seed for student in family}))
        mean = "mean test AUROC" if len(figures) > 1 else "test AUROC"
        lines.append(f"{mean} {auroc(sum(figures) / len(figures))}, seed {seeds}")
    st.caption("  \n".join(lines))
    st.page_link(INSPECT, label="Inspect with it", icon=":material/arrow_forward:", query_params={"student": first.key})
