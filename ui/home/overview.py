"""Parts of the home page: an example, a tour and the available students. Imports no torch, to render at once."""

import json
from collections import defaultdict

import streamlit as st

from ui.shared import samples
from ui.shared.links import arena_link, samples_link
from ui.shared.page import ASSETS, INSPECT, RESULTS, TRAIN
from ui.shared.student_index import Student, find, root, train_command
from ui.shared.words import OWN_IMAGES, auroc, overlap_badge, plain, unusualness

VGG_STORY, VIT_STORY = "patterns-defects/vgg-cifar10/bricks", "patterns-defects/vit-cifar10/bricks"
STORY, STORY_SAMPLES = "photo-textures/lite0-imagenet/brick", "brick"
TO_TRAIN = {"dataset": "patterns-defects"}


def example() -> None:
    """Show a defect and its heatmap from each shipped student; docs/make_pictures.py makes the pictures."""
    made = json.loads((ASSETS / "example.json").read_text())
    name = f"{made['texture']} with a {made['defect']}"
    grid = st.grid(1 + len(made["students"]), min_column_width=90)
    with grid.cell():
        st.image(str(ASSETS / "example.png"), width="stretch", alt=f"A photograph of {name}")
        st.caption(f"Image: {name}.")
    for judged in made["students"]:
        with grid.cell():
            words = unusualness(judged["share_below"], judged["normals"], made["texture"])
            st.image(str(ASSETS / judged["heatmap"]), width="stretch", alt=f"Heatmap: the {made['defect']} glows")
            st.caption(f"**{judged['teacher']}**: {words[0].lower()}{words[1:]}")


def story() -> None:
    """Show a short tour that needs no data set; nothing if its student is missing."""
    students, _ = find()
    if STORY not in students:
        return
    anomalous = next(picture.name for picture in samples.pictures(STORY_SAMPLES, 0) if picture.truth == "other texture")
    to_normal, to_defect, to_other = (
        samples_link(STORY, STORY_SAMPLES, name) for name in ("normal 1", "scratch", anomalous)
    )
    to_arena = arena_link([VGG_STORY, VIT_STORY])
    steps = [
        ("A normal image", "The student copies its teacher well: the map stays dark.", INSPECT, to_normal),
        ("A defect", "The copy fails in one place, and that place glows.", INSPECT, to_defect),
        ("Another texture", "Nothing resembles the normals: the whole image is unusual.", INSPECT, to_other),
        ("VGG and ViT", "Two backbones on the same images: which finds what?", RESULTS, to_arena),
        ("Labels or not", "How much it helps if the teacher saw labels.", RESULTS, {"show": "All classes"}),
        ("Your own", "Train a student on your own photographs.", TRAIN, {"dataset": OWN_IMAGES}),
    ]
    st.subheader("New here? Six steps", anchor=False)
    grid = st.grid(3, min_column_width=240, border=True)
    for number, (title, words, page, query) in enumerate(steps, 1):
        with grid.cell():
            st.page_link(page, label=f"{number}. {title}", query_params=query)
            st.caption(words)


def here() -> None:
    """Show the students on this machine, one card per data set and teacher; reads only their JSON files."""
    students, _ = find()
    if students:
        st.subheader("Ready to use", anchor=False)
        families: dict[tuple, list[Student]] = defaultdict(list)
        for student in students.values():
            families[student.dataset, student.teacher].append(student)
        grid = st.grid(3, min_column_width=260, border=True)
        for family in families.values():
            with grid.cell():
                card(family)
    else:
        st.info(f"No students in `{root()}` yet.", icon=":material/info:")
    st.subheader("Train one", anchor=False)
    st.markdown("Training, calibrating and testing a student on built-in textures takes a minute or two:")
    with st.container(key="kdad-train", width="content"):
        st.page_link(TRAIN, label="Train a student", icon=":material/play_arrow:", query_params=TO_TRAIN)
    with st.expander("From the command line"):
        st.code(train_command(), language="bash", wrap_lines=True)


def card(family: list[Student]) -> None:
    """Show a card for one teacher's students of one data set."""
    first = family[0]
    st.markdown(f"**{plain(first.dataset_name)}** · {plain(first.teacher_name)}")
    overlap_badge(first.label_overlap, first.dataset)
    figures = [student.evaluation["auroc"] for student in family if student.evaluation]
    classes = sorted({student.normal_class for student in family})
    lines = [f"{len(family)} student{'s' if len(family) > 1 else ''}, normal: {', '.join(map(plain, classes))}"]
    if figures:
        seeds = ", ".join(str(seed) for seed in sorted({student.seed for student in family}))
        mean = "mean test AUROC" if len(figures) > 1 else "test AUROC"
        lines.append(f"{mean} {auroc(sum(figures) / len(figures))}, seed {seeds} only")
    st.caption("  \n".join(lines))
    st.page_link(INSPECT, label="Inspect with it", icon=":material/arrow_forward:", query_params={"student": first.key})
