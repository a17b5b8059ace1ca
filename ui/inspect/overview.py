"""All pictures as cards, with heatmap, score and verdict."""

import streamlit as st

from kdad.errors import UserError
from ui.inspect.drawing import is_anomaly, overlaid
from ui.inspect.judges import Judge, judge_of
from ui.inspect.view_controls import View
from ui.shared.pictures import Picture, card
from ui.shared.student_index import Student
from ui.shared.words import plain

CARD_SIDE = 160
MOST_UNSCROLLED = 18


def load_judges(students: list[Student]) -> list[Judge]:
    """The judges of these students; one that cannot be loaded is reported, and the first ends the page."""
    judges = []
    for student in students:
        try:
            judges.append(judge_of(student))
        except UserError as error:
            st.error(f"**{plain(student.key)}** cannot be used: {plain(error)}")
    if not judges:
        st.stop()
    return judges


def overview(pictures: list[Picture], judge: Judge, view: View) -> Picture:
    """All pictures as cards with heatmap, score and verdict; returns the one to look at closely."""
    with st.spinner("Judging the images…"):
        predictions = [judge(picture) for picture in pictures]
    names = [picture.name for picture in pictures]
    if st.session_state.get("picked") not in names:
        st.session_state["picked"] = _most_telling(pictures, predictions)
    with st.container(height=460 if len(pictures) > MOST_UNSCROLLED else "content", border=False):
        grid = st.grid(6, min_column_width=100, gap="small")
        for index, (picture, prediction) in enumerate(zip(pictures, predictions, strict=True)):
            with grid.cell():
                _card(index, picture, prediction, judge, view)
    return pictures[names.index(st.session_state["picked"])]


def _most_telling(pictures: list[Picture], predictions: list) -> str:
    """The name of the most unusual picture; a defect, if there are any, says more than another texture."""
    ranked = sorted(zip(pictures, predictions, strict=True), key=lambda pair: -pair[1].score[0])
    return next((picture.name for picture, _ in ranked if picture.truth == "defect"), ranked[0][0].name)


def _card(index: int, picture: Picture, prediction, judge: Judge, view: View) -> None:
    st.image(
        card(overlaid(picture, prediction, judge, view, CARD_SIDE), CARD_SIDE), width="stretch", output_format="PNG",
        alt=f"{picture.name} with its heatmap, score {prediction.score[0]:.3f}",
    )  # fmt: skip
    picked = st.session_state["picked"] == picture.name
    st.button(
        plain(picture.name), key=f"card-{index}", width="stretch", type="primary" if picked else "secondary",
        on_click=_pick, args=(picture.name,), help=None if picked else "Look at this image closely",
    )  # fmt: skip
    st.caption(f"{prediction.score[0]:.3f} {_verdict_word(prediction, judge, view)}", text_alignment="center")


def _pick(name: str) -> None:
    st.session_state["picked"] = name


def _verdict_word(prediction, judge: Judge, view: View) -> str:
    return {True: ":orange[**anomaly**]", False: ":green[normal]", None: ""}[is_anomaly(prediction, judge, view)]
