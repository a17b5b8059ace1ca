"""Revise a student of photographs: let it learn accepted false alarms, or look at a region of interest alone."""

import time
from pathlib import Path

import numpy as np
import streamlit as st

from kdad.data.datasets import at_hand
from kdad.errors import UserError
from kdad.scores import LOCAL_DISTANCE
from kdad.storage.layout import next_version
from ui.inspect import charts
from ui.inspect.detectors import DEVICE_LOCK, CachedDetector, cached_detector
from ui.inspect.overview import Row
from ui.inspect.triage import ACCEPTED, decision_on
from ui.shared.pictures import Picture
from ui.shared.student_index import Student, find, root, sensitivity_of
from ui.shared.student_picker import switch_to
from ui.shared.words import plain


def remembers_normals(cached: CachedDetector) -> bool:
    """Whether a student can be revised: those that compare whole photographs with remembered normals."""
    return cached.detector.config.score == LOCAL_DISTANCE and cached.detector.calibration is not None


def teach(rows: list[Row], cached: CachedDetector) -> None:
    """Offer to learn the accepted images that the first student calls anomalous, and say what was learned last."""
    _say_what_changed(cached.student)
    wrong = [row.picture for row in rows if row.verdicts[0] and decision_on(row.picture) == ACCEPTED]
    if not wrong or not remembers_normals(cached):
        return
    count = "this accepted image is" if len(wrong) == 1 else f"these {len(wrong)} accepted images are"
    if st.button(
        f"Learn that {count} normal", icon=":material/school:", help="A new version of the student, in seconds"
    ):
        _revise(cached, lambda: _corrected(cached, wrong))


def choose_region(cached: CachedDetector, picture: Picture) -> None:
    """Choose a region of interest on a picture, by the mouse or as a mask file, and make a version of it."""
    st.markdown("Only this part of each image will be looked at, by a new version of the student.")
    file = st.file_uploader("A mask, not black where the region is", ["png", "bmp", "tif", "tiff"], key="region-mask")
    st.caption("Or draw a rectangle:")
    drawn = st.vega_lite_chart(
        spec=charts.region(picture.shown), key="region", on_select="rerun", selection_mode=charts.REGION,
        alt=f"{picture.name}, on which a rectangle can be drawn",
    )  # fmt: skip
    sides = drawn["selection"].get(charts.REGION) or {}
    ready = file is not None or len(sides) == 2
    if st.button("Look there alone", icon=":material/crop:", disabled=not ready):
        _revise(cached, lambda: _restricted(cached, file, sides))


def _corrected(cached: CachedDetector, pictures: list[Picture]) -> tuple[Path, str]:
    from kdad.detection.revision import correct

    read = [Picture.of(picture.name, picture.pixels) for picture in pictures]
    different = {picture.digest: picture for picture in read}.values()
    made = correct(
        cached.student.folder, [[picture.pixels] for picture in different], into=_place(cached.student),
        detector=cached.detector, names=[picture.name for picture in different],
    )  # fmt: skip
    return made, f"{len(different)} {'image' if len(different) == 1 else 'images'} learned as normal"


def _restricted(cached: CachedDetector, file, sides: dict[str, list[float]]) -> tuple[Path, str]:
    import torch

    from kdad.data.masks import read_mask
    from kdad.detection.revision import rectangle, restrict

    if file is not None:
        region = torch.from_numpy(read_mask(file, file.name))
    else:
        (left, right), (top, bottom) = (np.clip(sorted(sides[axis]), 0, 1).tolist() for axis in ("x", "y"))
        region = rectangle(top, bottom, left, right)
    made = restrict(cached.student.folder, region, into=_place(cached.student), detector=cached.detector)
    return made, f"{100 * float(region.float().mean()):.0f} % of the image is looked at"


def _place(student: Student) -> Path:
    """The folder of a new version, where students may be written."""
    return next_version(root() / student.key)


def _revise(cached: CachedDetector, make) -> None:
    """Make a version, and go on with it; a failure is told on the page."""
    began = time.monotonic()
    try:
        with st.spinner("Fitting anew…"), DEVICE_LOCK:
            made, change = make()
    except UserError as error:
        st.error(plain(error), icon=":material/error:")
        return
    key = made.relative_to(root()).as_posix()
    seconds = time.monotonic() - began
    st.session_state["revised"] = {
        "key": key, "before": cached.student.key, "words": f"{change}, in {seconds:.1f} s, as **{plain(key)}**"
    }  # fmt: skip
    switch_to(key)
    st.rerun()


def _say_what_changed(student: Student) -> None:
    """Say what was revised last, and what it cost in detection, if it is known or asked for."""
    revised = st.session_state.get("revised")
    if not revised or revised["key"] != student.key:
        return
    st.success(f"{revised['words']}. The version before stays as it is.", icon=":material/school:")
    before = find()[0].get(revised["before"])
    tried = sensitivity_of(student.folder)
    if tried is None and at_hand(student.dataset) and st.button("What did it cost?", icon=":material/balance:"):
        try:
            with st.spinner("Drawing defects into normal images…"):
                _try_drawn_defects(student)
        except UserError as error:
            st.error(plain(error), icon=":material/error:")
        tried = sensitivity_of(student.folder)
    for title, each in (("Before", before and sensitivity_of(before.folder)), ("Now", tried)):
        if each and tried:
            st.caption(f"**{title}**: {plain(each['lines'][0])}")


def _try_drawn_defects(student: Student) -> None:
    from kdad.data.loading import load_task
    from kdad.evaluation.sensitivity import try_drawn_defects

    detector = cached_detector(student).detector
    task = load_task(student.dataset, student.normal_class, detector.teacher.preprocessing, 0)
    with DEVICE_LOCK:
        try_drawn_defects(task, detector, student.folder)
