"""Architecture and recipe of the student for each teacher."""

import math
from collections.abc import Callable
from typing import Any

from kdad.errors import UserError, one_line, one_of
from kdad.networks.conv_student import ConvStudent
from kdad.networks.features import FeatureNetwork
from kdad.networks.recipes import COMPACT_BELOW, COMPACT_CONV, COMPACT_VGG, Recipe, vit_recipe, with_overrides
from kdad.networks.teachers.loading import Teacher
from kdad.networks.teachers.registry import TEACHERS
from kdad.networks.teachers.timm_backbones import TimmFeatures
from kdad.networks.vgg import COMPACT_CHANNELS, ConvStack, compact_student, paper_student
from kdad.networks.vit import CRITICAL_LAYERS, AttendingFeatures, ViTStudent

# Valid values of `architecture["kind"]` in a student's config.json; the other keys are the arguments.
ARCHITECTURES: dict[str, Callable[..., FeatureNetwork]] = {
    "compact-vgg": compact_student,
    "paper-vgg": paper_student,
    "vit": ViTStudent,
    "conv": ConvStudent,
}


def build_student(architecture: dict[str, Any]) -> FeatureNetwork:
    """Build the untrained student described by `architecture` (kind and arguments, from config.json)."""
    arguments = dict(architecture)
    build = ARCHITECTURES[one_of("student architecture", arguments.pop("kind", None), ARCHITECTURES)]
    try:
        return build(**arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise UserError(f"student architecture {architecture} cannot be built: {one_line(error)}") from None


def preset(teacher: Teacher) -> tuple[dict[str, Any], Recipe]:
    """Default architecture and recipe of the student for `teacher`."""
    spec = TEACHERS.get(teacher.name)
    if spec is not None and spec.student is not None and spec.recipe is not None:
        return {"kind": spec.student}, spec.recipe
    if isinstance(teacher.network, AttendingFeatures):
        width = teacher.network.width
        return _vit_architecture(teacher, teacher.network.patch, width, CRITICAL_LAYERS), vit_recipe(width)
    if isinstance(teacher.network, TimmFeatures):
        return _of_timm(teacher, teacher.network)
    return _compact_vgg_architecture(teacher.network), COMPACT_VGG


def recipe_for(teacher: Teacher, images: int, **overrides: Any) -> Recipe:
    """Preset for `teacher`'s students with enough steps for this many images, and overrides that are not None."""
    return with_overrides(preset(teacher)[1].with_enough_steps(images), **overrides)


def _of_timm(teacher: Teacher, network: TimmFeatures) -> tuple[dict[str, Any], Recipe]:
    if network.transformer:
        width, layers = network.channels[-1], len(network.layers)
        return _vit_architecture(teacher, network.strides[-1], width, layers), vit_recipe(width)
    architecture = {"kind": "conv", "strides": list(network.strides), "channels": list(network.channels)}
    return architecture, COMPACT_CONV.within(math.prod(teacher.preprocessing.crop))


def _compact_vgg_architecture(network: FeatureNetwork) -> dict[str, Any]:
    channels = network.channels if isinstance(network, ConvStack) else COMPACT_CHANNELS
    # Older versions knew only one width.
    return {"kind": "compact-vgg", "inner": 16} | ({} if channels == COMPACT_CHANNELS else {"channels": list(channels)})


def _vit_architecture(teacher: Teacher, patch: int, width: int, layers: int) -> dict[str, Any]:
    height, across = teacher.preprocessing.crop
    if height != across:
        raise UserError(f"students of transformers read squares, not {height}×{across} px: give one --image-size")
    sizes = (
        {"width": 56, "hidden": 112, "heads": 4, "dropout": 0.0}
        if width < COMPACT_BELOW
        else {"width": width, "hidden": 512, "heads": 8, "dropout": 0.2}
    )
    # Older versions always used four layers and did not record the number.
    number = {} if layers == CRITICAL_LAYERS else {"layers": layers}
    return {
        "kind": "vit",
        "size": height,
        "patch": patch,
        "prefix": teacher.prefix,
        "teacher_width": width,
        **sizes,
        **number,
    }
