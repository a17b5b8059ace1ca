"""Inspect images with a student: score, verdict, heatmap and their response to image changes."""

import streamlit as st

from ui.inspect.closer_look import studied
from ui.inspect.image_sources import choose_pictures
from ui.inspect.overview import load_detectors, overview
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
if pictures:
    studied(overview(pictures, detectors, view), pictures, detectors, view)
