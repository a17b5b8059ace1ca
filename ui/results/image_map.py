"""A map of images: the teacher's features of normals, test images and uploads in two dimensions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from kdad.data.datasets import at_hand
from kdad.errors import UserError
from kdad.evaluation.feature_map import METHODS, PCA, project
from ui.results import charts
from ui.shared import figures
from ui.shared.links import gallery_link
from ui.shared.page import INSPECT
from ui.shared.pictures import TYPES, Gallery, Picture, channels_last, data_url, gallery, stamp_of, to_display, uploaded
from ui.shared.student_index import Student
from ui.shared.student_picker import check_link, provenance, students_or_stop
from ui.shared.teachers import loaded_teacher, teacher_of
from ui.shared.words import plain

if TYPE_CHECKING:
    from torch import Tensor


NORMAL, TEST, ANOMALOUS, UPLOADED = KINDS = ("normal, training", "normal, test", "anomalous, test", "uploaded")
MOST = {NORMAL: 120, TEST: 120, ANOMALOUS: 160, UPLOADED: 100}
THUMBNAIL, FEWEST = 64, 3


@dataclass(frozen=True)
class Points:
    """Images and their features (N, D).

    `table` has one row per image: `what`, one of `KINDS`, `name`, `kind` (class or defect), `index` in the test split
    or -1, and `image`, a data URL.
    """

    table: pd.DataFrame
    features: np.ndarray


def section() -> None:
    """Draw the section: the map, and a link to the image that is clicked."""
    student = _choose_student()
    if not at_hand(student.dataset):
        st.info(f"The images of {plain(student.dataset_name)} are not on this machine, so there is no map of them.")
        return
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    method = left.segmented_control(
        "Projection", METHODS, default=PCA, required=True, key="projection", persist_state="session",
        bind="query-params", help="PCA: the two directions of most variance. t-SNE: neighbours stay together, but "
        "distances between groups mean nothing.",
    )  # fmt: skip
    files = right.file_uploader(
        "Images of your own on the map", [*TYPES, "zip"], accept_multiple_files=True, key="map-uploads"
    )
    try:
        points = _joined([_of_data_set(student), _of_uploads(student, files)])
    except UserError as error:
        st.error(plain(error), icon=":material/broken_image:")
        return
    if len(points.table) < FEWEST:
        st.info(f"A map needs {FEWEST} images or more.")
        return
    _draw(student, points, method)


def _choose_student() -> Student:
    students = students_or_stop()
    check_link("student", students)
    keys = list(students)
    tested = next((index for index, key in enumerate(keys) if students[key].evaluation), 0)
    key = st.selectbox("Student", keys, index=tested, key="student", bind="query-params", persist_state="session")
    provenance(students[key])
    return students[key]


def _draw(student: Student, points: Points, method: str) -> None:
    places, axes = _projected(points.features, method)
    table = points.table.assign(x=places[:, 0], y=places[:, 1], row=np.arange(len(points.table)))
    shown = [kind for kind in KINDS if (table["what"] == kind).any()]
    figures.chart(
        charts.image_map(table, shown, axes), "map-of-images", key="map", on_select="rerun",
        selection_mode=charts.IMAGE, alt=f"Map of {len(table)} images by {method}: {', '.join(shown)}",
    )  # fmt: skip
    counts = "; ".join(f"{(table['what'] == kind).sum()} {kind}" for kind in shown)
    st.caption(
        f"{counts}; of the data set, chosen evenly. Each point is a whole image: the features of "
        f"{plain(student.teacher_name)}, averaged over its places. Small defects hardly move it; the score looks "
        "closer. Hover to see an image, click a test image to inspect it."
    )
    _clicked(student, table)


@st.cache_data(max_entries=32, show_spinner="Projecting…")
def _projected(features: np.ndarray, method: str) -> tuple[np.ndarray, tuple[str, str]]:
    return project(features, method)


def _clicked(student: Student, table: pd.DataFrame) -> None:
    """Name the clicked image, and link to its inspection if it is a test image."""
    picked = st.session_state["map"].selection.get(charts.IMAGE) if "map" in st.session_state else None
    if not picked or picked[0]["row"] >= len(table):
        return
    row = table.iloc[int(picked[0]["row"])]
    st.markdown(f"**{plain(row['name'])}**, {plain(row['what'])}")
    if row["index"] < 0:
        return
    try:
        query = gallery_link(student, row["kind"], int(row["index"]))
    except UserError as error:
        st.error(plain(error))
        return
    st.page_link(INSPECT, label="Inspect this image", icon=":material/search:", query_params=query)


def _of_data_set(student: Student) -> Points:
    """Points of a student's data set, with a bar the first time.

    Raises:
        UserError: the images or the teacher cannot be read.
    """
    about = student.teacher, student.dataset, student.weights_sha256, stamp_of(student.dataset)
    known = _remembered(str(student.folder), *about)
    if not known:
        with st.spinner("Reading the data set…"):
            chosen = [*_normals(student), *_tests(student)]
        known.append(_measured(student, chosen))
    return known[0]


@st.cache_resource(max_entries=8, show_spinner=False)
def _remembered(*key: str) -> list[Points]:
    """A list to keep points in once they are known, for all sessions; empty before."""
    return []


@dataclass(frozen=True)
class Chosen:
    """An image of the map that is read when it is measured."""

    what: str
    name: str
    kind: str
    index: int
    read: "Callable[[], Tensor]"


def _normals(student: Student) -> list[Chosen]:
    """Some of the normals that the student was trained on."""
    from kdad.data.folders import FolderTask, ImageFiles
    from kdad.data.images import evenly
    from kdad.data.loading import load_task

    task = load_task(student.dataset, student.normal_class)
    if isinstance(task, FolderTask):  # as they are: its training images may be pieces of them
        files = [task.layout.normals[index] for index in evenly(len(task.layout.normals), MOST[NORMAL])]
        images, names = ImageFiles(files, task.max_value), [file.name for file in files]
    else:
        rows = evenly(len(task.train), MOST[NORMAL])
        images, names = task.train[rows], [f"{student.normal_class} {row}" for row in rows.tolist()]
    return [
        Chosen(NORMAL, name, student.normal_class, -1, partial(images.__getitem__, index))
        for index, name in enumerate(names)
    ]


def _tests(student: Student) -> list[Chosen]:
    """Some normal and some anomalous test images; none, with a message on the page, without a test part."""
    from kdad.data.images import evenly

    try:
        shown = gallery(student.dataset, student.normal_class)
    except UserError as error:
        st.caption(plain(error))
        return []
    normal = shown.labels == shown.kinds.index(student.normal_class if student.normal_class in shown.kinds else "good")
    chosen = []
    for what, indices in ((TEST, np.flatnonzero(normal)), (ANOMALOUS, np.flatnonzero(~normal))):
        for index in indices[evenly(len(indices), MOST[what]).numpy()].tolist():
            kind = shown.kinds[shown.labels[index]]
            chosen.append(Chosen(what, shown.name(index), kind, index, partial(_fetched, shown, index)))
    return chosen


def _fetched(shown: Gallery, index: int) -> "Tensor":
    import torch

    return shown.fetch(torch.tensor([index]))[0][0]


def _of_uploads(student: Student, files: Sequence) -> Points | None:
    """Points of uploaded images; None without any. What cannot be read is said on the page."""
    pictures, problems = uploaded(files, student.max_value)
    for problem in [*problems, *([f"only {MOST[UPLOADED]} are shown"] if len(pictures) > MOST[UPLOADED] else [])]:
        st.warning(plain(problem))
    if not pictures:
        return None

    pictures = pictures[: MOST[UPLOADED]]
    chosen = [Chosen(UPLOADED, picture.name, "", -1, partial(_pixels, picture)) for picture in pictures]
    teacher = student.teacher, str(student.image_size), *student.layers
    known = _remembered(*teacher, *(picture.digest for picture in pictures))
    if not known:
        known.append(_measured(student, chosen))
    return known[0]


def _pixels(picture: Picture) -> "Tensor":
    import torch

    return torch.from_numpy(picture.pixels.transpose(2, 0, 1).copy())


def _measured(student: Student, chosen: Sequence[Chosen]) -> Points:
    """Read images and measure them, with a bar.

    Raises:
        UserError: an image or the teacher cannot be read.
    """
    from kdad.evaluation.feature_map import pooled_features

    teacher = loaded_teacher(teacher_of(student))
    rows, urls, features = [], [], []
    bar = st.progress(0.0, f"{len(chosen)} images under {plain(student.teacher_name)}…")

    def images() -> "Iterator[Tensor]":
        for one in chosen:
            pixels = one.read()
            urls.append(data_url(to_display(channels_last(pixels.numpy()), THUMBNAIL)))
            rows.append({"what": one.what, "name": one.name, "kind": one.kind, "index": one.index})
            yield pixels

    try:
        for batch in pooled_features(teacher, images()):
            features.append(batch)
            done = sum(map(len, features))
            bar.progress(done / len(chosen), f"{done} of {len(chosen)} images under {plain(student.teacher_name)}…")
    finally:
        bar.empty()
    return Points(pd.DataFrame(rows).assign(image=urls), np.concatenate(features))


def _joined(parts: Sequence[Points | None]) -> Points:
    there = [part for part in parts if part is not None]
    tables = pd.concat([part.table for part in there], ignore_index=True)
    return Points(tables, np.concatenate([part.features for part in there]))
