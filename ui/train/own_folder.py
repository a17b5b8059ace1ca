"""Custom images as a data set: a folder on this machine, or a zip file to unpack."""

import hashlib
import itertools
import math
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import streamlit as st

from kdad.data.datasets import FOLDER, folder_path, is_folder
from kdad.data.protocol import HELD_OUT
from kdad.errors import UserError
from kdad.files import is_directory, read_json_or_empty, write_json
from kdad.jobs import manager
from kdad.networks.recipes import Recipe
from ui.shared import places
from ui.shared.pictures import folder_stamp, to_display
from ui.shared.student_index import find, jobs_root, root
from ui.shared.words import plain

if TYPE_CHECKING:
    from kdad.data.health import Health

THUMBNAILS, THUMBNAIL_SIDE = 6, 96
UPLOADS, ZIP_RECORD = ".uploads", ".zip.json"  # hidden: neither students nor images
UNPACKING = Lock()  # all visitors share it
ABANDONED_AFTER_SECONDS = 24 * 3600
TYPED, DROPPED = "Folder on this machine", "Zip file"
LAYOUT = (
    "Normal images, at any depth. Optional, for testing: `test/good` and `test/<kind of defect>`, with masks in "
    "`ground_truth/<kind>` (the layout of MVTec AD, with normals in `train/good`)."
)


def choose() -> tuple[str, "Health | None"]:
    """Draw the controls; returns `folder:PATH`, or '' if no folder is chosen, and its health, if it can be used."""
    sources = [TYPED, DROPPED] if places.allowed() else [DROPPED]
    source = st.segmented_control(
        "Images from", sources, default=sources[0], required=True, key="own-source", persist_state="session",
        label_visibility="collapsed",
    )  # fmt: skip
    folder = _typed() if source == TYPED else _dropped()
    if folder is None:
        st.caption(LAYOUT)
        return "", None
    return f"{FOLDER}{folder}", _show_health(folder)


def steps_of(health: "Health | None", preset: Recipe) -> Recipe | None:
    """The recipe of a student of a checked folder, with enough epochs for its normals; None for tiles or no folder."""
    if health is None or health.tile_size:
        return None
    return preset.within(math.prod(health.image_size)).with_enough_steps(round(health.normals * (1 - HELD_OUT)))


def _show_health(folder: Path) -> "Health | None":
    """Show what a folder holds, what is doubtful, and some of its normals; returns its health, if it can be used."""
    from kdad.data.health import in_words

    stamp = folder_stamp(folder)
    with st.spinner("Looking at the images…"):
        health = _examined(str(folder), stamp)
    if isinstance(health, str):
        st.error(plain(health), icon=":material/error:")
        return None
    st.markdown("  \n".join(line[0].upper() + plain(line[1:]) for line in in_words(health)))
    for advice in health.advice:
        st.warning(plain(advice[0].upper() + advice[1:]), icon=":material/visibility:")
    if not health.advice:
        st.caption(":material/check: Nothing doubtful was found.")
    shown = _thumbnails(str(folder), stamp, (*health.odd[:2], *health.blank[:1]))
    for column, (name, pixels) in zip(st.columns(len(shown)), shown.items(), strict=True):
        column.image(pixels, width="stretch", alt=f"{name}, at the size at which it is read", output_format="PNG")
    return health


@st.cache_data(max_entries=16, show_spinner=False)
def _examined(folder: str, stamp: str) -> "Health | str":
    """The health of a folder, or why it cannot be trained on."""
    from kdad.data.health import examine

    try:
        return examine(Path(folder))
    except UserError as error:
        return str(error)


@st.cache_data(max_entries=16, show_spinner=False)
def _thumbnails(folder: str, stamp: str, doubtful: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Some normals (H, W, 3) at the size of thumbnails, what is doubtful first."""
    from kdad.data.decoding import read_image
    from kdad.data.folder_layout import FolderLayout

    layout = FolderLayout(Path(folder))
    files = [
        *(layout.normal_folder / name for name in doubtful),
        *layout.normals[:: -(-len(layout.normals) // THUMBNAILS)],
    ]
    pictures = {}
    for file in files[:THUMBNAILS]:
        pixels = read_image(file, max_value=layout.max_value).permute(1, 2, 0).contiguous().numpy()
        pictures[file.name] = to_display(pixels, THUMBNAIL_SIDE)
    return pictures


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
    name, digest = _name(file.name), _digest(file.file_id, file)
    folder = place_for(name, digest)
    if not folder.is_dir():
        try:
            with st.spinner("Unpacking…"):
                folder = unpacked_once(name, digest, file)
        except UserError as error:
            st.error(plain(error), icon=":material/folder_zip:")
            return None
        st.toast(f"Unpacked {_record(folder)['images']} images.")
    for sentence in _record(folder)["said"]:
        st.caption(f":material/info: {plain(sentence)}.")
    return folder.resolve()


def unpacked_once(name: str, digest: str, file: BinaryIO) -> Path:
    """The folder that a zip file of this content is unpacked to, now if it was not before.

    Whoever goes on typing while it is unpacked starts the page anew; the old run goes on beside the new one, up to its
    next element. So the second waits for the first, and nothing of this is an element.

    Raises:
        UserError: as `unpack_images`.
    """
    from kdad.data.archives import unpack_images

    with UNPACKING:
        folder = place_for(name, digest)
        if not folder.is_dir():
            forget_unused(folder)
            unpacked = unpack_images(file, folder)
            write_json(folder / ZIP_RECORD, {"sha256": digest, **unpacked._asdict()})
        return folder


def place_for(name: str, digest: str) -> Path:
    """The folder that a zip file of this content is unpacked to: that of the same zip file, or one named after it."""
    for number in itertools.count(1):
        folder = root() / UPLOADS / (name if number == 1 else f"{name}-{number}")
        if not folder.is_dir() or _record(folder)["sha256"] == digest:
            return folder
    raise AssertionError


def _record(folder: Path) -> dict[str, Any]:
    """The digest of the zip file that a folder was unpacked from, how many images were, and what is said of others.

    Without a digest if nobody knows.
    """
    return {"sha256": None, "images": 0, "said": []} | read_json_or_empty(folder / ZIP_RECORD)


@st.cache_data(max_entries=16, show_spinner=False)
def _digest(file_id: str, _file: BinaryIO) -> str:
    """SHA-256 of an uploaded file."""
    _file.seek(0)
    return hashlib.file_digest(_file, "sha256").hexdigest()


def forget_unused(kept: Path) -> None:
    """Delete images unpacked more than a day ago of which no student and no job has made use."""
    used = {Path(folder_path(student.dataset)) for student in find()[0].values() if student.own}
    used |= {
        Path(folder_path(dataset)) for job in manager.find_all(jobs_root()) for dataset in _datasets(job.arguments)
    }
    for folder in kept.parent.glob("*"):
        old = time.time() - folder.stat().st_mtime > ABANDONED_AFTER_SECONDS
        if old and folder != kept and folder.resolve() not in used:
            shutil.rmtree(folder, ignore_errors=True)


def _datasets(arguments: Sequence[str]) -> list[str]:
    """Own folders that a job's arguments name."""
    named = [argument.removeprefix("--dataset=") for argument in arguments if argument.startswith("--dataset=")]
    return [dataset for dataset in named if is_folder(dataset)]


def _name(file_name: str) -> str:
    """A file's stem, restricted to characters that are safe in a path."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(file_name).stem).strip("-")[:40] or "images"
