"""Index of the available students, read from their JSON files without torch, for a fast first render."""

import os
import re
import shlex
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kdad.data.datasets import folder_path, is_folder
from kdad.data.sizes import Size, as_size
from kdad.files import read_json_or_empty
from kdad.networks.teachers.registry import teacher_slug
from kdad.storage.layout import CONFIG, EVALUATION, LOCAL, SENSITIVITY, WEIGHTS, upgraded
from kdad.storage.operating_point import Costs
from kdad.storage.sealing import read_if_sound, read_sealed
from ui.shared.page import ROOT


@dataclass(frozen=True)
class Student:
    """Contents of config.json and evaluation.json of one student folder."""

    key: str  # its folder below the root, `<data set>/<teacher>/<class>`; identifies it in links
    folder: Path
    dataset: str
    normal_class: str
    teacher: str
    label_overlap: str
    seed: int
    image_size: Size  # (height, width) of its teacher's input, in pixels
    layers: tuple[str, ...]  # of the teacher, if they can be chosen
    max_value: int  # of images of more than 8 bits, see `kdad.data.decoding`; 0 if it was trained on none
    weights_sha256: str
    calibration: str  # origin of its held-out normals, a name in `kdad.storage.layout.CALIBRATION_KINDS`
    evaluation: dict | None

    @property
    def dataset_name(self) -> str:
        """The data set's name; of an own folder, that folder's."""
        return folder_path(self.dataset).name if self.own else self.dataset

    @property
    def own(self) -> bool:
        """Whether it was trained on images of one's own."""
        return is_folder(self.dataset)

    @property
    def variant(self) -> str:
        """Seed and version, which tell it from others of its data set, teacher and class; '' for the first of them."""
        return ", ".join(filter(None, (f"seed {self.seed}" if self.seed else "", self.version)))

    @property
    def version(self) -> str:
        """`v2` and so on of a student that was revised, see `kdad.detection.revision`; '' for one as it was trained."""
        found = re.search(r"-(v\d+)$", self.folder.name)
        return found[1] if found else ""

    @property
    def normals_in_words(self) -> str:
        """The kind of its normal images; '' for those of one's own, all of which are `good`."""
        return "" if self.own else self.normal_class

    @property
    def teacher_name(self) -> str:
        """The teacher's name as used in folder names."""
        return teacher_slug(self.teacher)


def roots() -> tuple[Path, ...]:
    """Folders searched for students: those of `$KDAD_STUDENTS`, or `trained_students/` next to app.py."""
    listed = os.environ.get("KDAD_STUDENTS") or str(ROOT / "trained_students")
    return tuple(Path(folder) for folder in listed.split(os.pathsep) if folder)


def root() -> Path:
    """Folder for new students: the first of `roots`. Nothing is written to the others."""
    return roots()[0]


def jobs_root() -> Path:
    """Folder for requests, logs and status of training jobs started by this app."""
    return root() / ".jobs"


def find() -> tuple[dict[str, Student], list[str]]:
    """Finished students below the roots by key, and the keys of unreadable folders."""
    students, damaged = {}, []
    for key, folder in below_roots(WEIGHTS).items():
        try:
            students[key] = _read(key, folder)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            damaged.append(key)
    return students, damaged


def below_roots(name: str) -> dict[str, Path]:
    """Folders with a file of this name, by key, sorted; earlier roots take precedence."""
    found = {
        file.parent.relative_to(place).as_posix(): file.parent
        for place in reversed(roots())
        for file in place.rglob(name)
    }
    return dict(sorted(found.items()))


def key_of(folder: Path) -> str | None:
    """The key of a student's folder; None if it is not below the root, as when that was moved since."""
    place, folder = root().resolve(), folder.resolve()
    return folder.relative_to(place).as_posix() if folder.is_relative_to(place) else None


def sensitivity_of(folder: Path) -> dict | None:
    """The drawn defects that a student finds, see `kdad.evaluation.sensitivity`; None if unknown or damaged."""
    return read_if_sound(folder / SENSITIVITY)


def _read(key: str, folder: Path) -> Student:
    """Read a student, from the cache unless one of its files has changed."""
    return _remembered(key, folder, tuple(_stamp(folder / name) for name in (CONFIG, LOCAL, EVALUATION)))


def _stamp(file: Path) -> tuple[int, int] | None:
    """Modification time and size of a file; None if it does not exist."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=4096)
def _remembered(key: str, folder: Path, stamps: tuple) -> Student:
    config = upgraded(read_sealed(folder / CONFIG))
    places = read_json_or_empty(folder / LOCAL)  # of custom images and a teacher on this machine
    names = {name: str(config[name]) for name in ("normal_class", "label_overlap")}
    names |= {name: str(places.get(name, config[name])) for name in ("dataset", "teacher")}
    evaluation = folder / EVALUATION
    figures = read_sealed(evaluation) if evaluation.is_file() else None
    if figures is not None:
        figures["auroc"] = float(figures["auroc"])
    return Student(
        key, folder, **names, seed=int(config["seed"]), image_size=as_size(config["preprocessing"]["resize"]),
        layers=tuple(config["layers"]), max_value=int(config["max_value"]),
        weights_sha256=str(config.get("weights_sha256", "")), calibration=str(config["calibration"]),
        evaluation=figures,
    )  # fmt: skip


def comparable(student: Student, students: dict[str, Student]) -> list[Student]:
    """The other students, those of the same data set and normal class first, then those of the same data set."""
    task = (student.dataset, student.normal_class)
    others = [other for other in students.values() if other.key != student.key]
    return sorted(others, key=lambda o: ((o.dataset, o.normal_class) != task, o.dataset != student.dataset))


def same_family(student: Student, students: dict[str, Student]) -> list[Student]:
    """All students of the same teacher, read alike, data set and seed, itself included."""

    def family(of: Student) -> tuple:
        return of.teacher, of.image_size, of.layers, of.dataset, of.seed

    return [other for other in students.values() if family(other) == family(student)]


def of_same_task(student: Student, students: dict[str, Student]) -> list[Student]:
    """The other evaluated students of the same data set and normal class, those of different teachers first."""
    task = (student.dataset, student.normal_class)
    others = [
        other
        for other in students.values()
        if (other.dataset, other.normal_class) == task and other.key != student.key and other.evaluation
    ]
    return sorted(others, key=lambda other: other.teacher == student.teacher)


def train_command(dataset: str = "patterns-defects", normal_class: str = "bricks", teacher: str = "vgg-cifar10") -> str:
    """Shell command that trains a student in the app's root."""
    return _command("train", dataset, teacher, normal_class)


def sweep_command(student: Student) -> str:
    """Shell command that trains the rest of a student's family."""
    return _command("sweep", student.dataset, student.teacher, "all")


def evaluate_command(student: Path) -> str:
    """Shell command that tests the student in a folder, and calibrates it if it is not calibrated."""
    return shlex.join(["python", "-m", "kdad", "evaluate", str(student)])


def cost_command(student: Student, costs: Costs) -> str:
    """Shell command that chooses a student's operating point by costs."""
    words = ["python", "-m", "kdad", "threshold", str(student.folder), "--miss", f"{costs.miss:g}"]
    return shlex.join([*words, "--false-alarm", f"{costs.false_alarm:g}", "--defects", f"{costs.defects:g}"])


def _command(name: str, dataset: str, teacher: str, normal_class: str) -> str:
    words = ["python", "-m", "kdad", name, "--dataset", dataset, "--teacher", teacher, "--normal-class", normal_class]
    if os.environ.get("KDAD_STUDENTS"):
        words += ["--out", str(root())]
    return shlex.join(words)
