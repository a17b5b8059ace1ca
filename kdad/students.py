"""Which student copies which teacher, and by which recipe: one table, changed in one place."""

from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import nn

from kdad.errors import UserError, one_of
from kdad.teachers import Teacher
from kdad.vgg import ConvStack, compact_layers, compact_student_blocks, paper_student
from kdad.vit import ViTFeatures, ViTStudent


@dataclass(frozen=True)
class Recipe:
    """How a student is trained; saved in its config.json.

    `schedule` is `constant`, `one-cycle` (to `learning_rate` and back), or `step` (×0.2 half-way).
    `mse_weight` is λ, the weight of the MSE against the cosine in loss and score.
    """

    epochs: int
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    mse_weight: float = 0.01
    flip: bool = False
    random_crop: bool = False

    def __post_init__(self):
        if self.epochs < 1 or self.batch_size < 1:
            raise UserError(f"epochs and batch size must be at least 1, not {self.epochs} and {self.batch_size}")
        if self.learning_rate <= 0:
            raise UserError(f"the learning rate must be above 0, not {self.learning_rate:g}")
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Recipe":
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SCHEDULES = {
    "constant": lambda optimizer, recipe, steps: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    "one-cycle": lambda optimizer, recipe, steps: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps
    ),
    "step": lambda optimizer, recipe, steps: torch.optim.lr_scheduler.StepLR(optimizer, max(1, steps // 2), 0.2),
}


def _compact_vgg(inner: int) -> ConvStack:
    return ConvStack(*compact_layers(compact_student_blocks(inner)))


# What `architecture["kind"]` may be in a student's config.json; the other keys are the arguments.
ARCHITECTURES = {"compact-vgg": _compact_vgg, "paper-vgg": paper_student, "vit": ViTStudent}


def build_student(architecture: dict) -> nn.Module:
    """The untrained student that `architecture` (kind and arguments, from config.json) describes."""
    arguments = dict(architecture)
    build = ARCHITECTURES[one_of("student architecture", arguments.pop("kind", None), ARCHITECTURES)]
    try:
        return build(**arguments)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"student architecture {architecture} cannot be built: {error}") from None


PAPER = Recipe(epochs=200, learning_rate=1e-3)
SEED_VIT = Recipe(
    epochs=10, batch_size=128, optimizer="adamw", learning_rate=5e-5, schedule="step", flip=True, random_crop=True
)
COMPACT_VGG = Recipe(epochs=8, learning_rate=3e-3, schedule="one-cycle", flip=True)
COMPACT_VIT = Recipe(epochs=20, optimizer="adamw", learning_rate=1e-3, schedule="one-cycle", flip=True)


def preset(teacher: Teacher) -> tuple[dict, Recipe]:
    """The architecture and recipe of the student that goes with `teacher`."""
    if teacher.name == "vgg16-imagenet":
        return {"kind": "paper-vgg"}, PAPER
    if isinstance(teacher.network, ViTFeatures):
        compact = teacher.network.width < 384
        return _vit_architecture(teacher, compact), COMPACT_VIT if compact else SEED_VIT
    return {"kind": "compact-vgg", "inner": 16}, COMPACT_VGG


def _vit_architecture(teacher: Teacher, compact: bool) -> dict:
    width = teacher.network.width
    sizes = (
        {"width": 56, "hidden": 112, "heads": 4, "dropout": 0.0}
        if compact
        else {"width": width, "hidden": 512, "heads": 8, "dropout": 0.2}
    )
    return {
        "kind": "vit",
        "size": teacher.preprocessing.crop,
        "patch": teacher.network.patch,
        "prefix": teacher.prefix,
        "teacher_width": width,
        **sizes,
    }


def with_overrides(recipe: Recipe, **overrides) -> Recipe:
    """`recipe` with every override that is not None."""
    return replace(recipe, **{name: value for name, value in overrides.items() if value is not None})
