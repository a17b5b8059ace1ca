"""Student results: scores and thresholds, training curves, test images and the table of all classes."""

import streamlit as st

from ui.results import all_classes, arena, image_map, judged_images, scores, training_curves
from ui.shared.page import footer, setup

SECTIONS = {
    "Scores": scores.section,
    "Arena": arena.section,
    "Training": training_curves.section,
    "Images": judged_images.section,
    "Map": image_map.section,
    "All classes": all_classes.section,
}

setup("Curves and results")
st.title("Curves and results", anchor=False)
shown = st.segmented_control(
    "Show", list(SECTIONS), default="Scores", required=True, key="show", bind="query-params",
    label_visibility="collapsed",
)  # fmt: skip
footer()
SECTIONS[shown]()
