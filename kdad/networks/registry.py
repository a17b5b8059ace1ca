"""The teachers known by name, and what is known of any teacher before it is loaded. No torch here."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdad.data.datasets import in_hub_cache
from kdad.networks.provenance import UNKNOWN
from kdad.networks.recipes import COMPACT_VGG, PAPER, PAPER_MVTEC, SEED_VIT, Recipe, vit_recipe

WEIGHTS_FOLDER = Path(__file__).parent.parent / "weights"
CARD_FILE, WEIGHTS_FILE = "teacher.json", "model.safetensors"
COMPACT_VGG_TYPE = "kdad-compact-vgg"  # the `model_type` of a compact VGG's config.json
SHIPPED, TORCHVISION, HUB = "shipped", "torchvision", "hub"


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher known by name.

    Args:
        source: where its files come from: `SHIPPED` with the package, `TORCHVISION` or the `HUB`.
        place: the name of its folder, weight file or repository there.
        trained_on: data sets whose labels it was trained with; None where its own card says.
        pixels: the fields of its `Preprocessing`; None where its own files say.
        margin: how much larger than their crop images are made, if not what its own files say.
        student: the kind of student that copies it; None where that follows from its network.
        recipe: the preset of its students; None where that follows from its network.
        megabytes: the size of its weight file; None where the file is here to be asked.
    """

    source: str
    place: str
    trained_on: tuple[str, ...] | None = None
    pixels: dict[str, Any] | None = None
    margin: float | None = None
    student: str | None = None
    recipe: Recipe | None = None
    megabytes: float | None = None


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VGG16_FILE = "vgg16-397923af.pth"
TEACHERS = {
    "vgg-cifar10": TeacherSpec(SHIPPED, "vgg-cifar10"),
    "vit-cifar10": TeacherSpec(SHIPPED, "vit-cifar10"),
    "vgg-tinyimagenet": TeacherSpec(SHIPPED, "vgg-tinyimagenet"),
    "vit-tinyimagenet": TeacherSpec(SHIPPED, "vit-tinyimagenet"),
    "vgg16-imagenet": TeacherSpec(
        TORCHVISION,
        VGG16_FILE,
        ("imagenet",),
        {"resize": 256, "crop": 224, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        student="paper-vgg",
        recipe=PAPER,
        megabytes=528,
    ),
    # As the paper has it for MVTec AD: pixel values in 0…1 as they are.
    "vgg16-imagenet-mvtec": TeacherSpec(
        TORCHVISION,
        VGG16_FILE,
        ("imagenet",),
        {"resize": 128, "crop": 128, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        student="paper-vgg",
        recipe=PAPER_MVTEC,
        megabytes=528,
    ),
    # ImageNet-21k first, then CIFAR-10 with the labels of all ten classes. Resized to 256, so that training can crop
    # 224 anywhere.
    "vit-base-cifar10": TeacherSpec(
        HUB,
        "nateraw/vit-base-patch16-224-cifar10",
        ("imagenet", "cifar10"),
        margin=256 / 224,
        recipe=SEED_VIT,
        megabytes=343,
    ),
}


def is_here(spec: TeacherSpec) -> bool:
    """Whether loading a teacher needs no network."""
    if spec.source == SHIPPED:
        return (WEIGHTS_FOLDER / spec.place / WEIGHTS_FILE).is_file()
    if spec.source == TORCHVISION:
        return (_torch_checkpoints() / spec.place).is_file()
    return in_hub_cache(spec.place, "config.json", "model")


def shipped() -> list[str]:
    """Names of the teachers that come with the package."""
    return [name for name, spec in TEACHERS.items() if spec.source == SHIPPED]


def available() -> list[str]:
    """Names of the teachers that can be asked for: those shipped here, then those fetched on first use."""
    return [name for name, spec in TEACHERS.items() if spec.source != SHIPPED or is_here(spec)]


@dataclass(frozen=True)
class TeacherFacts:
    """What is known of a teacher before it is loaded; None where nobody can say.

    `here` is whether loading it needs no network, `megabytes` the size of its weight file, and
    `recipe` the preset of its students.
    """

    trained_on: tuple[str, ...]
    here: bool
    megabytes: float | None = None
    recipe: Recipe | None = None


def teacher_facts(name: str) -> TeacherFacts:
    """The facts of a teacher given by name, local folder or Hub id, as far as they can be read from JSON."""
    spec = TEACHERS.get(name)
    if spec is not None and spec.source != SHIPPED:
        return TeacherFacts(spec.trained_on or UNKNOWN, is_here(spec), spec.megabytes, spec.recipe)
    folder = WEIGHTS_FOLDER / spec.place if spec else Path(name)
    if folder.is_dir():
        return _folder_facts(folder)
    return TeacherFacts(UNKNOWN, here=name.count("/") == 1 and in_hub_cache(name, "config.json", "model"))


def _folder_facts(folder: Path) -> TeacherFacts:
    card, config = (_json(folder / name) for name in (CARD_FILE, "config.json"))
    sizes = [file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern)]
    recipe: Recipe | None
    if config.get("model_type") == COMPACT_VGG_TYPE:
        recipe = COMPACT_VGG
    else:
        recipe = vit_recipe(config["hidden_size"]) if isinstance(config.get("hidden_size"), int) else None
    return TeacherFacts(tuple(card.get("trained_on", UNKNOWN)), True, sum(sizes) / 1e6, recipe)


def _json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} for a missing or damaged one, which loading will name."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _torch_checkpoints() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints"


def teacher_slug(name: str) -> str:
    """The teacher's name as one path component."""
    return Path(name).name if name.startswith(("/", ".")) else name.replace("/", "--")
