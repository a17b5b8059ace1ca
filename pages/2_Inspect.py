"""Inspect images with a student: score, verdict, heatmap and their response to image changes."""

import streamlit as st

from ui.inspect.closer_look import studied
from ui.inspect.image_sources import choose_pictures
from ui.inspect.overview import judged, load_detectors, overview
from ui.inspect.revising import choose_region, remembers_normals, teach
from ui.inspect.triage import decide
from ui.inspect.view_controls import choose_view
from ui.shared.page import footer, setup
from ui.shared.student_picker import choose_students

setup("Inspect")
st.title("Inspect images", anchor=False)

students = choose_students()
pictures = choose_pictures(students[0])
detectors = load_detectors(students)
view = choose_view(detectors)
footer()
if rows := judged(pictures, detectors, view):
    readable = [row.picture for row in rows]
    gallery, detail = st.columns([3, 5], gap="medium")
    with gallery:
        picked, shown = overview(rows, detectors, view)
        if remembers_normals(detectors[0]):
            with st.popover("Region of interest", icon=":material/crop:"):
                choose_region(detectors[0], picked)
    with detail:
        decide(picked, shown)
        teach(rows, detectors[0])
        studied(picked, readable, detectors, view)
