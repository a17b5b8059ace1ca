"""The parts of the inspect page, from top to bottom."""

import io
import zipfile

import numpy as np
import pandas as pd
import streamlit as st

from kdad.detection import conformal
from kdad.detection.discrepancy import DISTANT_ERROR
from kdad.errors import UserError
from ui.inspect import charts, perturbation_controls
from ui.inspect.judges import Judge, judge_of, rank
from ui.inspect.view_controls import PATCH, View
from ui.shared.pictures import DISPLAY_SIDE, Picture, card, png, to_display
from ui.shared.student_index import Student, evaluate_command, find, same_family, sweep_command
from ui.shared.words import SCORE_IN_WORDS, percent, plain, unusualness

COMBINED_CELLS = 16  # cells a side that show the value of all layers together
MOST_CELLS = 64
FOUND, TRUE = (255, 255, 255), (61, 220, 151)  # the colours of outlines
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
        card(_overlay(picture, prediction, judge, view, CARD_SIDE), CARD_SIDE), width="stretch", output_format="PNG",
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


def _is_anomaly(prediction, judge: Judge, view: View) -> bool | None:
    if judge.normals is None or view.fpr is None:
        return None
    return bool(prediction.score[0] > judge.threshold(view.fpr))


def _verdict_word(prediction, judge: Judge, view: View) -> str:
    return {True: ":orange[**anomaly**]", False: ":green[normal]", None: ""}[_is_anomaly(prediction, judge, view)]


def _colour_range(heatmap: np.ndarray, judge: Judge, view: View) -> tuple[float, float]:
    own = view.own_contrast or view.method != PATCH
    return (float(heatmap.min()), float(heatmap.max())) if own else judge.detector.colour_range


def _overlay(picture: Picture, prediction, judge: Judge, view: View, side: int = DISPLAY_SIDE) -> np.ndarray:
    """The picture under its heatmap, uint8 (h, w, 3), with no side above `side`."""
    from kdad.detection.rendering import overlay

    pixels = to_display(picture.shown, side)
    heatmap = judge.heatmap(prediction, view.layer, *pixels.shape[:2])
    return overlay(pixels, heatmap, *_colour_range(heatmap, judge, view), view.opacity)


def _outlined(pixels: np.ndarray, heatmap: np.ndarray, picture: Picture, judge: Judge, view: View) -> np.ndarray:
    """`pixels` with lines around what is called anomalous, and around what truly is."""
    from kdad.detection.rendering import mask_of, outline

    if view.method == PATCH and judge.mask_threshold is not None:
        pixels = outline(pixels, mask_of(heatmap, judge.mask_threshold), FOUND)
    if picture.mask is not None:
        pixels = outline(pixels, to_display(picture.mask.astype(np.uint8)) > 0, TRUE)
    return pixels


def closer_look(picture: Picture, others: list[Picture], judges: list[Judge], view: View) -> Picture:
    """One picture in detail, side by side under every judge; returns it as the controls have changed it."""
    st.divider()
    st.subheader(plain(picture.name) + (f" · {plain(picture.truth)}" if picture.truth else ""), anchor=False)
    columns = st.columns(3, gap="medium")
    with columns[0]:
        if len(judges) > 1:
            st.markdown("**Image**")
        place = st.container()
        change = perturbation_controls.choose_change(picture, others)
        with place:
            _input(change)
    for column, judge in zip(columns[1:], judges, strict=False):
        with column:
            if len(judges) > 1:
                st.markdown(f"**{plain(judge.student.key)}**")
            prediction = judge(change.picture)
            _heatmap(change.picture, prediction, judge, view)
            _verdict(picture, prediction, judge, view, change)
            if len(judges) > 1:
                _evidence(prediction, judge, view)
    if len(judges) == 1:
        with columns[2]:
            _evidence(prediction, judges[0], view)
    return change.picture


def _input(change: perturbation_controls.Change) -> None:
    cells = charts.grid_cells(perturbation_controls.GRID, perturbation_controls.GRID)
    chart = charts.picture(change.picture.shown, cells, "", clickable=change.clickable, box=change.box)
    alt = f"{change.picture.name}, as the student gets it"
    if change.clickable:
        st.altair_chart(
            chart, key="picture", on_select=perturbation_controls.take_click, selection_mode=charts.CELL, alt=alt
        )
    else:
        st.altair_chart(chart, alt=alt)


def _heatmap(picture: Picture, prediction, judge: Judge, view: View) -> None:
    from kdad.detection.rendering import overlay

    if view.method == PATCH:
        heatmap = judge.heatmap(prediction, view.layer, *picture.shown.shape[:2])
        unit = "σ above normal" if judge.normals is not None else "patch error"
        cells = _cells(prediction, judge, view)
    else:
        heatmap, unit = judge.localise(picture, view.method), view.method
        cells = charts.grid_cells(COMBINED_CELLS, COMBINED_CELLS, _coarse(heatmap))
    low, high = _colour_range(heatmap, judge, view)
    pixels = overlay(picture.shown, heatmap, low, high, view.opacity)
    if view.outlines:
        pixels = _outlined(pixels, heatmap, picture, judge, view)
    alt = f"Heatmap over {picture.name}: up to {heatmap.max():.3g} {unit}"
    st.altair_chart(charts.picture(pixels, cells, unit), alt=alt)
    charts.scale_bar(low, high, unit)
    if view.method != PATCH:
        st.caption(f"{view.method} has no unit of its own: these colours cannot be compared with another image's.")
    elif view.own_contrast:
        st.caption("Per-image contrast: these colours cannot be compared with another image's.")


def _cells(prediction, judge: Judge, view: View) -> pd.DataFrame:
    """The patches of a heatmap: a layer's own, or a grid over all layers together."""
    if view.layer is None:
        values = judge.detector.heatmap(prediction, COMBINED_CELLS, COMBINED_CELLS)[0]
        return charts.grid_cells(*values.shape, values)
    preprocessing = judge.detector.teacher.preprocessing
    border = (preprocessing.resize - preprocessing.crop) / 2 / preprocessing.resize
    values = prediction.patch_maps[view.layer][0]
    if max(values.shape) > MOST_CELLS:  # stitched tiles
        values, border = judge.heatmap(prediction, view.layer, COMBINED_CELLS, COMBINED_CELLS), 0.0
    return charts.grid_cells(*values.shape, values, border)


def _coarse(heatmap: np.ndarray) -> np.ndarray:
    """The mean of a map (h, w) over each of `COMBINED_CELLS`² cells."""
    rows = np.array_split(heatmap, COMBINED_CELLS)
    return np.array([[cell.mean() for cell in np.array_split(row, COMBINED_CELLS, 1)] for row in rows])


def _verdict(picture: Picture, prediction, judge: Judge, view: View, change: perturbation_controls.Change) -> None:
    score = float(prediction.score[0])
    before = float(judge(picture).score[0])
    delta = None if change.words is None else f"{score - before:+.3f} {change.words}"
    anomalous = _is_anomaly(prediction, judge, view)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.metric("Anomaly score", f"{score:.3f}", delta, delta_color="off", width="content")
        if anomalous is not None:
            word, colour = ("Anomaly", "orange") if anomalous else ("Normal", "green")
            st.badge(word, color=colour, help=f"At a false-positive rate of {percent(view.fpr)}")
    if judge.normals is None:
        st.caption("No p-value: this student was never calibrated. This does it, where its data set is at hand:")
        st.code(evaluate_command(judge.student), language="bash", wrap_lines=True)
        return
    share = float(conformal.share_below(prediction.score, judge.normals)[0])
    st.markdown(unusualness(share, len(judge.normals), judge.student.normal_class))
    st.caption(f"p-value {prediction.p_value[0]:.4f}")


def _evidence(prediction, judge: Judge, view: View) -> None:
    """Where the score stands among normals, and what each layer adds."""
    if judge.normals is not None:
        st.markdown("**Among held-out normals**")
        chart = charts.among_normals(judge.normals, float(prediction.score[0]), judge.threshold(view.fpr))
        st.altair_chart(chart, alt="Histogram of the normals' scores, with this image's score and the threshold")
    st.markdown("**What each critical layer adds**")
    grids = judge.detector.teacher.grids
    names = [f"{index + 1} ({height}×{width})" for index, (height, width) in enumerate(grids)]
    chart = charts.layers(prediction.layer_scores[0], judge.detector.calibration_layer_scores, names)
    st.altair_chart(chart, alt="The image's error in each critical layer, beside the middle 90 % of normals")
    band = "" if judge.normals is None else "Bar: this image. Band: the middle 90 % of normals. "
    st.caption(band + SCORE_IN_WORDS[judge.detector.config.score] + _factors(prediction, judge))


def _factors(prediction, judge: Judge) -> str:
    """The two factors of a score that has two."""
    if judge.detector.config.score != DISTANT_ERROR or judge.normals is None:
        return ""
    return f" Here: {prediction.layer_errors[0, -1, 0]:.3f} × {prediction.distance[0]:.2f}."


def ranking(picture: Picture, judge: Judge) -> None:
    """Which normal class explains a picture best, by all students of one teacher and data set."""
    students, _ = find()
    family = same_family(judge.student, students)
    st.divider()
    st.subheader("Which normal class explains it best?", anchor=False)
    dataset, teacher = plain(judge.student.dataset), plain(judge.student.teacher_name)
    if len(family) < 2:
        st.caption(f"This is the only student of {teacher} on {dataset} here. To rank all classes, train the others:")
        st.code(sweep_command(judge.student), language="bash", wrap_lines=True)
        return
    if not st.toggle(f"Ask all {len(family)} students of {teacher} on {dataset}", key="rank", persist_state="session"):
        return
    with st.spinner("Asking every student…"):
        judges = load_judges(family)
        rows = rank(judges, picture)
    if not rows:
        st.caption("None of them is calibrated, so their scores cannot be compared.")
        return
    best = plain(rows[0]["normal_class"])
    st.markdown(f"**{plain(picture.name)}** is least unusual as **{best}**. All students share one teacher pass.")
    chart = charts.ranking(rows, judge.student.key)
    st.altair_chart(chart, alt=f"How unusual the image is to each student; {best} least")


def downloads(pictures: list[Picture], judges: list[Judge], view: View) -> None:
    """Scores as CSV, heatmaps as PNG in one archive."""
    st.divider()
    st.subheader("Take it with you", anchor=False)
    with st.container(horizontal=True):
        st.download_button(
            "Scores (CSV)", lambda: _csv(pictures, judges, view), "scores.csv", "text/csv", icon=":material/table:",
            on_click="ignore",
        )  # fmt: skip
        st.download_button(
            "Heatmaps (PNG)", lambda: _archive(pictures, judges, view), "heatmaps.zip", "application/zip",
            icon=":material/image:", on_click="ignore",
        )  # fmt: skip


def _csv(pictures: list[Picture], judges: list[Judge], view: View) -> str:
    """One row per picture and student, as `kdad score --csv` writes them, with each layer's part."""
    rows = []
    for judge in judges:
        for picture in pictures:
            prediction = judge(picture)
            p_value = float(prediction.p_value[0])
            rows.append(
                {
                    "image": picture.name,
                    "student": judge.student.key,
                    "score": float(prediction.score[0]),
                    "p_value": None if np.isnan(p_value) else p_value,
                    "is_anomaly": _is_anomaly(prediction, judge, view),
                    "false_positive_rate": view.fpr,
                    **{f"layer{i + 1}": float(part) for i, part in enumerate(prediction.layer_scores[0])},
                }
            )
    return pd.DataFrame(rows).to_csv(index=False)


def _archive(pictures: list[Picture], judges: list[Judge], view: View) -> bytes:
    """A zip file with one heatmap PNG per picture and student."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for judge in judges:
            for index, picture in enumerate(pictures):
                pixels = _overlay(picture, judge(picture), judge, view)
                archive.writestr(f"{judge.student.key.replace('/', '-')}/{index:03d}.png", png(pixels))
    return file.getvalue()
