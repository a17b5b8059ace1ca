"""Cards of all judged pictures, with each detector's heatmap and verdict."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import streamlit as st

from kdad.errors import UserError
from ui.inspect.detectors import CachedDetector, cached_detector, share_below, verdict
from ui.inspect.drawing import drawn, overlaid
from ui.inspect.triage import ACCEPTED, MARKS, REJECTED, decision_on
from ui.inspect.view_controls import View
from ui.shared.links import LINKED, SOURCE, UPLOAD
from ui.shared.pictures import Picture, card, png, side_by_side
from ui.shared.student_index import Student
from ui.shared.words import percentile, plain

if TYPE_CHECKING:
    from kdad.detection.detector import Prediction

CARD_SIDE = 160
MAX_UNSCROLLED, PER_PAGE = 12, 24
MANY = 12  # pictures, whose judging takes long enough for a bar
ALL, ANOMALIES, DISAGREED, OPEN = "All", "Anomalies", "Judged differently", "Open"
DECIDED = {OPEN: None, "Accepted": ACCEPTED, "Rejected": REJECTED}


def load_detectors(students: list[Student]) -> list[CachedDetector]:
    """Load the students' detectors; reports those that cannot be loaded, and ends the page if none can."""
    detectors = []
    for student in students:
        try:
            detectors.append(cached_detector(student))
        except UserError as error:
            st.error(f"**{plain(student.key)}** cannot be used: {plain(error)}")
    if not detectors:
        st.stop()
    return detectors


@dataclass(frozen=True)
class Row:
    """A picture with every detector's prediction and verdict."""

    picture: Picture
    predictions: "list[Prediction]"
    verdicts: list[bool | None]

    @property
    def score(self) -> float:
        """The first detector's."""
        return float(self.predictions[0].score[0])

    @property
    def anomalous(self) -> bool:
        """Whether any detector calls it anomalous."""
        return any(self.verdicts)


def judged(pictures: list[Picture], detectors: list[CachedDetector], view: View) -> list[Row]:
    """Judge all pictures; those that cannot be read are named on the page and left out."""
    rows, bar = [], st.empty()
    for number, picture in enumerate(pictures):
        if len(pictures) > MANY:
            bar.progress(number / len(pictures), f"Judging image {number + 1} of {len(pictures)}…")
        try:
            rows.append(_row(picture, detectors, view))
        except UserError as error:
            st.error(plain(error), icon=":material/broken_image:")
    bar.empty()
    return rows


def _row(picture: Picture, detectors: list[CachedDetector], view: View) -> Row:
    predictions = [cached.predict(picture) for cached in detectors]
    both = zip(detectors, predictions, strict=True)
    return Row(picture, predictions, [verdict(cached.detector, one, view.fpr) for cached, one in both])


def overview(rows: list[Row], detectors: list[CachedDetector], view: View) -> tuple[Picture, list[Picture]]:
    """Show judged pictures as cards; returns the one to show in detail, and those that pass the filter, in order."""
    picked = _picked(rows)
    ordered = sorted(rows, key=lambda row: -row.score) if _worst_first() else rows
    shown = _filtered(ordered, compared=len(detectors) > 1)
    if not shown:
        st.caption("No images match this filter.")
    page = _page(shown)
    with st.container(height=860 if len(page) > MAX_UNSCROLLED else "content", border=False):
        grid = st.grid(3, min_column_width=80, gap="small")
        for row in page:
            with grid.cell():
                _card(row, detectors, view)
    return picked, [row.picture for row in shown]


def _worst_first() -> bool:
    """Draw the choice of an order; returns whether the most unusual come first."""
    source = st.session_state.get(SOURCE, "")
    return st.toggle("Most unusual first", source == UPLOAD, key=f"worst-first-{source}", persist_state="session")


def _page(rows: list[Row]) -> list[Row]:
    """Choose a page of the rows; that of the picked picture, if it has changed."""
    pages = -(-len(rows) // PER_PAGE)
    if pages < 2:
        return rows
    names = [row.picture.name for row in rows]
    picked = st.session_state["picked"]
    if st.session_state.get("paged-for") != picked and picked in names:
        st.session_state["cards"] = names.index(picked) // PER_PAGE + 1
    st.session_state["paged-for"] = picked
    if st.session_state.get("cards", 1) > pages:
        st.session_state["cards"] = 1
    page = st.pagination(pages, key="cards", max_visible_pages=5)
    return rows[(page - 1) * PER_PAGE : page * PER_PAGE]


def _picked(rows: list[Row]) -> Picture:
    """The picture to show in detail: from the page's link, the previous one, or the most unusual."""
    by_name = {row.picture.name: row.picture for row in rows}
    # Only a click writes the link: writing it here would add a history entry that traps the Back button.
    wanted = (st.query_params.get(LINKED), st.session_state.get("picked"), _most_telling(rows))
    st.session_state["picked"] = next(name for name in wanted if name in by_name)
    return by_name[st.session_state["picked"]]


def _filtered(rows: list[Row], compared: bool) -> list[Row]:
    """The rows that pass the filter."""
    found = {
        ALL: rows,
        ANOMALIES: [row for row in rows if row.anomalous],
        DISAGREED: [row for row in rows if {True, False} <= set(row.verdicts)],
    }
    found |= {name: [row for row in rows if decision_on(row.picture) == kept] for name, kept in DECIDED.items()}
    choices = [ALL, ANOMALIES, *([DISAGREED] if compared else [])]
    choices += [name for name in DECIDED if len(found[OPEN]) < len(rows)]
    if st.session_state.get("filter", ALL) not in choices:
        st.session_state["filter"] = ALL
    chosen = st.pills(
        "Show", choices, default=ALL, required=True, key="filter", persist_state="page", bind="query-params", wrap=True,
        label_visibility="collapsed", format_func=lambda name: f"{name} ({len(found[name])})",
    )  # fmt: skip
    return found[chosen]


def _most_telling(rows: list[Row]) -> str:
    """Name of the most unusual picture; defects take precedence, as they show more than other textures."""
    ranked = sorted(rows, key=lambda row: -row.score)
    return next((row.picture.name for row in ranked if row.picture.truth == "defect"), ranked[0].picture.name)


def _card(row: Row, detectors: list[CachedDetector], view: View) -> None:
    picture, columns = row.picture, zip(detectors, row.predictions, row.verdicts, strict=True)
    words = [_in_words(cached, prediction, called) for cached, prediction, called in columns]
    stamps = tuple(cached.stamp for cached in detectors)
    at_any_rate = replace(view, fpr=None)  # the rate changes verdicts, not pictures
    st.image(
        _drawn(stamps, picture.digest, at_any_rate, detectors, row),
        width="stretch",
        alt=f"{picture.name} with its heatmap, {'; '.join(spoken for _, spoken in words)}",
    )  # fmt: skip
    picked = st.session_state["picked"] == picture.name
    st.button(
        plain(picture.name), key=f"card-{picture.name}", width="stretch", type="primary" if picked else "secondary",
        icon=MARKS.get(decision_on(picture)), on_click=pick, args=(picture.name,),
        help=None if picked else "Show this image in detail",
    )  # fmt: skip
    st.caption("  \n".join(shown for shown, _ in words), text_alignment="center")


@st.cache_data(max_entries=512, show_spinner=False)
def _drawn(stamps: tuple[str, ...], digest: str, view: View, _detectors: list[CachedDetector], _row: Row) -> bytes:
    """A card's picture as PNG; two detectors get one half each."""
    side, picture = CARD_SIDE // len(_detectors), _row.picture
    shown = [drawn(picture, one, cached, view) for cached, one in zip(_detectors, _row.predictions, strict=True)]
    halves = [card(overlaid(picture, each, view.opacity, side), side) for each in shown]
    return png(side_by_side(halves))


def pick(name: str) -> None:
    """Show a picture in detail, and link to it."""
    st.session_state["picked"] = st.query_params[LINKED] = name


def _in_words(cached: CachedDetector, prediction: "Prediction", called: bool | None) -> tuple[str, str]:
    """A verdict as caption and as alternative text."""
    share, score = share_below(cached.detector, prediction), f"score {prediction.score[0]:.3f}"
    if share is None:
        return score, score
    unusual = percentile(share)
    colour, word = {True: ("orange", "anomaly"), False: ("green", "normal"), None: ("gray", "")}[called]
    return f":{colour}[**{word}**] {unusual}", f"{score}: {word}, more unusual than {unusual} of normals"
