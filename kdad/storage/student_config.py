"""What a student is and where it comes from: its config.json."""

from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from typing import Any, get_origin

from kdad.data.preprocessing import Preprocessing
from kdad.data.task import Task
from kdad.errors import UserError, one_of
from kdad.networks.provenance import OVERLAP_IN_WORDS, label_overlap
from kdad.networks.recipes import Recipe
from kdad.networks.teachers import Teacher
from kdad.storage.layout import DISTANT_ERROR, PEAK, SCORE_NAMES

FORMAT = 1  # of student folders; a folder that does not say is of the first
RECORDED_VERSIONS = ("torch", "torchvision", "transformers", "pytorch-lightning")


@dataclass(frozen=True)
class StudentConfig:
    """All that is needed to rebuild a student and to know where it comes from.

    `score` is the default one, a name in `kdad.storage.layout.SCORE_NAMES`; `tile` is the side in pixels of
    the tiles that it looks at one by one, 0 for whole images; `weights_sha256` is that of the
    finished student's model.safetensors, and empty before.
    """

    dataset: str
    normal_class: str
    teacher: str
    teacher_sha256: str
    label_overlap: str
    architecture: dict[str, Any]
    recipe: Recipe
    preprocessing: Preprocessing
    score: str
    tile: int
    seed: int
    hardware: str
    versions: dict[str, Any]
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            kind: Any = get_origin(field.type) or field.type
            if not isinstance(getattr(self, field.name), kind):
                raise UserError(f"{field.name} must be of type {kind.__name__}")
        one_of("label overlap", self.label_overlap, OVERLAP_IN_WORDS)
        one_of("score", self.score, SCORE_NAMES)
        if self.tile < 0:
            raise UserError(f"tile must be at least 0, not {self.tile}")

    @classmethod
    def describe(
        cls, task: Task, teacher: Teacher, architecture: dict[str, Any], recipe: Recipe, seed: int, hardware: str
    ) -> "StudentConfig":
        """The configuration of a student of `teacher` for `task`, trained on `hardware` with the installed versions."""
        return cls(
            dataset=task.dataset,
            normal_class=task.normal_class,
            teacher=teacher.name,
            teacher_sha256=teacher.sha256,
            label_overlap=label_overlap(teacher.trained_on, task.dataset),
            architecture=architecture,
            recipe=recipe,
            preprocessing=teacher.preprocessing,
            score=PEAK if task.local_anomalies else DISTANT_ERROR,
            tile=task.tile,
            seed=seed,
            hardware=hardware,
            versions={package: version(package) for package in RECORDED_VERSIONS},
        )

    def as_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StudentConfig":
        """The inverse of `as_dict`.

        Raises:
            UserError: it is of a newer format than this version of kdad knows.
            KeyError, TypeError, ValueError: fields are missing or senseless.
        """
        if values.get("format", FORMAT) > FORMAT:
            raise UserError(
                f"it is of format {values['format']}, and this version of kdad knows formats up to {FORMAT}; "
                "update kdad"
            )
        parsed = {
            "recipe": Recipe.from_dict(values["recipe"]),
            "preprocessing": Preprocessing.from_dict(values["preprocessing"]),
        }
        names = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in {**values, **parsed}.items() if name in names})

    def same_run(self, other: "StudentConfig") -> bool:
        """Whether both describe the same training, whatever the hardware, the installed versions and the result."""
        result: dict[str, Any] = {"hardware": "", "versions": {}, "weights_sha256": ""}
        return replace(self, **result) == replace(other, **result)
