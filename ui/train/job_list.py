"""Live list of jobs: progress, curves, log, stop and resume, all read from the jobs' files."""

import json

import streamlit as st

from kdad.errors import UserError
from kdad.jobs import manager
from kdad.jobs.manager import Job
from kdad.jobs.status import FAILED, FINISHED, KILLED, QUEUED, RUNNING, SILENT, STOPPED
from kdad.progress import TRAINING
from kdad.storage.layout import WEIGHTS
from ui.shared.page import INSPECT
from ui.shared.student_index import evaluate_command, jobs_root, key_of, sensitivity_of
from ui.shared.words import duration, percent, plain
from ui.train import charts, comparison

SECONDS_BETWEEN_LOOKS = 1.5
LOG_LINES = 30
MAX_ENDED_JOBS, MAX_GROUPS = 12, 3
BADGES = {
    QUEUED: ("queued", "gray", ":material/schedule:"),
    RUNNING: ("running", "blue", ":material/play_arrow:"),
    SILENT: ("not responding", "yellow", ":material/hourglass:"),
    FINISHED: ("finished", "green", ":material/check:"),
    STOPPED: ("stopped", "orange", ":material/stop:"),
    FAILED: ("failed", "red", ":material/error:"),
    KILLED: ("killed", "red", ":material/error:"),
}


def show_jobs() -> None:
    """Show all jobs, newest first, refreshed while one is active."""
    active = any(job.active for job in manager.find_all(jobs_root()))
    st.fragment(_jobs, run_every=SECONDS_BETWEEN_LOOKS if active else None)()


def _jobs() -> None:
    found = manager.find_all(jobs_root())
    active = sorted(job.folder.name for job in found if job.active)
    if st.session_state.setdefault("active-jobs", active) != active:  # one started or ended: redraw the page
        st.session_state["active-jobs"] = active
        st.rerun()
    st.subheader("Jobs", anchor=False)
    if not found:
        st.info(
            "No training yet. Choose a normal class and a teacher, and start: a student on built-in textures takes "
            "a minute or two. Training continues when you leave this page.", icon=":material/model_training:",
        )  # fmt: skip
    for group in comparison.groups(found)[:MAX_GROUPS]:
        with st.container(border=True, key=f"group-{group[0].group}"):
            comparison.show(group)
    ended = [job for job in reversed(found) if not job.active]
    for job in [*(job for job in found if job.active), *ended[:MAX_ENDED_JOBS]]:
        with st.container(border=True, key=f"job-{job.folder.name}"):
            _job(job)
    if len(ended) > MAX_ENDED_JOBS:
        st.caption(f"{len(ended) - MAX_ENDED_JOBS} older jobs are not shown; remove some to see them.")


def _job(job: Job) -> None:
    dataset, teacher, normal_class = job.student.parts[-3:]
    word, colour, icon = BADGES.get(job.state, (job.state, "gray", None))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{plain(dataset)}** · {plain(normal_class)} · {plain(teacher)}", width="content")
        st.badge(word, color=colour, icon=icon)
    _how_it_fares(job)
    if job.active:
        _curves(job)
    _actions(job)
    with st.expander("Log" if job.active else "Curves and log", key=f"log-{job.folder.name}"):
        if not job.active:
            _curves(job)
        st.code(manager.log_tail(job.folder, LOG_LINES) or "Nothing printed yet.", language=None, wrap_lines=True)


def _how_it_fares(job: Job) -> None:
    status = job.status
    if job.state == QUEUED:
        st.caption(_queue_in_words(job))
    elif job.active:
        st.progress(min(1.0, status.done), _progress_in_words(job))
    elif job.state == FINISHED:
        st.markdown(_result(job))
        for line in (sensitivity_of(job.student) or {}).get("lines", []):
            st.caption(plain(line))
        st.caption(_where_time_went(status.stages))
    elif job.state == FAILED:
        st.error(plain(status.message or "The job failed without a message: see the log."))
    elif job.state == KILLED:
        st.error("The process ended without a message: killed manually, by a lack of memory or by a restart.")
    if not job.active and job.state != FINISHED:
        st.caption(_what_is_left(job))


def _queue_in_words(job: Job) -> str:
    """The number of jobs before a queued one."""
    others = [other for other in manager.find_all(jobs_root()) if other.active and other.folder != job.folder]
    ahead = sum(other.state != QUEUED or other.created < job.created for other in others)
    return f"Queued: {ahead} {'job' if ahead == 1 else 'jobs'} ahead."


def _progress_in_words(job: Job) -> str:
    status = job.status
    if job.state == SILENT:
        return "Not responding: the process may be suspended. You can stop and resume it."
    if not status.phase:
        return "Loading the teacher and the data…"
    words = [status.phase.capitalize()]
    if status.phase == TRAINING and status.epochs:
        words = [f"Training: epoch {max(1, status.epoch)} of {status.epochs}"]
    if status.seconds_left is not None:
        words.append(f"{duration(status.seconds_left)} left")
    return " · ".join(words)


def _where_time_went(stages: dict[str, float]) -> str:
    """The stages of a run that took time, the longest first."""
    longest = sorted(((seconds, name) for name, seconds in stages.items() if seconds >= 1), reverse=True)
    return " · ".join(f"{name} {duration(seconds)}" for seconds, name in longest)


def _result(job: Job) -> str:
    try:
        figures = json.loads((job.student / "evaluation.json").read_text())
        overlap = plain(figures["label_overlap"])
        return f"Test AUROC **{percent(figures['auroc'])}** · seed {int(figures['seed'])} · label overlap: {overlap}"
    except (OSError, ValueError, KeyError, TypeError):
        if not (job.student / WEIGHTS).is_file():
            return "The student has since been removed."
        return (
            "Finished and calibrated. Not tested: to measure accuracy, add normal images to `test/good` and anomalous "
            "ones to `test/<kind of defect>`."
        )


def _what_is_left(job: Job) -> str:
    if (job.student / WEIGHTS).is_file():
        return f"The student is complete but not tested. To test it: `{evaluate_command(job.student)}`"
    done = max((row["epoch"] for row in comparison.history_of(job)), default=0)
    if not done:
        return "No epoch was finished: resuming starts from the beginning."
    return f"Resuming continues after epoch {done}, with the same result as an uninterrupted run."


def _curves(job: Job) -> None:
    """Show the loss and, with labelled validation anomalies, the AUROC."""
    history, trace = comparison.history_of(job), manager.read_trace(job.folder)
    if not history and len(trace) < 2:
        return
    aurocs = [row for row in history if row["auroc"] != ""]
    columns = st.columns(2) if aurocs else [st.container()]
    with columns[0]:
        loss = "" if job.status.loss is None else f" **{job.status.loss:.4f}**"
        dots = " · dots: validation" if history else ""
        st.caption(f"Loss{loss}{dots}")
        chart = charts.losses(history, trace, job.status.epochs)
        st.altair_chart(chart, alt="Training and validation loss by epoch")
    if aurocs:
        with columns[1]:
            st.caption(f"Validation AUROC, last layer alone **{percent(aurocs[-1]['auroc'])}**")
            st.altair_chart(charts.validation_auroc(aurocs, job.status.epochs), alt="Validation AUROC by epoch")


def _actions(job: Job) -> None:
    name = job.folder.name
    with st.container(horizontal=True, vertical_alignment="center"):
        if job.active:
            if st.button("Stop", key=f"stop-{name}", icon=":material/stop:"):
                with st.spinner("Stopping…"):
                    manager.stop(job)
                st.rerun()
            return
        complete = (job.student / WEIGHTS).is_file()
        if job.state == FINISHED and complete and (key := key_of(job.student)):
            st.page_link(INSPECT, label="Inspect images", icon=":material/search:", query_params={"student": key})
        if not complete:
            st.button(
                "Resume", key=f"resume-{name}", icon=":material/resume:", on_click=_attempt, args=(manager.resume, job)
            )
        st.button(
            "Remove from list", key=f"remove-{name}", type="tertiary", on_click=_attempt, args=(manager.remove, job),
            help="The student is kept.",
        )  # fmt: skip


def _attempt(action, job: Job) -> None:
    """Run the action; shows its error, such as when another tab has already done it."""
    try:
        action(job)
    except (UserError, OSError) as error:
        st.toast(plain(str(error)))
