"""Train students and follow their progress, or browse the available ones."""

import streamlit as st

from ui.shared.devices import device_in_words
from ui.shared.links import LOAD, TRAIN, VIEW
from ui.shared.page import footer, setup
from ui.train import form, job_list, student_list

setup("Train or load")
st.title("Train or load students", anchor=False)
view = st.segmented_control(
    "What to do", [TRAIN, LOAD], default=TRAIN, required=True, key=VIEW, bind="query-params",
    label_visibility="collapsed",
)  # fmt: skip
footer()
if view == TRAIN:
    left, right = st.columns([4, 7], gap="large")
    with left:
        device = form.new_student()
    with right:
        job_list.show_jobs()
    device.caption("auto: detecting the device…")
    device.caption(f"auto: {device_in_words()}")
else:
    student_list.show_students()
    student_list.fetch()
    student_list.share()
