"""Overlaid training loss and validation AUROC of several runs."""

from collections import defaultdict

import pandas as pd
import streamlit as st

from kdad.spreadsheets import as_csv
from ui.results import charts
from ui.results.evaluated import runs
from ui.shared import figures
from ui.shared.student_index import root, train_command
from ui.shared.words import percent, plain

MAX_RUNS = 8


def section() -> None:
    """Draw the section: the curves of the chosen runs."""
    histories = runs()
    if not histories:
        st.info(f"No runs in `{root()}` yet. Train a student to see its curves here, updated every epoch:")
        st.code(train_command(), language="bash", wrap_lines=True)
        return
    chosen = _choose(histories)
    if not chosen:
        st.info("Choose one or more runs above.")
        return
    history = pd.concat([histories[key].assign(run=key) for key in chosen], ignore_index=True)
    ring = st.toggle("Ring the best validation epoch", key="ring", persist_state="session")
    left, right = st.columns(2, gap="large")
    with left:
        _loss(history)
    with right:
        _auroc(history, ring)
    st.download_button(
        "Curves (CSV)", lambda: as_csv(history), "history.csv", "text/csv", icon=":material/table:",
        on_click="ignore",
    )  # fmt: skip


def _choose(histories: dict[str, pd.DataFrame]) -> list[str]:
    keys = list(histories)
    if "runs" not in st.session_state:
        linked = st.query_params.get("student")
        st.session_state["runs"] = [linked] if linked in keys else _largest_task(keys)
    st.session_state["runs"] = [key for key in st.session_state["runs"] if key in keys]
    return st.multiselect(
        "Runs", keys, key="runs", max_selections=MAX_RUNS, placeholder="choose runs…", persist_state="session",
        help="Runs still in training show the epochs finished so far.",
    )  # fmt: skip


def _largest_task(keys: list[str]) -> list[str]:
    """Runs of the task with most runs, usually one per teacher, as a default comparison; see `Student.key`."""
    tasks = defaultdict(list)
    for key in keys:
        parts = key.split("/")
        tasks[parts[0], parts[-1]].append(key)
    return max(tasks.values(), key=len)[:MAX_RUNS]


def _loss(history: pd.DataFrame) -> None:
    st.subheader("Training loss", anchor=False)
    train = history[history["split"] == "train"]
    figures.chart(
        charts.over_epochs(train, "loss", "loss"),
        "training-loss",
        alt=f"Training loss per epoch: {_last(train, 'loss')}",
    )
    st.caption("Mean over the normal training images, per epoch.")


def _auroc(history: pd.DataFrame, ring: bool) -> None:
    st.subheader("Validation AUROC", anchor=False)
    validation = history[(history["split"] == "validation") & history["auroc"].notna()]
    if validation.empty:
        st.info("These runs have no labelled validation images, so there is no AUROC to plot.")
        return
    best = validation.loc[validation.groupby("run")["auroc"].idxmax()]
    chart = charts.over_epochs(validation, "auroc", "AUROC", best if ring else None)
    figures.chart(chart, "validation-auroc", alt=f"Validation AUROC per epoch: {_last(validation, 'auroc')}")
    st.caption(
        "On held-out images of all classes, by the last layer's error alone; the rest of the default score does not "
        "change during training. The last epoch is the one that is kept."
    )
    if ring:
        named = "; ".join(f"{plain(row.run)}: epoch {row.epoch}, {percent(row.auroc)}" for row in best.itertuples())
        st.caption(f"Best validation epoch, chosen with labelled anomalies and **not** the one kept: {named}.")


def _last(history: pd.DataFrame, column: str) -> str:
    last = history.groupby("run").last()
    return "; ".join(f"{run} ends at {value:.4f}" for run, value in last[column].items())
