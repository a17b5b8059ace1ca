"""The controls that change an image, to see what a student sees."""

from dataclasses import dataclass

import numpy as np
import streamlit as st

from kdad.data import patterns, perturbations
from ui.inspect import charts
from ui.shared.pictures import Picture

NOTHING, NOISE, BLUR, ROTATE, ERASE, PASTE = "Nothing", "Noise", "Blur", "Rotate", "Erase", "Paste"
GRID = 8  # cells a side that can be clicked
WOVEN = "a built-in texture"


@dataclass(frozen=True)
class Change:
    """A picture after the change, the same in words, and the square that was changed."""

    picture: Picture
    words: str | None = None
    box: tuple[float, float, float, float] | None = None  # top, bottom, left, right in 0…1

    @property
    def clickable(self) -> bool:
        return self.box is not None


def choose_change(picture: Picture, others: list[Picture]) -> Change:
    """Draw the controls and return `picture` changed as they say."""
    kind = st.pills(
        "Change the image", [NOTHING, NOISE, BLUR, ROTATE, ERASE, PASTE], default=NOTHING, required=True, key="change",
        persist_state="page", wrap=True,
    )  # fmt: skip
    if kind in (ERASE, PASTE):
        return _square(kind, picture, others)
    if kind == NOTHING:
        return Change(picture)
    return _everywhere(kind, picture)


def _everywhere(kind: str, picture: Picture) -> Change:
    if kind == NOISE:
        amount = st.slider("Noise, % of the grey range", 0, 50, 10, key="noise", persist_state="page")
        pixels, words = perturbations.add_noise(picture.pixels, amount / 100), f"with {amount} % noise"
    elif kind == BLUR:
        amount = st.slider("Blur, % of the shorter side", 0, 20, 4, key="blur", persist_state="page")
        pixels, words = perturbations.blur(picture.pixels, amount / 100), f"blurred by {amount} %"
    else:
        amount = st.slider("Turn, degrees", -180, 180, 30, 5, key="turn", persist_state="page")
        pixels, words = perturbations.rotate(picture.pixels, amount), f"turned by {amount}°"
    return Change(picture.changed(pixels, words), words)


def _square(kind: str, picture: Picture, others: list[Picture]) -> Change:
    st.caption("Click a cell of the image, or move the sliders.")
    down, across = st.columns(2, wrap=False)
    # A click sets these through the session, so that is where their first value must be, too.
    for place in ("row", "column"):
        st.session_state.setdefault(place, GRID // 2)
    row = down.slider("Row", 1, GRID, key="row", persist_state="page")
    column = across.slider("Column", 1, GRID, key="column", persist_state="page")
    size = st.slider("Size, % of the shorter side", 5, 100, 25, 5, key="size", persist_state="page")
    centre = [(place - 0.5) / GRID for place in (row, column)]
    where = perturbations.square(picture.pixels.shape, *centre, size / 100)
    if kind == ERASE:
        pixels, words = perturbations.erase(picture.pixels, where), "with a square erased"
    else:
        name, other = _choose_other(picture, others)
        pixels, words = perturbations.paste(picture.pixels, where, other), f"with a square of {name}"
    return Change(picture.changed(pixels, words), words, _edges(where, picture.pixels.shape))


def _choose_other(picture: Picture, others: list[Picture]) -> tuple[str, np.ndarray]:
    woven = patterns.normals("checkerboard", 1, 0)[0].transpose(1, 2, 0)
    choices = {WOVEN: woven} | {other.name: other.pixels for other in others if other.name != picture.name}
    name = st.selectbox("Paste from", list(choices), key="paste-from")
    return name, choices[name]


def _edges(where: tuple[slice, slice], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    rows, columns = where
    return rows.start / shape[0], rows.stop / shape[0], columns.start / shape[1], columns.stop / shape[1]


def take_click() -> None:
    """Move the square to the clicked cell; the callback of the picture's chart."""
    cells = st.session_state["picture"]["selection"].get(charts.CELL)
    if cells:
        st.session_state["row"], st.session_state["column"] = int(cells[0]["row"]), int(cells[0]["column"])
