"""Home page: introduction, an example, the available students and links to the other pages."""

import streamlit as st

from ui.home.overview import example, here, story
from ui.shared.devices import device_in_words, load_ahead
from ui.shared.page import INSPECT, footer, setup

setup("Home")
footer()
left, right = st.columns([5, 6], gap="large", vertical_alignment="center")
with left:
    st.title("See what does not belong, and where", anchor=False)
    st.markdown(
        "A small **student** network learns to copy a frozen **teacher** on images of one normal kind. "
        "Where the copy fails, an image is unusual; the heatmap shows the place."
    )
    with st.container(key="kdad-next", width="content"):
        st.page_link(INSPECT, label="Inspect images", icon=":material/search:")
    device = st.empty()
with right:
    example()
st.divider()
story()
here()
device.caption("Device: detecting…")
device.caption(f"Device: {device_in_words()}")
load_ahead()
