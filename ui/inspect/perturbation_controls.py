"""Controls that change an image, to test a student's response."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import streamlit as st

from kdad.data import patterns, perturbations
from ui.inspect import charts
from ui.shared.pictures import Picture

NOTHING, NOISE, BLUR, ROTATE, ERASE, PASTE = "Nothing", "Noise", "Blur", "Rotate", "Erase", "Paste"
KEPT: dict[str, Any] = {"persist_state": "page", "bind": "query-params"}
GRID = 8  # clickable cells per side
SIZES = (5, 100, 40, 5)  # of a square, % of the shorter side: minimum, maximum, default, step
WOVEN = "a built-in texture"


class Everywhere(NamedTuple):
    """A change of the whole image: its slider, the function on pixels (H, W, 3) and a description."""

    title: str
    amounts: range
    usual: int
    step: int
    work: Callable[[np.ndarray, int], np.ndarray]
    words: str


EVERYWHERE = {
    NOISE: Everywhere(
        "Noise, % of the grey range", range(0, 51, 5), 10, 1,
        lambda pixels, amount: perturbations.add_noise(pixels, amount / 100), "with {} % noise",
    ),
    BLUR: Everywhere(
        "Blur, % of the shorter side", range(0, 21, 2), 4, 1,
        lambda pixels, amount: perturbations.blur(pixels, amount / 100), "blurred by {} %",
    ),
    ROTATE: Everywhere("Angle, degrees", range(-180, 181, 30), 30, 5, perturbations.rotate, "rotated by {}°"),
}  # fmt: skip


@dataclass(frozen=True)
class Strength:
    """Strength of a change: its title, amount and range, and the image changed by another amount."""

    title: str
    amount: int
    amounts: range
    changed: Callable[[int], Picture]


@dataclass(frozen=True)
class Change:
    """A changed picture, with the description, strength and square of the change."""

    picture: Picture
    words: str | None = None
    strength: Strength | None = None
    box: tuple[float, float, float, float] | None = None  # top, bottom, left, right in 0…1

    @property
    def clickable(self) -> bool:
        return self.box is not None


def choose_change(picture: Picture, others: list[Picture]) -> Change:
    """Draw the controls and return `picture` with the chosen change."""
    kind = st.pills(
        "Change the image", [NOTHING, NOISE, BLUR, ROTATE, ERASE, PASTE], default=NOTHING, required=True, key="change",
        **KEPT, wrap=True,
    )  # fmt: skip
    if kind in (ERASE, PASTE):
        return _square(kind, picture, others)
    if kind == NOTHING:
        return Change(picture)
    return _everywhere(kind, picture)


def _everywhere(kind: str, picture: Picture) -> Change:
    way = EVERYWHERE[kind]
    lowest, highest = way.amounts[0], way.amounts[-1]
    amount = st.slider(way.title, lowest, highest, way.usual, way.step, key=kind.lower(), **KEPT)

    def changed(amount: int) -> Picture:
        return picture.changed(way.work(picture.pixels, amount), way.words.format(amount))

    return Change(changed(amount), way.words.format(amount), Strength(way.title, amount, way.amounts, changed))


def _square(kind: str, picture: Picture, others: list[Picture]) -> Change:
    st.caption("Click a cell of the image, or move the sliders.")
    down, across = st.columns(2, wrap=False)
    # Clicks set these through the session state, so their defaults must be set there too.
    for place in ("row", "column"):
        st.session_state.setdefault(place, GRID // 2)
    row = down.slider("Row", 1, GRID, key="row", persist_state="page")
    column = across.slider("Column", 1, GRID, key="column", persist_state="page")
    size = st.slider("Size, % of the shorter side", *SIZES, key="size", **KEPT)
    centre = [(place - 0.5) / GRID for place in (row, column)]
    name, other = ("", None) if kind == ERASE else _choose_other(picture, others)
    words = "with a square erased" if other is None else f"with a square of {name}"

    def changed(size: int) -> Picture:
        where = perturbations.square(picture.pixels.shape, *centre, size / 100)
        pixels = picture.pixels
        made = perturbations.erase(pixels, where) if other is None else perturbations.paste(pixels, where, other)
        return picture.changed(made, words)

    lowest, highest, _, _ = SIZES
    strength = Strength("Size, % of the shorter side", size, range(lowest, highest + 1, 19), changed)
    where = perturbations.square(picture.pixels.shape, *centre, size / 100)
    return Change(changed(size), words, strength, _edges(where, picture.pixels.shape))


def _choose_other(picture: Picture, others: list[Picture]) -> tuple[str, np.ndarray]:
    named = {other.name: other for other in others if other.name != picture.name}
    name = st.selectbox("Paste from", [WOVEN, *named], key="paste-from")
    if name in named:
        return name, named[name].pixels
    return WOVEN, patterns.normals("checkerboard", 1, 0)[0].transpose(1, 2, 0)


def _edges(where: tuple[slice, slice], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    rows, columns = where
    return rows.start / shape[0], rows.stop / shape[0], columns.start / shape[1], columns.stop / shape[1]


def take_click() -> None:
    """Callback of the picture's chart: move the square to the clicked cell."""
    cells = st.session_state["picture"]["selection"].get(charts.CELL)
    if cells:
        st.session_state["row"], st.session_state["column"] = int(cells[0]["row"]), int(cells[0]["column"])
