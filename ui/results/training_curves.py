"""Training loss and validation AUROC of several runs, overlaid."""

from collections import defaultdict

import pandas as pd
import streamlit as st

from ui.results import charts
from ui.results.evaluated import runs
from ui.shared import figures
from ui.shared.student_index import root, train_command
from ui.shared.words import percent, plain

MAX_RUNS = 8


def section() -> None:
    """The curves of the chosen runs."""
    histories = runs()
    if not histories:
        st.info(f"No run is in `{root()}` yet. Train one, and its curves grow here epoch by epoch:")
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
        "Curves (CSV)", lambda: history.to_csv(index=False), "history.csv", "text/csv", icon=":material/table:",
        on_click="ignore",
    )  # fmt: skip


def _choose(histories: dict[str, pd.DataFrame]) -> list[str]:
    keys = list(histories)
    if "runs" not in st.session_state:
        linked = st.query_params.get("student")
        st.session_state["runs"] = [linked] if linked in keys else _rivals(keys)
    st.session_state["runs"] = [key for key in st.session_state["runs"] if key in keys]
    return st.multiselect(
        "Runs", keys, key="runs", max_selections=MAX_RUNS, placeholder="choose runs…", persist_state="session",
        help="Finished or not: a run that is still training shows the epochs it has finished.",
    )  # fmt: skip


def _rivals(keys: list[str]) -> list[str]:
    """The runs of that class which most teachers were copied on: what people come to compare; see `Student.key`."""
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
    st.caption("Mean over the normal training images of an epoch.")


def _auroc(history: pd.DataFrame, ring: bool) -> None:
    st.subheader("Validation AUROC", anchor=False)
    validation = history[(history["split"] == "validation") & history["auroc"].notna()]
    if validation.empty:
        st.info("These runs have no labelled validation images, so there is no AUROC to draw.")
        return
    best = validation.loc[validation.groupby("run")["auroc"].idxmax()]
    chart = charts.over_epochs(validation, "auroc", "AUROC", best if ring else None)
    figures.chart(chart, "validation-auroc", alt=f"Validation AUROC per epoch: {_last(validation, 'auroc')}")
    st.caption(
        "On the held-out images of all classes, by the last layer's error alone: what else the default score reads "
        "does not change in training. The last epoch is what is kept."
    )
    if ring:
        named = "; ".join(f"{plain(row.run)}: epoch {row.epoch}, {percent(row.auroc)}" for row in best.itertuples())
        st.caption(f"Best validation epoch, found with labelled anomalies and **not** what is kept: {named}.")


def _last(history: pd.DataFrame, column: str) -> str:
    last = history.groupby("run").last()
    return "; ".join(f"{run} ends at {value:.4f}" for run, value in last[column].items())
