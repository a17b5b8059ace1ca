"""List of available students: figures, links, deletion and transfer to and from the Hub."""

import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import streamlit as st

from kdad.errors import UserError
from kdad.jobs import manager
from ui.shared.page import INSPECT, ROOT
from ui.shared.places import at_the_machine
from ui.shared.student_index import Student, find, jobs_root, root
from ui.shared.words import overlap_badge, percent, plain
from ui.train import use_it

NAME_WIDTH, FIGURE_WIDTH = 140, 150  # pixels: keeps rows aligned, and fits a phone


def show_students() -> None:
    """Show all students, grouped by data set and teacher."""
    students, damaged = find()
    if damaged:
        st.warning(f"Unreadable: {', '.join(map(plain, damaged))}. Retrain these students or remove their folders.")
    if not students:
        st.info(f"No students in `{root()}` yet. Train one, or fetch one from the Hub below.")
        return
    families: dict[tuple, list[Student]] = defaultdict(list)
    for student in students.values():
        families[student.dataset, student.teacher].append(student)
    for (dataset, teacher), family in families.items():
        with st.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.markdown(f"**{plain(family[0].dataset_name)}** · {plain(Path(teacher).name)}", width="content")
                overlap_badge(family[0].label_overlap, dataset)
            for student in family:
                _row(student, deletable=_deletable(student))
    use_it.offer(students)
    if not all(map(_deletable, students.values())):
        st.caption("Bundled students cannot be deleted.")


def _deletable(student: Student) -> bool:
    """Whether the student is in the writable root and does not ship with the project."""
    return student.folder.is_relative_to(root()) and student.key not in shipped(root())


def _row(student: Student, deletable: bool) -> None:
    name = ", ".join(filter(None, (f"**{plain(student.normal_class)}**", student.variant)))
    figures = "not tested" if student.evaluation is None else f"test AUROC {percent(student.evaluation['auroc'])}"
    with st.container(horizontal=True, vertical_alignment="center", key=f"student-{student.key}"):
        st.markdown(name, width=NAME_WIDTH)
        st.markdown(figures, width=FIGURE_WIDTH)
        st.page_link(INSPECT, label="Inspect", icon=":material/search:", query_params={"student": student.key})
        st.button(
            "Use it", key=f"use-{student.key}", type="tertiary", icon=":material/terminal:", on_click=use_it.ask,
            args=(student,), help=f"Commands and code for {student.key}",
        )  # fmt: skip
        if deletable:
            st.button(
                "Delete", key=f"delete-{student.key}", type="tertiary", icon=":material/delete:", on_click=_ask,
                args=(student.key,), help=f"Delete {student.key}",
            )  # fmt: skip
    if st.session_state.get("deleting") == student.key:
        _confirm(student)


def _ask(key: str | None) -> None:
    st.session_state["deleting"] = key


def _confirm(student: Student) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="confirm-delete"):
        st.markdown(f"Delete `{student.folder}` and all its files? This cannot be undone.")
        st.button("Delete for good", type="primary", on_click=_delete, args=(student,))
        st.button("Cancel", on_click=_ask, args=(None,))


def _delete(student: Student) -> None:
    _ask(None)
    busy = any(job.active and job.student == student.folder.resolve() for job in manager.find_all(jobs_root()))
    if busy or not _deletable(student):
        st.toast(
            f"{plain(student.key)} is being retrained: stop that job first."
            if busy
            else "Bundled students cannot be deleted."
        )
        return
    try:
        shutil.rmtree(student.folder)
    except OSError as error:
        st.toast(f"{plain(student.key)} could not be deleted completely: {plain(str(error))}")
        return
    st.toast(f"Deleted {plain(student.key)}.")


@lru_cache(maxsize=4)
def shipped(folder: Path) -> frozenset[str]:
    """Keys of the students below `folder` that ship with the project, that is, are tracked by git.

    If git is not available, all students below the project's own folder count.
    """
    if not folder.resolve().is_relative_to(ROOT):
        return frozenset()
    try:
        git = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, check=True, text=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return frozenset(find()[0])
    return frozenset(Path(file).parent.as_posix() for file in git.stdout.split("\0"))


def fetch() -> None:
    """Draw the form that fetches a student from the Hugging Face Hub by id."""
    st.subheader("Fetch one from the Hub", anchor=False)
    with st.form("fetch", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        repo = st.text_input("Hub id", placeholder="owner/name", key="repo", width=320).strip()
        revision = st.text_input("Revision", placeholder="main", key="revision", width=140).strip()
        asked = st.form_submit_button("Fetch", icon=":material/download:")
    if asked and _named(repo):
        with _hub("Fetching…") as hub:
            folder = hub.pull(repo, root(), revision or None)
            st.toast(f"Fetched {plain(folder.relative_to(root()).as_posix())}.")
            st.rerun()


def share() -> None:
    """Draw the form that uploads a student to the Hugging Face Hub; local users only, as it uses their token."""
    students, _ = find()
    if not students or not at_the_machine():
        return
    st.subheader("Share one on the Hub", anchor=False)
    with st.form("share", border=False):
        with st.container(horizontal=True, vertical_alignment="bottom"):
            key = st.selectbox("Student", list(students), key="shared", width=320)
            repo = st.text_input("To", placeholder="owner/name", key="to", width=240).strip()
        message = st.text_input("Commit message", key="message", width=576).strip()
        public = st.checkbox("Make a new repository public: anyone can fetch it", key="public")
        asked = st.form_submit_button("Share", icon=":material/upload:")
    st.caption("Needs `hf auth login` on this machine. Shares weights, figures and model card, but no images or paths.")
    if asked and _named(repo):
        with _hub("Sharing…") as hub:
            address = hub.push(students[key].folder, repo, public=public, message=message or None)
            st.success(f"Shared at {address}", icon=":material/check:")


def _named(repo: str) -> bool:
    """Whether this looks like a Hub id; shows an error if not."""
    if repo.count("/") == 1 and all(repo.split("/")):
        return True
    st.error("A Hub id looks like owner/name.")
    return False


@contextmanager
def _hub(doing: str) -> Iterator[ModuleType]:
    """Provide the Hub module under a spinner, and show errors in one line."""
    from kdad.storage import hub

    try:
        with st.spinner(doing):
            yield hub
    except (UserError, OSError) as error:
        st.error(plain(str(error)), icon=":material/error:")
