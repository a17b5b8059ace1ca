"""Detectors of the app: loaded once per process, with predictions cached, both in bounded caches."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from ui.shared.pictures import Picture, display_size
from ui.shared.student_index import Student
from ui.shared.teachers import TeacherOf, fingerprint, loaded_teacher, teacher_of

if TYPE_CHECKING:
    from kdad.detection.detector import Detector, Prediction
    from kdad.detection.explanation import Contribution, ScoreMap

# All sessions share the loaded models, and a device runs one computation at a time.
DEVICE_LOCK = Lock()
SMALL_SIDE = 64  # pixels


def load(student: Student) -> "Detector":
    """Load a student's detector, from the cache unless its folder or its teacher's has changed.

    Raises:
        UserError: student or teacher is missing or damaged, or they do not match.
    """
    return _load(str(student.folder), fingerprint(student.folder), teacher_of(student))


@st.cache_resource(max_entries=32, show_spinner="Loading the student…")
def _load(folder: str, stamp: str, asked: TeacherOf) -> "Detector":
    _import_torch()
    from kdad.detection.detector import Detector

    return Detector.load(folder, teacher=loaded_teacher(asked))


@cache
def _import_torch() -> None:
    """Import what detectors need with garbage collection paused, and exclude it from later collections.

    Streamlit runs a full collection after every script run; with torch in memory that takes long and blocks the server
    for all pages.
    """
    gc.disable()
    try:
        import kdad.detection.explanation  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


@dataclass(frozen=True)
class CachedDetector:
    """A student's detector with predictions cached by picture content, for all sessions."""

    student: Student
    detector: "Detector"
    stamp: str

    def predict(self, picture: Picture) -> "Prediction":
        """Predict one picture."""
        return _predict(self.stamp, picture.digest, self.detector, picture)

    def explain(self, picture: Picture) -> "list[Contribution]":
        """Decompose a picture's score, largest excess first, at its `display_size`; empty without calibration."""
        if self.detector.calibration is None:
            return []
        return _explain(self.stamp, picture.digest, self.detector, picture)

    def score_map(self, picture: Picture) -> "ScoreMap | None":
        """Map of a picture's whole score at its `display_size`; None without calibration, or if no part has a map."""
        if self.detector.calibration is None:
            return None
        return _score_map(self.stamp, picture.digest, self.detector, picture)

    def localise(self, picture: Picture, method: str) -> np.ndarray:
        """Map of one picture at its `display_size`, by a method of `kdad.detection.localisation`."""
        return _localise(self.stamp, picture.digest, method, self.detector, picture)


def cached_detector(student: Student) -> CachedDetector:
    """Cached detector of a student; raises as `load` does."""
    return CachedDetector(student, load(student), f"{student.key} {fingerprint(student.folder)}")


def verdict(detector: "Detector", prediction: "Prediction", fpr: float | None) -> bool | None:
    """Whether one image is anomalous at a false-positive rate; None without calibration or rate."""
    if detector.calibration is None or fpr is None:
        return None
    return bool(detector.is_anomaly(prediction, fpr)[0])


def share_below(detector: "Detector", prediction: "Prediction") -> float | None:
    """Share in 0…1 of held-out normals that are less unusual than one image; None without calibration."""
    return None if detector.calibration is None else float(detector.share_below(prediction)[0])


@contextmanager
def _at_work(detector: "Detector", pixels: np.ndarray) -> Iterator[None]:
    """Hold the device, and compute small images on one thread.

    Several threads would wait for each other at every layer, and longer if a browser or a training occupies a core.
    """
    from kdad.devices import one_thread

    small = max(*pixels.shape[:2], *detector.teacher.preprocessing.resize) <= SMALL_SIDE
    with DEVICE_LOCK, one_thread() if small else nullcontext():
        yield


@st.cache_data(max_entries=2048, show_spinner=False)
def _predict(stamp: str, digest: str, _detector: "Detector", _picture: Picture) -> "Prediction":
    pixels = _picture.pixels
    with _at_work(_detector, pixels):
        return _detector.predict([pixels])


@st.cache_data(max_entries=256, show_spinner=False)
def _explain(stamp: str, digest: str, _detector: "Detector", _picture: Picture) -> "list[Contribution]":
    from kdad.detection.explanation import explain

    prediction, pixels = _predict(stamp, digest, _detector, _picture), _picture.pixels
    with _at_work(_detector, pixels):
        return explain(_detector, [pixels], prediction, size=display_size(pixels))


@st.cache_data(max_entries=64, show_spinner=False)
def _score_map(stamp: str, digest: str, _detector: "Detector", _picture: Picture) -> "ScoreMap | None":
    from kdad.detection.explanation import score_map

    prediction, pixels = _predict(stamp, digest, _detector, _picture), _picture.pixels
    with _at_work(_detector, pixels):
        return score_map(_detector, [pixels], prediction, size=display_size(pixels))


@st.cache_data(max_entries=64, show_spinner="Asking for gradients…")
def _localise(stamp: str, digest: str, method: str, _detector: "Detector", _picture: Picture) -> np.ndarray:
    from kdad.detection.inputs import to_batch
    from kdad.detection.localisation import localise
    from kdad.detection.rendering import resized_map

    pixels = _picture.pixels
    with _at_work(_detector, pixels):
        saliency = localise(_detector, to_batch([pixels]), method)
    return resized_map(saliency[0], *display_size(pixels))


def rank(detectors: Sequence[CachedDetector], picture: Picture) -> list[dict]:
    """Rank students of one teacher by how unusual they find a picture, least first, with one teacher pass.

    One row per student: `key`, `normal_class`, `score`, `p_value` and `deviations`, the score in
    standard deviations of that student's own normals. Students without calibration are left out.
    """
    calibrated = [cached for cached in detectors if cached.detector.calibration is not None]
    if not calibrated:
        return []
    return _rank(tuple(cached.stamp for cached in calibrated), picture.digest, calibrated, picture.pixels)


@st.cache_data(max_entries=64, show_spinner=False)
def _rank(stamps: tuple[str, ...], digest: str, _cached: list[CachedDetector], _pixels: np.ndarray) -> list[dict]:
    from kdad.detection.inputs import to_batch

    image, first = to_batch([_pixels]), _cached[0].detector
    with _at_work(first, _pixels):
        features = first.teacher_features(image)
        predictions = [cached.detector.predict_with_features(image, features) for cached in _cached]
    rows = [
        {
            "key": cached.student.key,
            "normal_class": cached.student.normal_class,
            "score": float(prediction.score[0]),
            "p_value": float(prediction.p_value[0]),
            "deviations": float(cached.detector.deviations(prediction)[0]),
        }
        for cached, prediction in zip(_cached, predictions, strict=True)
    ]
    return sorted(rows, key=lambda row: row["deviations"])
