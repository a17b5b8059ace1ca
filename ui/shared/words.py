"""Formatting of figures and provenance as text."""

import re

import streamlit as st

from kdad.data.datasets import is_folder
from kdad.data.protocol import ENOUGH_TO_CALIBRATE
from kdad.networks.teachers.provenance import OVERLAP_IN_WORDS

OWN_IMAGES = "my own images"  # the data set to choose for them
OVERLAP_COLOURS = {"same": "orange", "related": "yellow", "none": "green", "unknown": "gray"}


def plain(text: str) -> str:
    """Escape `text` for Markdown, as names come from untrusted files."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-!$:~|^=])", r"\\\1", " ".join(str(text).split()))


def percent(share: float) -> str:
    """Format 0.0135 as `1.35 %`, with at most three significant digits."""
    return f"{100 * share:.3g} %"


def duration(seconds: float) -> str:
    """Format a remaining time at a sensible precision: `12 s`, `3 min`, `1 h 20 min`."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def auroc(value: float) -> str:
    """Format an AUROC in 0…1 as `97.35 %`, with two decimals to tell very good from perfect."""
    return f"{100 * value:.2f} %"


def unusualness(share: float, normals: int, normal_class: str) -> str:
    """Compare an image with the normals that set the threshold, of which `share` score lower."""
    kind = f"normal {plain(normal_class)} images" if normal_class else "normal images"
    few = "" if normals >= ENOUGH_TO_CALIBRATE else f" (fewer than {ENOUGH_TO_CALIBRATE}: a rough estimate)"
    if share == 1:
        return f"More unusual than all {normals} {kind}{few}."
    if share == 0:
        return f"Less unusual than all {normals} {kind}{few}."
    return f"More unusual than {100 * share:.1f} % of {normals} {kind}{few}."


def percentile(share: float) -> str:
    """Format a share of held-out normals as `97.3 %`; `100 %` and `0 %` mean exactly all and none."""
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def overlap_badge(overlap: str, dataset: str) -> None:
    """Draw a badge showing what the teacher saw of the anomaly classes; none for own photographs, which have none."""
    known = overlap if overlap in OVERLAP_IN_WORDS else "unknown"
    if known == "unknown" and is_folder(dataset):
        return
    st.badge(f"label overlap: {known}", color=OVERLAP_COLOURS[known], help=OVERLAP_IN_WORDS[known])
