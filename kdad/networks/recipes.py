"""Training recipes of students, and the preset for each kind of student."""

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from kdad.errors import UserError, one_of

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "one-cycle", "step")
MAX_SEED = 2**32 - 1
BATCH_PIXELS = 32 * 256**2  # what a step takes grows with them, and what is learned from it hardly does

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    AnyRecipe = TypeVar("AnyRecipe", bound=DataclassInstance)


@dataclass(frozen=True)
class Recipe:
    """Training settings of a student; saved in its config.json.

    `schedule` is `constant`, `one-cycle` (up to `learning_rate` and back), or `step` (×0.2 half-way).
    With few images, epochs are added to reach `min_steps`. `mse_weight` is λ, the weight of the MSE
    relative to the cosine in loss and score.
    """

    epochs: int
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    mse_weight: float = 0.01
    flip: bool = False
    random_crop: bool = False
    min_steps: int = 200

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise UserError(f"epochs and batch size must be at least 1, not {self.epochs} and {self.batch_size}")
        check_learning_rate(self.learning_rate)
        if not 0 <= self.mse_weight < math.inf:
            raise UserError(f"the weight of the MSE must be at least 0, not {self.mse_weight:g}")
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)

    def with_enough_steps(self, images: int) -> "Recipe":
        """Return a copy with enough epochs for `min_steps`, for training on few images."""
        steps = -(-images // self.batch_size)
        return replace(self, epochs=max(self.epochs, -(-self.min_steps // steps)))

    def within(self, pixels: int) -> "Recipe":
        """Return a copy for images of so many pixels whose batches are no larger than `BATCH_PIXELS`."""
        return replace(self, batch_size=min(self.batch_size, max(1, BATCH_PIXELS // pixels)))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """The inverse of `as_dict`; `min_steps` may have its earlier name, `fewest_steps`."""
        return cls(**{{"fewest_steps": "min_steps"}.get(name, name): value for name, value in values.items()})


def check_learning_rate(value: float) -> None:
    """Refuse a learning rate that is not positive and finite.

    Raises:
        UserError: it is not.
    """
    if not 0 < value < math.inf:
        raise UserError(f"the learning rate must be above 0, not {value:g}")


PAPER = Recipe(epochs=200, learning_rate=1e-3)
PAPER_MVTEC = Recipe(epochs=600, learning_rate=1e-3, mse_weight=0.5)
SEED_VIT = Recipe(
    epochs=10, batch_size=128, optimizer="adamw", learning_rate=5e-5, schedule="step", flip=True, random_crop=True
)
COMPACT_VGG = Recipe(epochs=4, learning_rate=3e-3, schedule="one-cycle", flip=True)
COMPACT_VIT = Recipe(epochs=8, optimizer="adamw", learning_rate=1e-3, schedule="one-cycle", flip=True, min_steps=400)
# No MSE: the scale of features is not comparable between backbones.
COMPACT_CONV = Recipe(
    epochs=2, batch_size=32, learning_rate=3e-3, schedule="one-cycle", mse_weight=0.0, flip=True, min_steps=200
)
COMPACT_BELOW = 384  # ViTs narrower than this are compact


def vit_recipe(width: int) -> Recipe:
    """Preset for students of a ViT of this width."""
    return COMPACT_VIT if width < COMPACT_BELOW else SEED_VIT


def with_overrides(recipe: "AnyRecipe", **overrides: Any) -> "AnyRecipe":
    """Return `recipe` with the overrides that are not None."""
    return replace(recipe, **{name: value for name, value in overrides.items() if value is not None})
