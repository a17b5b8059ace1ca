"""Knowledge-distillation anomaly detection; heavy libraries load when a name is first used."""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Detector": "kdad.detector",
    "Prediction": "kdad.detector",
    "Recipe": "kdad.recipes",
    "UserError": "kdad.errors",
    "WorkFailed": "kdad.errors",
    "evaluate": "kdad.evaluation",
    "load_task": "kdad.tasks",
    "load_teacher": "kdad.teachers",
    "read_image": "kdad.images",
    "train_student": "kdad.distillation",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'kdad' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
