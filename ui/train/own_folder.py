"""Custom images as a data set: a folder on this machine, or a zip file to unpack."""

import re
from pathlib import Path

import streamlit as st

from kdad.data.datasets import FOLDER
from kdad.errors import UserError
from kdad.files import is_directory
from ui.shared import places
from ui.shared.student_index import root
from ui.shared.words import plain

TYPED, DROPPED = "Folder on this machine", "Zip file"
LAYOUT = (
    "Normal images, at any depth. Optional, for testing: `test/good` and `test/<kind of defect>`, with masks in "
    "`ground_truth/<kind>` (the layout of MVTec AD, with normals in `train/good`)."
)


def choose() -> str:
    """Draw the controls; returns `folder:PATH`, or '' if no folder is chosen."""
    sources = [TYPED, DROPPED] if places.allowed() else [DROPPED]
    source = st.segmented_control(
        "Images from", sources, default=sources[0], required=True, key="own-source", persist_state="session",
        label_visibility="collapsed",
    )  # fmt: skip
    folder = _typed() if source == TYPED else _dropped()
    st.caption(LAYOUT)
    return f"{FOLDER}{folder}" if folder else ""


def _typed() -> Path | None:
    text = st.text_input("Folder", key="own-folder", placeholder="/path/to/images", persist_state="session").strip()
    if not text:
        return None
    try:
        folder = places.readable(text)
    except UserError as error:
        st.error(plain(error))
        return None
    if not is_directory(folder):
        st.error(f"There is no folder {plain(text)} on the machine that runs this app.")
        return None
    return folder


def _dropped() -> Path | None:
    """Folder to which the uploaded zip file is unpacked, once per upload."""
    file = st.file_uploader("Zip file of images", ["zip"], key="own-zip")
    if file is None:
        return None
    folder = root() / ".uploads" / f"{_name(file.name)}-{file.file_id[:8]}"
    if not folder.is_dir():
        from kdad.data.archives import unpack_images

        try:
            with st.spinner("Unpacking…"):
                unpacked = unpack_images(file, folder)
        except UserError as error:
            st.error(plain(error), icon=":material/folder_zip:")
            return None
        st.toast(f"Unpacked {unpacked.images} images.")
        st.session_state["own-zip-said"] = unpacked.said
    for sentence in st.session_state.get("own-zip-said", []):
        st.caption(f":material/info: {plain(sentence)}.")
    return folder.resolve()


def _name(file_name: str) -> str:
    """A file's stem, restricted to characters that are safe in a path."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(file_name).stem).strip("-")[:40] or "images"
