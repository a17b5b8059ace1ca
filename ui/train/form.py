"""The form that starts a training."""

from dataclasses import replace

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from kdad.data.datasets import DATASETS, FOLDER, at_hand, class_names, is_folder
from kdad.errors import UserError
from kdad.jobs import manager
from kdad.networks.recipes import MAX_SEED, Recipe
from kdad.networks.teachers.provenance import UNKNOWN, label_overlap
from kdad.networks.teachers.registry import TeacherFacts, available, default_teacher, teacher_facts
from kdad.storage.layout import MAX_TILE_SIZE
from ui.shared.student_index import jobs_root
from ui.shared.words import overlap_badge, plain
from ui.train import own_folder
from ui.train.request import Request, obstacle, refusal, teacher_named, unmet

DATASET_NOTES = {
    "patterns": "Ten built-in textures, one against the other nine.",
    "patterns-defects": "One built-in texture against scratches, spots, holes and patches on it.",
    "cifar10": "Small photos of ten kinds of things, one against the other nine.",
    "mnist": "Handwritten digits, one against the other nine.",
    "fashion-mnist": "Ten kinds of clothing, one against the other nine.",
}
OWN = "my own images"
DEVICES = ("auto", "cpu", "cuda", "mps")
SLOW_ABOVE_MEGABYTES = 100


def new_student() -> DeltaGenerator:
    """The controls, what is wrong with them, and the button that starts a job; returns a place below it."""
    dataset = st.selectbox("Data set", [*DATASETS, OWN], key="dataset", persist_state="session", bind="query-params")
    if dataset == OWN:
        dataset, normal_class = own_folder.choose(), "good"
    else:
        st.caption(f"{DATASET_NOTES[dataset]} {_whereabouts(dataset)}")
        names = class_names(dataset)
        normal_class = st.selectbox("Normal class", names, key=f"class-{dataset}", persist_state="session")
    teacher, preset = _choose_teacher(dataset or FOLDER)
    request = Request(dataset, normal_class, teacher, preset, **_choose_knobs(preset, is_folder(dataset or FOLDER)))
    problem, request = _choose_overwrite(request)
    if problem:
        st.info(plain(problem), icon=":material/info:")
    if st.button("Start training", type="primary", icon=":material/play_arrow:", disabled=problem is not None):
        _start(request)
    return st.empty()


def _whereabouts(dataset: str) -> str:
    if dataset.startswith("patterns"):
        return "Needs no file."
    if at_hand(dataset, ("train", "test")):
        return "On this machine."
    return "Not on this machine: downloaded from the Hugging Face Hub when training starts."


def _choose_teacher(dataset: str) -> tuple[str, Recipe | None]:
    """A teacher's name and the preset of its students, if it is known before the teacher is loaded."""
    names, proposed = available(), default_teacher(dataset)
    # Own images and data sets each keep a choice of their own: they start from different teachers.
    key = "teacher-own" if is_folder(dataset) else "teacher"
    teacher = st.selectbox(
        "Teacher", names, index=names.index(proposed) if proposed in names else 0, key=key, persist_state="session",
        accept_new_options=True,
        help="Choose one, or type timm:NAME for a model of timm (timm:NAME@FILE for weights of your own), or the Hub "
        "id (owner/name) or the folder of a ViT-family model.",
    )  # fmt: skip
    try:
        teacher = teacher_named(teacher)
    except UserError as error:
        st.error(plain(error))
        teacher = ""
    facts = teacher_facts(teacher) if teacher else TeacherFacts(UNKNOWN, here=False)
    size = "" if facts.megabytes is None else f"{facts.megabytes:.3g} MB, "
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        overlap_badge(label_overlap(facts.trained_on, dataset))
        st.caption(f"{size}{'on this machine' if facts.here else 'downloaded when first used'}", width="content")
    if (facts.megabytes or 0) > SLOW_ABOVE_MEGABYTES:
        st.caption(":material/hourglass: A full-size teacher: without a GPU, expect hours to days.")
    return teacher, facts.recipe


def _choose_knobs(preset: Recipe | None, photographs: bool) -> dict:
    epochs = _number("Epochs", preset, "epochs", min_value=1, max_value=100_000)
    with st.expander("More settings", key="more-settings"):
        left, right = st.columns(2)
        with left:
            batch_size = _number("Batch size", preset, "batch_size", min_value=2, max_value=100_000)
        with right:
            rate = _number("Learning rate", preset, "learning_rate", min_value=1e-9, max_value=100.0, format="%g")
        seed = left.number_input("Seed", 0, MAX_SEED, key="seed", persist_state="session")
        device = right.selectbox(
            "Device", DEVICES, key="device", persist_state="session",
            help="auto takes CUDA, then MPS, then the CPU: the first that is here. Another is refused at the start.",
        )  # fmt: skip
        tile_size = _choose_tile_size(left) if photographs else None
        st.caption(
            f"The teacher's preset: {preset.epochs} epochs of batches of {preset.batch_size}, {preset.optimizer} at "
            f"{preset.learning_rate:g}, {preset.schedule}; {preset.min_steps} steps at least, of few images."
            if preset else "What is empty follows the preset."
        )  # fmt: skip
    of_recipe = {"epochs": epochs, "batch_size": batch_size, "learning_rate": rate}
    return of_recipe | {"seed": seed, "device": device, "tile_size": tile_size}


def _choose_tile_size(place: DeltaGenerator) -> int | None:
    return place.number_input(
        "Tile side", 0, MAX_TILE_SIZE, None, key="tile_size", persist_state="session", placeholder="by size",
        help="In pixels. A defect that is small in a large image is lost when that is shrunk to what the teacher sees; "
        "in overlapping tiles it is not, but they take longer. 0 looks at whole images. If left empty, images that are "
        "much larger than what the teacher sees are tiled.",
    )  # fmt: skip


def _number(label: str, preset: Recipe | None, name: str, **limits) -> float | None:
    """A number that starts at the preset; its key holds that, so that another teacher brings its own."""
    value = getattr(preset, name, None)
    step = value / 10 if isinstance(value, float) else None
    return st.number_input(
        label, value=value, step=step, key=f"{name}-{value}", persist_state="session", placeholder="preset", **limits
    )


def _choose_overwrite(request: Request) -> tuple[str | None, Request]:
    """What keeps the request from starting, if anything, and the request with leave to overwrite, if given."""
    if problem := refusal(request):
        return problem, request
    there = obstacle(request)
    if there is None:
        return None, request
    if st.checkbox(f"Replace the {there} that is there", key=f"overwrite-{request.folder}"):
        return None, replace(request, overwrite=True)
    return f"For this class, teacher and seed, there is a {there}. Tick the box to train anew.", request


def _start(request: Request) -> None:
    with st.spinner("Starting…"):
        problem = unmet(request)
        if problem is None:
            manager.start(jobs_root(), request.arguments, request.folder)
    if problem:
        st.error(plain(problem), icon=":material/error:")
    else:
        st.rerun()
