"""Results over all classes of a data set: our students and published systems, by architecture and labels seen."""

import os
import re
from collections import defaultdict
from pathlib import Path

import pandas as pd
import streamlit as st

from kdad.errors import UserError
from kdad.evaluation import results_file as results
from kdad.evaluation.results_file import DATASET, FAMILIES, SQUARE, Line
from kdad.networks.teachers.registry import available
from kdad.scores import SELECTION_CLASSES
from kdad.spreadsheets import as_csv
from ui.results import charts
from ui.shared import figures
from ui.shared.page import ROOT
from ui.shared.words import overlap_badge, plain

NARROWEST, LETTER, PADDING = 50, 7, 21  # pixels of a column, of a letter of its name, and beside them
SYSTEM_WIDTH = 212  # pixels: whole short names fit, and ten classes side by side
TABLE_HEIGHT, MAX_ROWS = 420, 10
SHORTER = {
    "5 nearest neighbours": "5-NN",
    "Mahalanobis distance": "Mahalanobis",
    "1 − p(normal class)": "1 − p(normal)",
}


def results_path() -> Path:
    """`$KDAD_RESULTS`, or the project's own `benchmarks/results/one_vs_rest.json`."""
    return Path(os.environ.get("KDAD_RESULTS") or ROOT / results.RESULTS)


def section() -> None:
    """Draw the section: the table of all classes, and the square of architectures and labels."""
    try:
        entries = results.load_results(results_path())
    except UserError as error:
        st.error(plain(error), icon=":material/broken_image:")
        entries = {}
    left, right = st.columns(2)
    datasets = sorted({DATASET, *(entry["dataset"] for entry in entries.values())})
    dataset = left.selectbox(
        "Data set", datasets, index=datasets.index(DATASET), key="of-dataset", persist_state="session"
    )
    score = right.segmented_control(
        "Our score", list(results.AUROCS), default="auroc", required=True, key="of-sweeps",
        format_func=lambda score: results.AUROCS[score].removesuffix(" score").capitalize(), persist_state="session",
    )  # fmt: skip
    lines = results.lines(entries, dataset, score)
    if dataset == DATASET:
        _square(entries, score)
    _table(lines, dataset, score)
    _provenance(results.entries_of(entries, dataset), lines, dataset)
    _downloads(lines, dataset)


def _square(entries: dict, score: str) -> None:
    st.subheader("Architecture, or labels seen?", anchor=False)
    st.markdown(
        "A teacher trained on CIFAR-10 with labels has already seen the anomalies. Rows differ in architecture, "
        "columns in the teacher's training: images, labels and duration. Mean AUROC over the classes not used to "
        f"select the score (all but {' and '.join(SELECTION_CLASSES)}):"
    )
    grid = st.grid(2, min_column_width=300, border=True)
    for (family, seen), teacher in SQUARE.items():
        with grid.cell():
            st.markdown(f"**{FAMILIES[family]}**, labels {'seen' if seen else 'not seen'}")
            found = results.cell(entries, DATASET, score, family, seen)
            for line in found:
                _cell_line(line)
            if all(line.published for line in found):
                _fill(teacher, family, seen)
    if changes := results.effects(entries, score):
        st.caption("Paired comparisons of our students: " + "; ".join(changes) + ".")


def _cell_line(line: Line) -> None:
    if line.published:
        st.caption(f"{plain(line.name)}: {line.headline or '–'} ({plain(line.provenance)}; all classes {line.mean})")
    else:
        st.metric(
            plain(line.name),
            str(line.headline),
            width="content",
            help=f"{plain(line.provenance)}. All classes: {line.mean}.",
        )


def _fill(teacher: str, family: str, seen: bool) -> None:
    """Show the commands that fill an empty cell."""
    commands = [results.sweep_command(DATASET, teacher)]
    if teacher not in available():  # a teacher pretrained by this project
        data = "cifar10" if seen else "tiny-imagenet-32"
        commands.insert(0, f"python -m kdad pretrain --backbone {family} --dataset {data} --out kdad/weights/{teacher}")
    st.caption(f"Our {plain(teacher)} has not been measured yet. To measure it:")
    st.code("\n".join(commands), language="bash", wrap_lines=True)


def _table(lines: list[Line], dataset: str, score: str) -> None:
    st.subheader(f"Every class of {plain(dataset)}", anchor=False)
    if all(line.published for line in lines):
        st.info("The results file contains no sweep yet, only published figures. To measure all classes:")
        st.code(results.sweep_command(dataset, "vgg-cifar10"), language="bash", wrap_lines=True)
    if not lines:
        return
    drawn = [line for line in lines if not line.baseline and line.classes]
    if drawn:
        chart = charts.by_class(_long(drawn), [line.name for line in drawn])
        alt = "AUROC of every student on every class; the table below shows the same values"
        figures.chart(chart, "all-classes", alt=alt)
    rows = [
        {"system": _short(line.name), "mean": str(line.mean)}
        | {name: f"{100 * figure.mean:.1f}" for name, figure in line.classes.items()}
        for line in lines
    ]
    names = list(dict.fromkeys(name for line in lines for name in line.classes))
    of_classes = {name: st.column_config.TextColumn(width=_width(name)) for name in names}
    st.dataframe(
        pd.DataFrame(rows).fillna("–"), hide_index=True, height=TABLE_HEIGHT if len(rows) > MAX_ROWS else "content",
        alt="AUROC in per cent, one row per system",
        column_config={"system": st.column_config.TextColumn(pinned=True, width=SYSTEM_WIDTH), **of_classes},
    )  # fmt: skip
    st.caption(
        "AUROC in per cent, averaged over all seeds (the home page shows the students on this machine, one seed only); "
        f"± is the sample standard deviation over seeds. Ours use the {results.AUROCS[score]}. Diamonds are published "
        "figures. Published figures and baselines (table only) have one value per class and no spread; those that "
        "publish a mean alone are in the table, too."
    )


def _short(name: str) -> str:
    """The name of a system without what is in brackets, for the table; in full it stands below."""
    for long, short in SHORTER.items():
        name = name.replace(long, short)
    return re.sub(r" \([^)]*\)", "", name)


def _width(name: str) -> int:
    """Width in pixels of a column that shows its whole name."""
    return round(max(NARROWEST, PADDING + LETTER * len(name)))


def _long(lines: list[Line]) -> pd.DataFrame:
    """One row per class and system, for charts and downloads."""
    return pd.DataFrame(
        {
            "class": name,
            "system": line.name,
            "score": line.score,
            "label_overlap": line.label_overlap,
            "auroc": figure.mean,
            "deviation": figure.deviation,
            "low": figure.mean - (figure.deviation or 0),
            "high": figure.mean + (figure.deviation or 0),
            "published": line.published,
            "provenance": line.provenance,
        }
        for line in lines
        for name, figure in line.classes.items()
    )


def _provenance(entries: list[dict], lines: list[Line], dataset: str) -> None:
    """Describe each system, grouped by origin."""
    st.subheader("Where these figures come from", anchor=False)
    costs = {Path(entry["teacher"]).name: results.cost_of(entry) for entry in entries}
    origins: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        origins[line.provenance, line.label_overlap].append(line)
    with st.expander(f"{len(lines)} systems"):
        for (provenance, overlap), of_origin in origins.items():
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.markdown(", ".join(f"**{plain(line.name)}**" for line in of_origin), width="content")
                overlap_badge(overlap, dataset)
            cost = [f"{plain(line.name)} {plain(costs[line.name])}" for line in of_origin if line.name in costs]
            st.caption(plain(provenance) + (f". One student: {'; '.join(cost)}" if cost else "") + ".")
    for note in dict.fromkeys(map(results.images_of, entries)):
        st.caption(plain(note))


def _downloads(lines: list[Line], dataset: str) -> None:
    with st.container(horizontal=True):
        if lines:
            frame = _long(lines).drop(columns=["low", "high"])
            st.download_button(
                "Figures (CSV)", lambda: as_csv(frame), f"{dataset}-results.csv", "text/csv",
                icon=":material/table:", on_click="ignore",
            )  # fmt: skip
        if results_path().is_file():
            st.download_button(
                "Results file (JSON)", lambda: results_path().read_bytes(), "results.json", "application/json",
                icon=":material/data_object:", on_click="ignore",
            )  # fmt: skip
