"""Configuration and provenance of a student: its config.json."""

from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_origin

from kdad import __version__
from kdad.data.datasets import public_name
from kdad.data.decoding import MAX_VALUES
from kdad.data.preprocessing import Preprocessing
from kdad.data.sizes import Size
from kdad.data.task import Task
from kdad.errors import UserError, one_of
from kdad.networks.recipes import Recipe
from kdad.networks.teachers.loading import Teacher
from kdad.networks.teachers.provenance import OVERLAP_IN_WORDS, label_overlap
from kdad.networks.teachers.registry import TIMM, split_timm
from kdad.scores import LOCAL_DISTANCES, score_named
from kdad.storage.layout import (
    CALIBRATION_KINDS,
    CROSS_FITTED,
    FORMAT,
    HELD_OUT,
    LEFT_OUT,
    MAX_TILE_SIZE,
    UNKNOWN,
    upgraded,
)
from kdad.storage.sealing import SEAL, opened, sealed

SEALED_SINCE = 5
RECORDED_VERSIONS = ("torch", "torchvision", "transformers", "timm", "pytorch-lightning", "scikit-learn")
RESULTS = (
    "format",
    "hardware",
    "weights_sha256",
    "calibration_sha256",
    "ancestry",
    SEAL,
)  # fields of a configuration that are results rather than settings
MAX_DIFFERENCES = 3


@dataclass(frozen=True)
class StudentConfig:
    """Everything needed to rebuild a student and to trace its origin.

    Args:
        dataset, teacher: names; paths of custom folders are in local.json, which is not shared.
        images_sha256: `Task.fingerprint("train")`; empty for students of the first format, which do not record it.
        score: default score, a name in `kdad.scores.SCORES`.
        calibration: origin of its held-out normals, one of `kdad.storage.layout.CALIBRATION_KINDS`.
        tile_size: side of the tiles in pixels; 0 for whole images.
        layers: names of the teacher's critical layers, if they can be chosen.
        max_value: value of white in images of more than 8 bits; 0 if it was trained on none.
        weights_sha256, calibration_sha256: of the finished student's model.safetensors and calibration.safetensors;
            empty before.
        ancestry: what was changed after training, the oldest first; see `kdad.detection.revision`.
    """

    dataset: str
    normal_class: str
    images_sha256: str
    teacher: str
    teacher_sha256: str
    label_overlap: str
    architecture: dict[str, Any]
    recipe: Recipe
    preprocessing: Preprocessing
    score: str
    calibration: str
    tile_size: int
    seed: int
    hardware: str
    versions: dict[str, Any]
    layers: list[str]
    max_value: int
    ancestry: list[dict[str, Any]]
    weights_sha256: str = ""
    calibration_sha256: str = ""

    def __post_init__(self) -> None:
        for entry in fields(self):
            kind: Any = get_origin(entry.type) or entry.type
            value = getattr(self, entry.name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"{entry.name} must be of type {kind.__name__}")
        one_of("label overlap", self.label_overlap, OVERLAP_IN_WORDS)
        score_named(self.score)
        one_of("kind of calibration", self.calibration, CALIBRATION_KINDS)
        if not 0 <= self.tile_size <= MAX_TILE_SIZE:
            raise UserError(f"tile_size must be 0 to {MAX_TILE_SIZE}, not {self.tile_size}")
        if self.tile_size and LOCAL_DISTANCES in score_named(self.score).needs:
            raise UserError(f"the score {self.score!r} is of whole images, not of tiles")
        if not all(isinstance(change, dict) and Path(str(change.get("name", ""))).name for change in self.ancestry):
            raise UserError("ancestry must be a list of changes with the names of their versions")
        if self.max_value not in (0, *MAX_VALUES):
            raise UserError(f"max_value must be 0 or one of {', '.join(map(str, MAX_VALUES))}, not {self.max_value}")

    @property
    def learned_normals(self) -> frozenset[str]:
        """Digests of the images that were learned as normal after training, see `kdad.data.images.digest_of`."""
        return frozenset(digest for change in self.ancestry for digest in change.get("normals", []))

    @property
    def image_size(self) -> Size:
        """The (height, width) in pixels at which the networks read images, or their tiles."""
        return self.preprocessing.resize

    @classmethod
    def describe(
        cls, task: Task, teacher: Teacher, architecture: dict[str, Any], recipe: Recipe, seed: int, hardware: str
    ) -> "StudentConfig":
        """Configuration of a student of `teacher` for `task`, trained on `hardware` with the installed versions."""
        return cls(
            dataset=public_name(task.dataset),
            normal_class=task.normal_class,
            images_sha256=task.fingerprint("train"),
            teacher=public_teacher(teacher.name),
            teacher_sha256=teacher.sha256,
            label_overlap=label_overlap(teacher.trained_on, task.dataset),
            architecture=architecture,
            recipe=recipe,
            preprocessing=teacher.preprocessing,
            score=task.score,
            calibration=_calibration_of(task),
            tile_size=task.tile_size,
            seed=seed,
            hardware=hardware,
            layers=list(teacher.layers),
            max_value=task.max_value,
            ancestry=[],
            versions={package: version(package) for package in RECORDED_VERSIONS} | {"kdad": __version__},
        )

    def as_dict(self) -> dict[str, Any]:
        """Sealed content of config.json."""
        return sealed({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StudentConfig":
        """The inverse of `as_dict`.

        Raises:
            UserError: the format is newer than this version of kdad supports.
            KeyError, TypeError, ValueError: fields are missing or invalid, or were changed by hand.
        """
        found = values.get("format", 1)
        if not isinstance(found, int) or not 1 <= found <= FORMAT:
            raise UserError(
                f"format {found} is not among those that kdad {__version__} knows, 1 to {FORMAT}; update kdad"
            )
        if found >= SEALED_SINCE and SEAL not in values:
            raise ValueError(f"its {SEAL} is missing")
        values = opened(values)
        if found == FORMAT and (missing := {entry.name for entry in fields(cls)} - values.keys()):
            raise ValueError(f"missing: {', '.join(sorted(missing))}")
        values = upgraded(values)
        if unknown := values.keys() - {entry.name for entry in fields(cls)}:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        recipe, preprocessing = Recipe.from_dict(values["recipe"]), Preprocessing.from_dict(values["preprocessing"])
        return cls(**{**values, "recipe": recipe, "preprocessing": preprocessing})

    def differences(self, wanted: "StudentConfig", *, versions: bool = False) -> str:
        """Describe the differences from `wanted`; '' if both are the same run.

        Ignores hardware, results, and fields that one of the two does not record.

        Args:
            versions: whether to compare library versions too, as when resuming a run.
        """
        mine, theirs = (_flat(config.as_dict()) for config in (self, wanted))
        names = [
            name
            for name in mine.keys() | theirs.keys()
            if name not in RESULTS
            and (versions or not name.startswith("versions."))
            and mine.get(name) != theirs.get(name)
        ]
        unknown = {"images_sha256"} if "" in (self.images_sha256, wanted.images_sha256) else set()
        unknown |= {"calibration"} if UNKNOWN in (self.calibration, wanted.calibration) else set()
        names = [name for name in names if name not in unknown]
        shown = [_difference(name, mine.get(name), theirs.get(name)) for name in sorted(names)]
        more = f" and {len(shown) - MAX_DIFFERENCES} more" if len(shown) > MAX_DIFFERENCES else ""
        return ", ".join(shown[:MAX_DIFFERENCES]) + more


def _calibration_of(task: Task) -> str:
    """The way in which the normals that a student of `task` is calibrated on are held out."""
    if LOCAL_DISTANCES in score_named(task.score).needs:
        return LEFT_OUT
    return CROSS_FITTED if task.cross_fitted else HELD_OUT


def public_teacher(name: str) -> str:
    """A teacher's name without local paths of the teacher or its weights."""
    if name.startswith(TIMM):
        return f"{TIMM}{split_timm(name)[0]}"
    return Path(name).name if Path(name).is_absolute() else name


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested values to dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _difference(name: str, mine: Any, theirs: Any) -> str:
    name = name.removeprefix("recipe.").removeprefix("versions.")
    if name == "images_sha256":
        return "other images"
    return f"{name} {_short(mine)} instead of {_short(theirs)}"


def _short(value: Any) -> str:
    return f"{str(value)[:12]}…" if len(str(value)) > 40 else str(value)
