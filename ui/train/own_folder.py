"""The user's own images as a data set: a folder on this machine, or a zip file that becomes one."""

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
    "Normal images, in any nesting. Optional, to be tested: `test/good` and `test/<kind of defect>`, with masks in "
    "`ground_truth/<kind>` (the layout of MVTec AD, with its normals in `train/good`)."
)


def choose() -> str:
    """Draw the controls; returns `folder:PATH`, or '' while there is no such folder."""
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
        st.error(f"There is no folder {plain(text)} on the machine that this app runs on.")
        return None
    return folder


def _dropped() -> Path | None:
    """The folder that an uploaded zip file was unpacked to, once per name."""
    file = st.file_uploader("Zip file of images", ["zip"], key="own-zip")
    if file is None:
        return None
    folder = root() / ".uploads" / f"{_name(file.name)}-{file.file_id[:8]}"
    if not folder.is_dir():
        from kdad.data.archives import unpack_images

        try:
            with st.spinner("Unpacking…"):
                count = unpack_images(file, folder)
        except UserError as error:
            st.error(plain(error), icon=":material/folder_zip:")
            return None
        st.toast(f"Unpacked {count} images.")
    return folder.resolve()


def _name(file_name: str) -> str:
    """What a file is called, in letters that are safe in a path."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(file_name).stem).strip("-")[:40] or "images"
