"""Ranking of normal classes by how well they explain a picture."""

import streamlit as st

from ui.inspect import charts
from ui.inspect.detectors import CachedDetector, rank
from ui.inspect.overview import load_detectors
from ui.shared import figures
from ui.shared.pictures import Picture
from ui.shared.student_index import find, same_family, sweep_command
from ui.shared.words import plain


def ranking(picture: Picture, cached: CachedDetector) -> None:
    """Rank normal classes by how well they explain a picture, over all students of one teacher and data set.

    Nothing for images of one's own: they have one class.
    """
    if cached.student.own:
        return
    students, _ = find()
    family = same_family(cached.student, students)
    st.divider()
    st.subheader("Which normal class explains it best?", anchor=False)
    dataset, teacher = plain(cached.student.dataset), plain(cached.student.teacher_name)
    if len(family) < 2:
        st.caption(f"This is the only student of {teacher} on {dataset}. To rank all classes, train the others:")
        st.code(sweep_command(cached.student), language="bash", wrap_lines=True)
        return
    if not st.toggle(f"Run all {len(family)} students of {teacher} on {dataset}", key="rank", persist_state="session"):
        return
    with st.spinner("Running all students…"):
        rows = rank(load_detectors(family), picture)
    if not rows:
        st.caption("None of them is calibrated, so their scores cannot be compared.")
        return
    best = plain(rows[0]["normal_class"])
    st.markdown(f"**{plain(picture.name)}** is least unusual as **{best}**. All students share one teacher pass.")
    chart = charts.ranking(rows, cached.student.key)
    figures.chart(chart, "normal-classes", alt=f"How unusual the image is to each student; {best} least")
