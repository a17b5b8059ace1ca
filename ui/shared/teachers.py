"""Teachers of the app: loaded once per process for all pages, again if their files change."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import streamlit as st

from kdad.data.sizes import Size
from kdad.networks.teachers.registry import WEIGHTS_FOLDER
from ui.shared.student_index import Student

if TYPE_CHECKING:
    from kdad.networks.teachers.loading import Teacher


class TeacherOf(NamedTuple):
    """The identity of a student's teacher; `stamp` is the fingerprint of its folder, '' for a downloaded one."""

    name: str
    stamp: str
    image_size: Size
    layers: tuple[str, ...]


def teacher_of(student: Student) -> TeacherOf:
    """The identity of the teacher of a student. The cached files of a downloaded teacher do not change."""
    folders = [folder for folder in (WEIGHTS_FOLDER / student.teacher, Path(student.teacher)) if folder.is_dir()]
    stamp = fingerprint(folders[0]) if folders else ""
    return TeacherOf(student.teacher, stamp, student.image_size, student.layers)


@st.cache_resource(max_entries=3, show_spinner="Loading the teacher…")
def loaded_teacher(asked: TeacherOf) -> "Teacher":
    """Load a teacher, from the cache if it is there.

    Raises:
        UserError: it is missing or damaged.
    """
    from kdad.networks.teachers.loading import load_teacher

    return load_teacher(asked.name, image_size=asked.image_size, layers=asked.layers, allow_download=False)


def fingerprint(folder: Path) -> str:
    """Digest of the JSON and safetensors files of `folder`."""
    files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    digests = [_file_digest(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=256)
def _file_digest(file: str, mtime: int, size: int) -> str:
    with open(file, "rb") as content:
        return f"{file} {mtime} {hashlib.file_digest(content, 'sha256').hexdigest()}\n"
