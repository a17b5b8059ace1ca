"""Form for starting a training."""

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from kdad.data.datasets import BUILT_IN, DATASETS, FOLDER, at_hand, class_names, is_folder
from kdad.errors import UserError
from kdad.jobs import manager
from kdad.networks.recipes import MAX_SEED, Recipe
from kdad.networks.teachers.provenance import UNKNOWN, label_overlap
from kdad.networks.teachers.registry import TeacherFacts, available, default_teacher, teacher_facts
from kdad.storage.layout import MAX_TILE_SIZE
from ui.shared.student_index import jobs_root
from ui.shared.words import OWN_IMAGES, overlap_badge, plain
from ui.train import own_folder
from ui.train.request import Request, obstacle, refusal, teacher_named, unmet

if TYPE_CHECKING:
    from kdad.data.health import Health

DATASET_NOTES = {
    "patterns": "Ten built-in textures, one-vs-rest.",
    "patterns-defects": "A built-in texture, with scratches, spots, holes and patches as defects.",
    "photo-textures": "Built-in photographs of bricks, grass and gravel; scratches, stains, holes, paint and foreign "
    "parts are the defects.",
    "cifar10": "Small photos of ten object classes, one-vs-rest.",
    "mnist": "Handwritten digits, one-vs-rest.",
    "fashion-mnist": "Ten kinds of clothing, one-vs-rest.",
}
DEVICES = ("auto", "cpu", "cuda", "mps")
SLOW_ABOVE_MEGABYTES = 100
PAIR, OWN_PAIR = ("vgg-cifar10", "vit-cifar10"), ("lite0-imagenet", "vit-cifar10")  # teachers to compare


def new_student() -> DeltaGenerator:
    """Draw the controls, any problem with them and the start button; returns an empty element below it."""
    dataset = st.selectbox(
        "Data set", [*DATASETS, OWN_IMAGES], key="dataset", persist_state="session", bind="query-params"
    )
    health = None
    if dataset == OWN_IMAGES:
        (dataset, health), normal_class = own_folder.choose(), "good"
    else:
        st.caption(f"{DATASET_NOTES[dataset]} {_whereabouts(dataset)}")
        names = class_names(dataset)
        normal_class = st.selectbox("Normal class", names, key=f"class-{dataset}", persist_state="session")
    requests, problem = _choose_requests(dataset, normal_class, health)
    if problem:
        st.info(plain(problem), icon=":material/info:")
    if st.button("Start training", type="primary", icon=":material/play_arrow:", disabled=problem is not None):
        _start(requests)
    return st.empty()


def _choose_requests(dataset: str, normal_class: str, health: "Health | None") -> tuple[list[Request], str | None]:
    """Choose one or several teachers and their settings; returns the trainings, and what prevents the start, if any."""
    asked = dataset or FOLDER
    if st.toggle(
        "Compare teachers", key="several", persist_state="session", help="Train a student of each, one by one"
    ):
        teachers = _choose_teachers(asked)
        requests = [Request(dataset, normal_class, name, teacher_facts(name).recipe) for name in teachers]
        if len(teachers) < 2:
            return requests, "Choose two teachers or more, or turn the comparison off."
    else:
        teacher, preset = _choose_teacher(asked)
        requests = [Request(dataset, normal_class, teacher, preset, **_choose_knobs(preset, asked, health))]
    checked = [_choose_overwrite(request) for request in requests]
    return [request for _, request in checked], next((problem for problem, _ in checked if problem), None)


def _choose_teachers(dataset: str) -> list[str]:
    """Choose teachers to compare, by default a CNN and a ViT that have seen the same."""
    names = available()
    own = is_folder(dataset)
    return st.multiselect(
        "Teachers", names, [name for name in (OWN_PAIR if own else PAIR) if name in names],
        key="teachers-own" if own else "teachers", persist_state="session",
    )  # fmt: skip


def _whereabouts(dataset: str) -> str:
    if dataset in BUILT_IN:
        return "Needs no download."
    if at_hand(dataset, ("train", "test")):
        return "On this machine."
    return "Not on this machine: downloaded from the Hugging Face Hub when training starts."


def _choose_teacher(dataset: str) -> tuple[str, Recipe | None]:
    """Choose a teacher; returns its name and, if known before loading it, the preset for its students."""
    names, proposed = available(), default_teacher(dataset)
    # Photographs and other data sets have different default teachers, so each keeps its own choice.
    key = "teacher-own" if proposed else "teacher"
    teacher = st.selectbox(
        "Teacher", names, index=names.index(proposed) if proposed in names else 0, key=key, persist_state="session",
        accept_new_options=True,
        help="Choose one, or type timm:NAME for a timm model (timm:NAME@FILE for your own weights), or the Hub id "
        "(owner/name) or folder of a ViT-family model.",
    )  # fmt: skip
    try:
        teacher = teacher_named(teacher)
    except UserError as error:
        st.error(plain(error))
        teacher = ""
    facts = teacher_facts(teacher) if teacher else TeacherFacts(UNKNOWN, here=False)
    size = "" if facts.megabytes is None else f"{facts.megabytes:.3g} MB, "
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        overlap_badge(label_overlap(facts.trained_on, dataset), dataset)
        st.caption(f"{size}{'on this machine' if facts.here else 'downloaded when first used'}", width="content")
    if (facts.megabytes or 0) > SLOW_ABOVE_MEGABYTES:
        st.caption(":material/hourglass: A full-size teacher: without a GPU, expect hours to days.")
    return teacher, facts.recipe


def _choose_knobs(preset: Recipe | None, dataset: str, health: "Health | None") -> dict:
    photographs = is_folder(dataset)
    epochs = _number("Epochs", preset, "epochs", min_value=1, max_value=100_000)
    if photographs and preset:
        st.caption(epochs_in_words(preset, int(epochs or preset.epochs), own_folder.steps_of(health, preset)))
    with st.expander("More settings", key="more-settings"):
        left, right = st.columns(2)
        with left:
            batch_size = _number("Batch size", preset, "batch_size", min_value=2, max_value=100_000)
        with right:
            rate = _number("Learning rate", preset, "learning_rate", min_value=1e-9, max_value=100.0, format="%g")
        seed = left.number_input("Seed", 0, MAX_SEED, key="seed", persist_state="session")
        device = right.selectbox(
            "Device", DEVICES, key="device", persist_state="session",
            help="auto uses the first available of CUDA, MPS and CPU. An unavailable device is rejected at the start.",
        )  # fmt: skip
        tile_size = _choose_tile_size(left) if photographs else None
        st.caption(
            f"The teacher's preset: {preset.epochs} epochs of batches of {preset.batch_size}, {preset.optimizer} at "
            f"{preset.learning_rate:g}, {preset.schedule}; at least {preset.min_steps} steps with few images."
            if preset else "Empty fields use the preset."
        )  # fmt: skip
    of_recipe = {"epochs": epochs, "batch_size": batch_size, "learning_rate": rate}
    return of_recipe | {"seed": seed, "device": device, "tile_size": tile_size}


def epochs_in_words(preset: Recipe, epochs: int, fitting: Recipe | None) -> str:
    """The number of epochs to run, and why; `fitting` is the preset with enough of them for the images, if known."""
    if epochs != preset.epochs:
        return f"{epochs} {'epoch' if epochs == 1 else 'epochs'} will run, as you ask."
    if fitting is None:
        return f"More with few images: at least {preset.min_steps} steps in all."
    if fitting.epochs == preset.epochs:
        return f"{preset.epochs} epochs will run."
    return f"{fitting.epochs} epochs will run: the images are few, and a student needs {preset.min_steps} steps."


def _choose_tile_size(place: DeltaGenerator) -> int | None:
    return place.number_input(
        "Tile size", 0, MAX_TILE_SIZE, None, key="tile_size", persist_state="session", placeholder="automatic",
        help="In pixels. Small defects in large images are lost when the image is reduced to the teacher's input size; "
        "overlapping tiles preserve them but take longer. 0 uses whole images. If empty, images much larger than the "
        "teacher's input size are tiled.",
    )  # fmt: skip


def _number(label: str, preset: Recipe | None, name: str, **limits) -> float | None:
    """Number input with the preset as default; its key contains the default, so a new teacher resets it."""
    value = getattr(preset, name, None)
    step = value / 10 if isinstance(value, float) else None
    return st.number_input(
        label, value=value, step=step, key=f"{name}-{value}", persist_state="session", placeholder="preset", **limits
    )


def _choose_overwrite(request: Request) -> tuple[str | None, Request]:
    """Offer to overwrite; returns what prevents the start, if anything, and the request, with `overwrite` if ticked."""
    if problem := refusal(request):
        return problem, request
    there = obstacle(request)
    if there is None:
        return None, request
    if st.checkbox(f"Replace the existing {there}", key=f"overwrite-{request.folder}"):
        return None, replace(request, overwrite=True)
    return f"There is already a {there} for this class, teacher and seed. Tick the box to replace it.", request


def _start(requests: list[Request]) -> None:
    """Start all trainings, or none if one of them cannot be; if the disk refuses one, those before it go on."""
    group = secrets.token_hex(4) if len(requests) > 1 else ""
    with st.spinner("Starting…"):
        problem = next(filter(None, map(unmet, requests)), None)
        started = 0
        try:
            for request in [] if problem else requests:
                manager.start(jobs_root(), request.arguments, request.folder, group=group)
                started += 1
        except OSError as error:
            why = f"its job cannot be written to {jobs_root()} ({error.strerror or error})"
            problem = f"{started} of {len(requests)} trainings started; of the next, {why}"
    if problem:
        st.error(plain(problem), icon=":material/error:")
    else:
        st.rerun()
