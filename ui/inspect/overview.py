"""All pictures as cards, with heatmap and verdict under every judge."""

from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st

from kdad.errors import UserError
from ui.inspect.drawing import drawn, overlaid
from ui.inspect.judges import Judge, judge_of
from ui.inspect.view_controls import View
from ui.shared.links import LINKED
from ui.shared.pictures import Picture, card, png, side_by_side
from ui.shared.student_index import Student
from ui.shared.words import percentile, plain

if TYPE_CHECKING:
    from kdad.detection.detector import Prediction

CARD_SIDE = 160
MOST_UNSCROLLED = 18
ALL, ANOMALIES, DISAGREED = "All", "Anomalies", "Judged differently"


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


def overview(pictures: list[Picture], judges: list[Judge], view: View) -> Picture:
    """All pictures as cards with heatmaps and verdicts; returns the one to look at closely."""
    with st.spinner("Judging the images…"):
        said = [[judge(picture) for judge in judges] for picture in pictures]
    verdicts = [[judge.is_anomaly(one, view.fpr) for judge, one in zip(judges, each, strict=True)] for each in said]
    picked = _picked(pictures, said)
    shown = _filtered(verdicts, len(judges))
    if not shown:
        st.caption("None of them.")
    with st.container(height=460 if len(shown) > MOST_UNSCROLLED else "content", border=False):
        grid = st.grid(6, min_column_width=100, gap="small")
        for index in shown:
            with grid.cell():
                _card(index, pictures[index], said[index], verdicts[index], judges, view)
    return picked


def _picked(pictures: list[Picture], said: "list[list[Prediction]]") -> Picture:
    """The picture to look at closely: the one of the page's link, the one looked at before, or the most telling."""
    by_name = {picture.name: picture for picture in pictures}
    # The link is not written here, only by a click: that is a step in the browser's history, where Back would end.
    wanted = (st.query_params.get(LINKED), st.session_state.get("picked"), _most_telling(pictures, said))
    st.session_state["picked"] = next(name for name in wanted if name in by_name)
    return by_name[st.session_state["picked"]]


def _filtered(verdicts: list[list[bool | None]], judges: int) -> list[int]:
    """Which pictures to show: all, or those that a filter leaves."""
    found = {
        ALL: list(range(len(verdicts))),
        ANOMALIES: [index for index, each in enumerate(verdicts) if any(each)],
        DISAGREED: [index for index, each in enumerate(verdicts) if {True, False} <= set(each)],
    }
    choices = [ALL, ANOMALIES, *([DISAGREED] if judges > 1 else [])]
    if st.session_state.get("filter", ALL) not in choices:
        st.session_state["filter"] = ALL
    chosen = st.segmented_control(
        "Show", choices, default=ALL, required=True, key="filter", persist_state="page", bind="query-params",
        label_visibility="collapsed", format_func=lambda name: f"{name} ({len(found[name])})",
    )  # fmt: skip
    return found[chosen]


def _most_telling(pictures: list[Picture], said: "list[list[Prediction]]") -> str:
    """The name of the most unusual picture; a defect, if there are any, says more than another texture."""
    ranked = sorted(zip(pictures, said, strict=True), key=lambda pair: -pair[1][0].score[0])
    return next((picture.name for picture, _ in ranked if picture.truth == "defect"), ranked[0][0].name)


def _card(
    index: int, picture: Picture, said: "list[Prediction]", verdicts: list[bool | None], judges: list[Judge], view: View
) -> None:
    words = [_in_words(judge, one, verdict) for judge, one, verdict in zip(judges, said, verdicts, strict=True)]
    at_any_rate = replace(view, fpr=None)  # which changes verdicts, and no picture
    st.image(
        _drawn(tuple(judge.stamp for judge in judges), picture.digest, at_any_rate, judges, picture, said),
        width="stretch",
        alt=f"{picture.name} with its heatmap, {'; '.join(spoken for _, spoken in words)}",
    )  # fmt: skip
    picked = st.session_state["picked"] == picture.name
    st.button(
        plain(picture.name), key=f"card-{index}", width="stretch", type="primary" if picked else "secondary",
        on_click=_pick, args=(picture.name,), help=None if picked else "Look at this image closely",
    )  # fmt: skip
    st.caption("  \n".join(shown for shown, _ in words), text_alignment="center")


@st.cache_data(max_entries=512, show_spinner=False)
def _drawn(
    stamps: tuple[str, ...], digest: str, view: View, _judges: list[Judge], _picture: Picture, _said: list
) -> bytes:
    """A card's picture as PNG; of two judges, one half each."""
    side = CARD_SIDE // len(_judges)
    shown = [drawn(_picture, one, judge, view) for judge, one in zip(_judges, _said, strict=True)]
    halves = [card(overlaid(_picture, each, view.opacity, side), side) for each in shown]
    return png(side_by_side(halves))


def _pick(name: str) -> None:
    st.session_state["picked"] = st.query_params[LINKED] = name


def _in_words(judge: Judge, said: "Prediction", verdict: bool | None) -> tuple[str, str]:
    """How a judge's verdict is shown, and how it is spoken."""
    share, score = judge.share_below(said), f"score {said.score[0]:.3f}"
    if share is None:
        return score, score
    unusual = percentile(share)
    colour, word = {True: ("orange", "anomaly"), False: ("green", "normal"), None: ("gray", "")}[verdict]
    return f":{colour}[**{word}**] {unusual}", f"{score}: {word}, more unusual than {unusual} of normals"
