"""Figures and provenance in words."""

import re

import streamlit as st

from kdad.networks.teachers.provenance import OVERLAP_IN_WORDS

OVERLAP_COLOURS = {"same": "orange", "related": "yellow", "none": "green", "unknown": "gray"}


def plain(text: str) -> str:
    """`text` so that Markdown shows it as it is: names come from files that nobody vetted."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-!$:~|^=])", r"\\\1", " ".join(str(text).split()))


def percent(share: float) -> str:
    """0.0135 as `1.35 %`, with three significant digits at most."""
    return f"{100 * share:.3g} %"


def duration(seconds: float) -> str:
    """A time left in words, no more exact than it can be: `12 s`, `3 min`, `1 h 20 min`."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def auroc(value: float) -> str:
    """An AUROC in 0…1 as `97.35 %`: two decimals, so that a very good one is not called perfect."""
    return f"{100 * value:.2f} %"


def unusualness(share: float, normals: int, normal_class: str) -> str:
    """How an image compares with the held-out normals, `share` of which score below it."""
    kind = f"held-out normal {plain(normal_class)} images"
    if share == 1:
        return f"More unusual than all {normals} {kind}."
    if share == 0:
        return f"Less unusual than all {normals} {kind}."
    return f"More unusual than {100 * share:.1f} % of {kind}."


def percentile(share: float) -> str:
    """How many held-out normals are less unusual: `97.3 %`, and `100 %` or `0 %` only of all or none."""
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def overlap_badge(overlap: str) -> None:
    """A badge with what the teacher saw of the anomaly classes."""
    known = overlap if overlap in OVERLAP_IN_WORDS else "unknown"
    st.badge(f"label overlap: {known}", color=OVERLAP_COLOURS[known], help=OVERLAP_IN_WORDS[known])
