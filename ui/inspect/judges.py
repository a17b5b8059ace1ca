"""Judging pictures with students, everything heavy kept once per process and bounded."""

import gc
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from kdad.detection import conformal
from kdad.networks.registry import WEIGHTS_FOLDER
from ui.shared.pictures import Picture, display_size
from ui.shared.student_index import Student

if TYPE_CHECKING:
    from kdad.detection.detector import Detector, Prediction
    from kdad.detection.explanation import Part
    from kdad.networks.teachers import Teacher

# One student or teacher serves all sessions, and a device does one thing at a time.
DEVICE_LOCK = Lock()
SMALL_SIDE = 64  # pixels


def fingerprint(folder: Path) -> str:
    """Changes whenever a JSON or safetensors file of `folder` does."""
    files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    digests = [_file_digest(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=256)
def _file_digest(file: str, mtime: int, size: int) -> str:
    with open(file, "rb") as content:
        return f"{file} {mtime} {hashlib.file_digest(content, 'sha256').hexdigest()}\n"


def load(student: Student) -> "Detector":
    """The detector of a student, from the cache if neither its folder nor its teacher's changed.

    Raises:
        UserError: student or teacher are missing, damaged, or do not match.
    """
    stamps = fingerprint(student.folder), _teacher_fingerprint(student)
    return _load(str(student.folder), stamps[0], student.teacher, stamps[1], student.side, student.layers)


@st.cache_resource(max_entries=32, show_spinner="Loading the student…")
def _load(folder: str, stamp: str, teacher: str, teacher_stamp: str, side: int, layers: tuple[str, ...]) -> "Detector":
    _import_torch()
    from kdad.detection.detector import Detector

    return Detector.load(folder, teacher=_load_teacher(teacher, teacher_stamp, side, layers))


@cache
def _import_torch() -> None:
    """Import what judges need without garbage collections on the way, and leave it out of all later ones.

    Streamlit does a full one at the end of every run: with torch in memory that takes long, and no page hears from the
    server meanwhile.
    """
    gc.disable()
    try:
        import kdad.detection.explanation  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


@st.cache_resource(max_entries=3, show_spinner="Loading the teacher…")
def _load_teacher(name: str, stamp: str, side: int, layers: tuple[str, ...]) -> "Teacher":
    from kdad.networks.teachers import teacher_of_student

    return teacher_of_student(name, side, layers)


def _teacher_fingerprint(student: Student) -> str:
    """Empty for a teacher from the network, whose cached files do not change."""
    folders = [folder for folder in (WEIGHTS_FOLDER / student.teacher, Path(student.teacher)) if folder.is_dir()]
    return fingerprint(folders[0]) if folders else ""


@dataclass(frozen=True)
class Judge:
    """A student ready to judge."""

    student: Student
    detector: "Detector"
    stamp: str

    @property
    def normals(self) -> np.ndarray | None:
        """The scores of the held-out normals (N,), or None for a student without calibration."""
        return self.detector.calibration_scores

    def __call__(self, picture: Picture) -> "Prediction":
        """What the student says of one picture; the heatmap comes at the picture's `display_size`."""
        return _predict(self.stamp, picture.digest, self.detector, picture.pixels)

    def explain(self, picture: Picture) -> "list[Part]":
        """The parts of a picture's score, most telling first, their maps at its `display_size`; none uncalibrated."""
        return [] if self.normals is None else _explain(self.stamp, picture.digest, self.detector, picture.pixels, self)

    def share_below(self, prediction: "Prediction") -> float | None:
        """The share of held-out normals that are less unusual, 0…1, or None without calibration."""
        return None if self.normals is None else float(conformal.share_below(prediction.score, self.normals)[0])

    def is_anomaly(self, prediction: "Prediction", fpr: float | None) -> bool | None:
        """The verdict at a false-positive rate, or None where there can be none."""
        if self.normals is None or fpr is None:
            return None
        return bool(prediction.score[0] > self.threshold(fpr))

    def threshold(self, fpr: float) -> float | None:
        """The largest score that still counts as normal, or None without calibration."""
        return None if self.normals is None else conformal.threshold(self.normals, fpr)

    def localise(self, picture: Picture, method: str) -> np.ndarray:
        """The map of one picture at its `display_size` by a method of `kdad.detection.localisation`."""
        return _localise(self.stamp, picture.digest, method, self.detector, picture.pixels)

    @property
    def mask_threshold(self) -> float | None:
        """What 99 % of the patches of held-out normals stay below on the heatmap, or None without calibration."""
        calibration = self.detector.calibration
        return None if calibration is None else float(calibration.heatmap_quantiles[99])

    def heatmap(self, prediction: "Prediction", layer: int | None, height: int, width: int) -> np.ndarray:
        """The heatmap (height, width) of one critical layer, or of all."""
        return self.detector.heatmap(prediction, height, width, layer)[0]


@contextmanager
def _at_work(detector: "Detector", pixels: np.ndarray) -> Iterator[None]:
    """Nobody else uses the device, and what is small is computed by one thread.

    Several would wait for each other at every layer, and for a long time where a browser or a training has a processor.
    """
    from kdad.devices import one_thread

    small = max(*pixels.shape[:2], detector.teacher.preprocessing.resize) <= SMALL_SIDE
    with DEVICE_LOCK, one_thread() if small else nullcontext():
        yield


def judge_of(student: Student) -> Judge:
    """The judge that goes with a student; see `load` for what can go wrong."""
    return Judge(student, load(student), f"{student.key} {fingerprint(student.folder)}")


@st.cache_data(max_entries=256, show_spinner=False)
def _predict(stamp: str, digest: str, _detector: "Detector", _pixels: np.ndarray) -> "Prediction":
    with _at_work(_detector, _pixels):
        prediction = _detector.predict([_pixels])
    return replace(prediction, heatmap=_detector.heatmap(prediction, *display_size(_pixels)))


@st.cache_data(max_entries=256, show_spinner=False)
def _explain(stamp: str, digest: str, _detector: "Detector", _pixels: np.ndarray, _judge: Judge) -> "list[Part]":
    from kdad.detection.explanation import explain
    from kdad.detection.rendering import resized_map

    said = _predict(stamp, digest, _detector, _pixels)
    with _at_work(_detector, _pixels):
        parts = explain(_detector, [_pixels], said)
    size = display_size(_pixels)
    return [part if part.heatmap is None else replace(part, heatmap=resized_map(part.heatmap, *size)) for part in parts]


@st.cache_data(max_entries=64, show_spinner="Asking for gradients…")
def _localise(stamp: str, digest: str, method: str, _detector: "Detector", _pixels: np.ndarray) -> np.ndarray:
    from kdad.detection.inputs import to_batch
    from kdad.detection.localisation import localise
    from kdad.detection.rendering import resized_map

    with _at_work(_detector, _pixels):
        saliency = localise(_detector, to_batch([_pixels]), method)
    return resized_map(saliency[0], *display_size(_pixels))


def rank(judges: Sequence[Judge], picture: Picture) -> list[dict]:
    """What students of one teacher say of a picture, least unusual first; they share one teacher pass.

    One row per student: `key`, `normal_class`, `score`, `p_value`, and `deviations`, the score in
    standard deviations of that student's own normals. Students without calibration are left out.
    """
    judges = [judge for judge in judges if judge.normals is not None]
    return _rank(tuple(judge.stamp for judge in judges), picture.digest, judges, picture.pixels) if judges else []


@st.cache_data(max_entries=64, show_spinner=False)
def _rank(stamps: tuple[str, ...], digest: str, _judges: list[Judge], _pixels: np.ndarray) -> list[dict]:
    from kdad.detection.inputs import to_batch

    image = to_batch([_pixels])
    with _at_work(_judges[0].detector, _pixels):
        features = _judges[0].detector.teacher_features(image)
        predictions = [judge.detector.judge(features, image) for judge in _judges]
    rows = [
        {
            "key": judge.student.key,
            "normal_class": judge.student.normal_class,
            "score": float(prediction.score[0]),
            "p_value": float(prediction.p_value[0]),
            "deviations": float(conformal.standardised(prediction.score, judge.normals)[0]),
        }
        for judge, prediction in zip(_judges, predictions, strict=True)
    ]
    return sorted(rows, key=lambda row: row["deviations"])
