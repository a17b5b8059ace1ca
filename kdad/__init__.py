"""Knowledge-distillation anomaly detection; heavy libraries load when a name is first used."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "kdad.detection.calibration",
    "Detector": "kdad.detection.detector",
    "Prediction": "kdad.detection.detector",
    "Recipe": "kdad.networks.recipes",
    "Task": "kdad.data.task",
    "Teacher": "kdad.networks.teachers.loading",
    "UserError": "kdad.errors",
    "WorkFailed": "kdad.errors",
    "evaluate": "kdad.evaluation.evaluate",
    "load_task": "kdad.data.loading",
    "load_teacher": "kdad.networks.teachers.loading",
    "localise": "kdad.detection.localisation",
    "read_image": "kdad.data.decoding",
    "train_student": "kdad.training.distillation",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdad' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
