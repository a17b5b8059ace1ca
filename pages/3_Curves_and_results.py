"""How well students do: scores and thresholds, training curves, telling images, and the table of all classes."""

import streamlit as st

from ui import scores, standings, telling, training_curves
from ui.page import footer, setup

SECTIONS = {
    "Scores": scores.section,
    "Training": training_curves.section,
    "Images": telling.section,
    "All classes": standings.section,
}

setup("Curves and results")
st.title("Curves and results", anchor=False)
shown = st.segmented_control(
    "Show", list(SECTIONS), default="Scores", required=True, key="show", bind="query-params",
    label_visibility="collapsed",
)  # fmt: skip
footer()
SECTIONS[shown]()
