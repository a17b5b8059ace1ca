"""Jobs that were started together to compare teachers: their losses and AUROCs in one chart, and where they meet."""

from collections import defaultdict
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from kdad.jobs import manager
from kdad.jobs.manager import Job
from kdad.jobs.status import FINISHED
from kdad.storage.history import read_history
from kdad.storage.layout import EVALUATION
from ui.shared.links import ORDINALS, arena_link
from ui.shared.page import RESULTS
from ui.shared.student_index import key_of
from ui.shared.words import percent, plain
from ui.train import charts


def groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that were started together, two or more of them each; the newest group first."""
    found: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        if job.group:
            found[job.group].append(job)
    together = [group for group in found.values() if len(group) > 1]
    return sorted(together, key=lambda group: -group[0].created)


def show(jobs: list[Job]) -> None:
    """Draw the progress of jobs that were started together."""
    dataset, _, normal_class = jobs[0].student.parts[-3:]
    names = [_teacher(job) for job in jobs]
    st.markdown(f"**{plain(dataset)}** · {plain(normal_class)} · {' and '.join(map(plain, names))}")
    losses, aurocs = losses_of(jobs), aurocs_of(jobs)
    columns = st.columns(2) if len(aurocs) else [st.container()]
    if len(losses):
        with columns[0]:
            st.caption("Loss, as a share of each student's first")
            alt = f"Training losses of students of {', '.join(names)} over the share of training"
            st.altair_chart(charts.together(losses, names, "loss", "~%"), alt=alt)
    if len(aurocs):
        with columns[1]:
            latest = aurocs.groupby("teacher", sort=False)["value"].last().items()
            said = ", ".join(f"{plain(name)} **{percent(value)}**" for name, value in latest)
            st.caption(f"Validation AUROC, last layer alone: {said}")
            alt = f"Validation AUROC of students of {', '.join(names)} over the share of training"
            st.altair_chart(charts.together(aurocs, names, "AUROC", ".2%"), alt=alt)
    keys = [key for job in jobs if (job.student / EVALUATION).is_file() and (key := key_of(job.student))]
    if len(keys) == len(jobs) and all(job.state == FINISHED for job in jobs):
        label = "Compare them in the arena" if len(keys) <= len(ORDINALS) else "Compare the first three in the arena"
        st.page_link(RESULTS, label=label, icon=":material/compare_arrows:", query_params=arena_link(keys))


def losses_of(jobs: Sequence[Job]) -> pd.DataFrame:
    """Training losses: columns `teacher`, `done` (share of the training, 0…1) and `value`, by the first loss."""
    rows = []
    for job in jobs:
        trace = manager.read_trace(job.folder)
        epochs = max(job.status.epochs, 1)
        rows += [{"teacher": _teacher(job), "done": at / epochs, "value": loss / trace[0][1]} for at, loss in trace]
    return pd.DataFrame(rows)


def aurocs_of(jobs: Sequence[Job]) -> pd.DataFrame:
    """Validation AUROCs: columns `teacher`, `done` (share of the training, 0…1) and `value`, 0…1."""
    rows = []
    for job in jobs:
        epochs = max(job.status.epochs, 1)
        rows += [
            {"teacher": _teacher(job), "done": row["epoch"] / epochs, "value": row["auroc"]}
            for row in history_of(job)
            if row["auroc"] != ""
        ]
    return pd.DataFrame(rows)


def _teacher(job: Job) -> str:
    return job.student.parts[-2]


def history_of(job: Job) -> list[dict]:
    """The rows of a job's history.csv; [] before the first epoch, or if it is damaged."""
    try:
        return read_history(job.student)
    except (OSError, ValueError, KeyError):
        return []
