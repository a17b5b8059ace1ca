"""Look at images through a student's eyes: score, verdict, heatmap, and what changes them."""

import streamlit as st

from ui.inspect import panels
from ui.inspect.image_sources import choose_pictures
from ui.inspect.view_controls import choose_view
from ui.shared.page import footer, setup
from ui.shared.student_picker import choose_students

setup("Inspect")
st.title("Inspect images", anchor=False)

students = choose_students()
pictures = choose_pictures(students[0])
judges = panels.load_judges(students)
view = choose_view(judges)
footer()
if pictures:
    chosen = panels.overview(pictures, judges[0], view)
    shown = panels.closer_look(chosen, pictures, judges, view)
    panels.ranking(shown, judges[0])
    panels.downloads(pictures, judges, view)
