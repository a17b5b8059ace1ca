"""Controls for choosing the images to inspect."""

from dataclasses import replace

import streamlit as st

from kdad.data.datasets import BUILT_IN, at_hand
from kdad.errors import UserError
from ui.shared import samples
from ui.shared.links import CAMERA, GALLERY, PER_PAGE, SAMPLES, SOURCE, UPLOAD, kind_key, page_key, samples_key
from ui.shared.pictures import MAX_UPLOAD_MB, TYPES, Gallery, Picture, gallery, gallery_page, uploaded
from ui.shared.student_index import Student
from ui.shared.words import plain


def choose_pictures(student: Student) -> list[Picture]:
    """Draw the controls and return the chosen pictures; unreadable ones are reported on the page."""
    sources = [UPLOAD, CAMERA, GALLERY] if student.own else [SAMPLES, UPLOAD, CAMERA, GALLERY]
    usual = _usual(student)
    if st.session_state.get(SOURCE, usual) not in sources:  # chosen for another student
        st.session_state[SOURCE] = usual
    source = st.segmented_control(
        "Images from", sources, default=usual, required=True, key=SOURCE, persist_state="session", bind="query-params",
    )  # fmt: skip
    return {SAMPLES: _samples, UPLOAD: _uploads, CAMERA: _camera, GALLERY: _gallery}[source](student)


def _usual(student: Student) -> str:
    """The source of images unless another is chosen: textures are no test of a student of photographs."""
    if not student.own:
        return SAMPLES
    return GALLERY if student.evaluation and at_hand(student.dataset) else UPLOAD


def _normals(student: Student) -> str:
    return f"normal {plain(student.normals_in_words)}" if student.normals_in_words else "normal images"


def _samples(student: Student) -> list[Picture]:
    own = student.normal_class if student.dataset in BUILT_IN else None
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Sample images", samples.NAMES, index=samples.NAMES.index(own or samples.PHOTOGRAPHS),
        key=samples_key(own), bind="query-params", format_func=samples.label,
        help="Of a texture: three normals, each kind of defect, and two other textures. Photographs come in full and "
        "cut to the 32 pixels of CIFAR images.",
    )  # fmt: skip
    draws = st.session_state.setdefault("draws", 0)
    right.button("Draw others", on_click=_draw_again, width="stretch", disabled=chosen == samples.PHOTOGRAPHS)
    if chosen != own:
        st.info(
            f"This student was trained on **{plain(student.normal_class)}** of {plain(student.dataset_name)}: anything "
            "else should look unusual to it. Upload images of its normal class for a fair test.",
            icon=":material/info:",
        )
    return samples.pictures(chosen, draws)


def _draw_again() -> None:
    st.session_state["draws"] += 1


def _uploads(student: Student) -> list[Picture]:
    files = st.file_uploader(
        f"Images to compare with {_normals(student)}: drop them here or browse", [*TYPES, "zip"],
        accept_multiple_files=True, key="uploads",
    )  # fmt: skip
    pictures, problems = uploaded(files, student.max_value)
    for problem in problems:
        st.error(plain(problem), icon=":material/broken_image:")
    if not files:
        st.info(f"Drop one or more images above, or a zip file of them: up to {MAX_UPLOAD_MB} MB each.")
    return pictures


def _camera(student: Student) -> list[Picture]:
    photo = st.camera_input(f"A photo to compare with {_normals(student)}", key="camera")
    if photo is None:
        st.info("Take a photo above; it stays on this machine.")
        return []
    pictures, problems = uploaded([photo], student.max_value)
    for problem in problems:
        st.error(plain(problem), icon=":material/broken_image:")
    return [replace(picture, name="photo") for picture in pictures]  # instead of the browser's file name


def _gallery(student: Student) -> list[Picture]:
    if not at_hand(student.dataset):
        st.info(
            f"The images of {plain(student.dataset_name)} are not on this machine. Put them below `$KDAD_DATA` and "
            "restart the app, or train once with network access: the data set then stays in the Hugging Face cache.",
            icon=":material/folder_off:",
        )
        return []
    try:
        shown = gallery(student.dataset, student.normal_class)
        return _gallery_page(student, shown)
    except UserError as error:
        st.error(plain(error))
        return []


def _gallery_page(student: Student, shown: Gallery) -> list[Picture]:
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    kinds = shown.kinds
    # Kinds of defect do not include the normal class; their first kind is "good".
    first = kinds.index(student.normal_class) if student.normal_class in kinds else 0
    kind = left.selectbox("Kind", kinds, index=first, key=kind_key(student), bind="query-params")
    count = int((shown.labels == kinds.index(kind)).sum())
    with right:
        key = page_key(student, kind)
        page = st.pagination(max(1, -(-count // PER_PAGE)), key=key, bind="query-params")
    st.caption(f"{count} test images, none of them used in training.")
    return gallery_page(shown, student.normal_class, kind, page, PER_PAGE)
