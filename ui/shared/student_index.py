"""Which students are here, read from their JSON files alone: no torch, so that a first paint is quick."""

import json
import os
import shlex
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kdad.networks.teachers.registry import teacher_slug
from kdad.storage.layout import CONFIG, EVALUATION, LOCAL, WEIGHTS, upgraded
from kdad.storage.sealing import read_sealed
from ui.shared.page import ROOT


@dataclass(frozen=True)
class Student:
    """What config.json and evaluation.json say of one student folder."""

    key: str  # its folder below the root, `<data set>/<teacher>/<class>`: its name in links
    folder: Path
    dataset: str
    normal_class: str
    teacher: str
    label_overlap: str
    seed: int
    image_size: int  # in pixels, at which its teacher reads images
    layers: tuple[str, ...]  # the teacher's, where they can be chosen
    max_value: int  # in images of more than 8 bits, see `kdad.data.decoding`; 0 where it was trained on none
    calibration: str  # how its normals were held out, a name in `kdad.storage.layout.CALIBRATION_KINDS`
    evaluation: dict | None

    @property
    def teacher_name(self) -> str:
        """The teacher's name as it is in folder names."""
        return teacher_slug(self.teacher)


def roots() -> tuple[Path, ...]:
    """Where students are looked for: the folders of `$KDAD_STUDENTS`, or `trained_students/` beside app.py."""
    listed = os.environ.get("KDAD_STUDENTS") or str(ROOT / "trained_students")
    return tuple(Path(folder) for folder in listed.split(os.pathsep) if folder)


def root() -> Path:
    """Where students are put: the first of `roots`. Nothing is written to the others."""
    return roots()[0]


def jobs_root() -> Path:
    """Where the trainings that this app starts keep their requests, logs and status."""
    return root() / ".jobs"


def find() -> tuple[dict[str, Student], list[str]]:
    """The finished students below the roots by key, and the keys of folders that cannot be read."""
    students, damaged = {}, []
    for key, folder in below_roots(WEIGHTS).items():
        try:
            students[key] = _read(key, folder)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            damaged.append(key)
    return students, damaged


def below_roots(name: str) -> dict[str, Path]:
    """The folders with a file of this name, by their key, sorted; of one key, that of the first root."""
    found = {
        file.parent.relative_to(place).as_posix(): file.parent
        for place in reversed(roots())
        for file in place.rglob(name)
    }
    return dict(sorted(found.items()))


def _read(key: str, folder: Path) -> Student:
    """A student, from its files if any of them has changed."""
    return _remembered(key, folder, tuple(_stamp(folder / name) for name in (CONFIG, LOCAL, EVALUATION)))


def _stamp(file: Path) -> tuple[int, int] | None:
    """When a file changed last, and how large it is; None where there is none."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=4096)
def _remembered(key: str, folder: Path, stamps: tuple) -> Student:
    config = upgraded(read_sealed(folder / CONFIG))
    places = _places(folder / LOCAL)
    names = {name: str(config[name]) for name in ("normal_class", "label_overlap")}
    names |= {name: str(places.get(name, config[name])) for name in ("dataset", "teacher")}
    evaluation = folder / EVALUATION
    figures = read_sealed(evaluation) if evaluation.is_file() else None
    if figures is not None:
        figures["auroc"] = float(figures["auroc"])
    return Student(
        key, folder, **names, seed=int(config["seed"]), image_size=int(config["preprocessing"]["resize"]),
        layers=tuple(config["layers"]), max_value=int(config["max_value"]),
        calibration=str(config["calibration"]), evaluation=figures,
    )  # fmt: skip


def _places(file: Path) -> dict:
    """Where a student's own images and own teacher are on this machine; {} where nobody says."""
    return json.loads(file.read_text()) if file.is_file() else {}


def same_family(student: Student, students: dict[str, Student]) -> list[Student]:
    """All students of the same teacher, data set and seed, itself included."""
    family = (student.teacher, student.dataset, student.seed)
    return [other for other in students.values() if (other.teacher, other.dataset, other.seed) == family]


def train_command(dataset: str = "patterns-defects", normal_class: str = "bricks", teacher: str = "vgg-cifar10") -> str:
    """The shell command that makes a student where this app finds it."""
    return _command("train", dataset, teacher, normal_class)


def sweep_command(student: Student) -> str:
    """The shell command that makes the rest of a student's family."""
    return _command("sweep", student.dataset, student.teacher, "all")


def evaluate_command(student: Student) -> str:
    """The shell command that tests a student, and calibrates it if it never was."""
    return shlex.join(["python", "-m", "kdad", "evaluate", str(student.folder)])


def _command(name: str, dataset: str, teacher: str, normal_class: str) -> str:
    words = ["python", "-m", "kdad", name, "--dataset", dataset, "--teacher", teacher, "--normal-class", normal_class]
    if os.environ.get("KDAD_STUDENTS"):
        words += ["--out", str(root())]
    return shlex.join(words)
