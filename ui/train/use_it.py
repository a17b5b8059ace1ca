"""Dialog on how to use a student outside of the app: in the shell, over HTTP, in Python, without torch, in Docker."""

import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Lock

import streamlit as st

from kdad.errors import UserError
from ui.shared.links import USE
from ui.shared.student_index import Student
from ui.shared.words import plain
from ui.train import snippets

SHELL, HTTP, PYTHON, ONNX, DOCKER = "Shell", "HTTP", "Python", "ONNX", "Docker"
EXPORTING = Lock()  # one at a time: each takes a processor and the memory of the whole network
MAX_SECONDS = 600


def offer(students: dict[str, Student]) -> None:
    """Open the dialog for the student that the page's link names, if it does."""
    asked = st.query_params.get(USE)
    if asked in students:
        st.dialog(f"Use {plain(asked)}", width="large", on_dismiss=_forget)(_contents)(students[asked])


def ask(student: Student) -> None:
    """Have the page's link name a student, so that its next run opens the dialog."""
    st.query_params[USE] = student.key


def _forget() -> None:
    st.query_params.pop(USE, None)


def _contents(student: Student) -> None:
    shell, http, python, onnx, docker = st.tabs([SHELL, HTTP, PYTHON, ONNX, DOCKER])
    with shell:
        st.markdown("Scores, p-values and verdicts of one image; of a folder, with a table and heatmaps:")
        _code(snippets.score(student))
        st.markdown("A report to print or to send, as one HTML file:")
        _code(snippets.report(student))
        st.markdown("Whatever arrives in a folder, from now on:")
        _code(snippets.watch(student))
    with http:
        st.markdown("Start a server on this machine (`pip install 'kdad[serve]'`):")
        _code(snippets.serve(student))
        st.markdown("Then ask it from any program for a score as JSON, or for a heatmap as PNG:")
        _code(snippets.requests(student))
    with python:
        _code(snippets.python(student), "python")
        st.caption("`predict` also takes arrays, PIL images and lists of paths; see docs/api.md.")
    with onnx:
        _onnx(student)
    with docker:
        st.markdown("In a checkout of kdad; the server answers as the one in the tab HTTP does:")
        _code(snippets.docker(student))
    st.caption("`python` is that of the environment in which kdad is installed.")


def _onnx(student: Student) -> None:
    st.markdown(
        "One file with preprocessing, teacher, student and calibration, for programs without torch; "
        "making it may take a minute."
    )
    place = st.container()
    st.markdown("The same from the shell:")
    _code(snippets.export(student, snippets.onnx_name(student)))
    st.markdown("Then, with onnxruntime, numpy and Pillow alone:")
    _code(snippets.without_torch(student), "python")
    with place:
        _download(student)


def _code(code: str, language: str = "bash") -> None:
    st.code(code, language=language, wrap_lines=True)


def _download(student: Student) -> None:
    """Export on request, and offer the file."""
    if not st.button("Export", icon=":material/output:", key="export"):
        return
    try:
        with st.spinner("Exporting, and comparing the file with torch…", show_time=True):
            content = _exported(student)
    except UserError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return
    st.download_button(
        f"Save the file ({len(content) / 1e6:.1f} MB)", content, snippets.onnx_name(student),
        "application/octet-stream", icon=":material/download:", on_click="ignore", type="primary",
    )  # fmt: skip


def _exported(student: Student) -> bytes:
    """Contents of a student's ONNX file, made by the command in a process of its own, which keeps no memory here.

    Raises:
        UserError: with what the command said, if it failed.
    """
    with EXPORTING, tempfile.TemporaryDirectory(prefix="kdad-") as folder:
        file = Path(folder) / "student.onnx"
        command = [sys.executable, "-m", "kdad", "export", str(student.folder.resolve()), str(file)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=MAX_SECONDS)
        except subprocess.TimeoutExpired:
            raise UserError(f"the export took longer than {MAX_SECONDS // 60} minutes; use the command below") from None
        if ended.returncode or not file.is_file():
            raise UserError((ended.stderr.strip().splitlines() or ["the export failed"])[-1].removeprefix("kdad: "))
        return file.read_bytes()
