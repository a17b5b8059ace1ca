"""Look at images through a student's eyes: score, verdict, heatmap, and what changes them."""

import streamlit as st

from ui import inspecting
from ui.choosing import choose_students
from ui.page import footer, setup
from ui.sources import choose_pictures
from ui.viewing import choose_view

setup("Inspect")
st.title("Inspect images", anchor=False)

students = choose_students()
pictures = choose_pictures(students[0])
judges = inspecting.load_judges(students)
view = choose_view(judges)
footer()
if pictures:
    chosen = inspecting.overview(pictures, judges[0], view)
    shown = inspecting.closer_look(chosen, pictures, judges, view)
    inspecting.ranking(shown, judges[0])
    inspecting.downloads(pictures, judges, view)
