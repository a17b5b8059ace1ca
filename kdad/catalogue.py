"""What can be asked for by name, data sets and teachers, and what is known of it without loading anything."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from kdad import patterns
from kdad.errors import one_of
from kdad.recipes import COMPACT_VGG, PAPER, PAPER_MVTEC, SEED_VIT, Recipe, vit_recipe


@dataclass(frozen=True)
class ParquetLayout:
    """Where a data set's parquet files are, on the Hub and under `$KDAD_DATA/<name>/`."""

    repo: str | None
    folder: str
    image_column: str
    classes: tuple[str, ...]
    test_part: str = "test"

    def file(self, part: str) -> Path:
        """The path of one part (`train` or `test`) below the repository or `$KDAD_DATA/<name>/`."""
        part = self.test_part if part == "test" else part
        return Path(self.folder) / f"{part}-00000-of-00001.parquet"


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
PARQUET = {
    "cifar10": ParquetLayout("uoft-cs/cifar10", "plain_text", "img", CIFAR10_CLASSES),
    "mnist": ParquetLayout("ylecun/mnist", "mnist", "image", tuple("0123456789")),
    "fashion-mnist": ParquetLayout("zalando-datasets/fashion_mnist", "fashion_mnist", "image", FASHION_CLASSES),
    "tiny-imagenet-32": ParquetLayout(None, "", "image", tuple(f"class{i:03d}" for i in range(202)), "valid"),
}
DATASETS = ("patterns", "patterns-defects", "cifar10", "mnist", "fashion-mnist")


FOLDER = "folder:"


def is_folder(dataset: str) -> bool:
    """Whether `dataset` names a folder of the user's own images."""
    return dataset.startswith(FOLDER)


def folder_path(dataset: str) -> Path:
    """The folder that `folder:PATH` names."""
    return Path(dataset.removeprefix(FOLDER)).expanduser()


def dataset_slug(dataset: str) -> str:
    """A data set's name as one path component: of a folder, its name."""
    return folder_path(dataset).resolve().name if is_folder(dataset) else dataset


def class_names(dataset: str) -> tuple[str, ...]:
    """The classes of `dataset`, without reading any file of it."""
    if is_folder(dataset):
        return ("good",)
    one_of("data set", dataset, DATASETS)
    return patterns.CLASSES if dataset.startswith("patterns") else PARQUET[dataset].classes


def at_hand(dataset: str, parts: tuple[str, ...] = ("test",)) -> bool:
    """Whether these parts of `dataset` are here, so that reading them needs no network."""
    if dataset not in PARQUET:
        return folder_path(dataset).is_dir() if is_folder(dataset) else dataset in DATASETS
    layout = PARQUET[dataset]
    return all(
        under_kdad_data(dataset, layout.file(part)) is not None
        or _in_hub_cache(layout.repo, layout.file(part).as_posix(), "dataset")
        for part in parts
    )


def under_kdad_data(dataset: str, relative: Path) -> Path | None:
    """The file `$KDAD_DATA/<data set>/<relative>`, if it is there."""
    root = os.environ.get("KDAD_DATA")
    return local if root and (local := Path(root) / dataset / relative).is_file() else None


def _in_hub_cache(repo: str | None, file: str, kind: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return repo is not None and isinstance(try_to_load_from_cache(repo, file, repo_type=kind), str)


WEIGHTS = Path(__file__).parent / "weights"
CARD_FILE, WEIGHTS_FILE = "teacher.json", "model.safetensors"
SHIPPED = ("vgg-cifar10", "vit-cifar10", "vgg-tinyimagenet", "vit-tinyimagenet")
FULL_SIZE = ("vgg16-imagenet", "vgg16-imagenet-mvtec", "vit-base-cifar10")
COMPACT_VGG_TYPE = "kdad-compact-vgg"  # the `model_type` of a compact VGG's config.json
VIT_BASE_CIFAR10 = "nateraw/vit-base-patch16-224-cifar10"
VGG16_FILE = "vgg16-397923af.pth"
UNKNOWN = ("unknown",)
VGG16_TRAINED_ON = ("imagenet",)
VGG16_RECIPES = {"vgg16-imagenet": PAPER, "vgg16-imagenet-mvtec": PAPER_MVTEC}
# ImageNet-21k first, then CIFAR-10 with the labels of all ten classes.
VIT_BASE_TRAINED_ON = ("imagenet", "cifar10")

# Pairs of data sets that name the same kinds of things differently.
RELATED = {"cifar10": {"imagenet", "tiny-imagenet-32"}, "fashion-mnist": {"imagenet", "tiny-imagenet-32"}}


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
    if name in VGG16_RECIPES:
        here = (_torch_checkpoints() / VGG16_FILE).is_file()
        return TeacherFacts(VGG16_TRAINED_ON, here, 528, VGG16_RECIPES[name])
    if name == "vit-base-cifar10":
        here = _in_hub_cache(VIT_BASE_CIFAR10, "config.json", "model")
        return TeacherFacts(VIT_BASE_TRAINED_ON, here, 343, SEED_VIT)
    folder = WEIGHTS / name if name in SHIPPED else Path(name)
    if folder.is_dir():
        return _folder_facts(folder)
    return TeacherFacts(UNKNOWN, here=_in_hub_cache(name, "config.json", "model") if name.count("/") == 1 else False)


def _folder_facts(folder: Path) -> TeacherFacts:
    card, config = (_json(folder / name) for name in (CARD_FILE, "config.json"))
    sizes = [file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern)]
    if config.get("model_type") == COMPACT_VGG_TYPE:
        recipe = COMPACT_VGG
    else:
        recipe = vit_recipe(config["hidden_size"]) if isinstance(config.get("hidden_size"), int) else None
    return TeacherFacts(tuple(card.get("trained_on", UNKNOWN)), True, sum(sizes) / 1e6, recipe)


def _json(file: Path) -> dict:
    """The object in a JSON file; {} for a missing or damaged one, which loading will name."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _torch_checkpoints() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints"


def available() -> list[str]:
    """Names of the teachers that can be asked for: those shipped here, then those fetched on first use."""
    return [name for name in SHIPPED if (WEIGHTS / name / WEIGHTS_FILE).is_file()] + list(FULL_SIZE)


def label_overlap(trained_on: tuple[str, ...], dataset: str) -> str:
    """Whether a teacher saw labels of `dataset`'s anomaly classes: same, related, none or unknown."""
    if dataset in trained_on:
        return "same"
    if RELATED.get(dataset, set()) & set(trained_on):
        return "related"
    if "unknown" in trained_on or is_folder(dataset):
        return "unknown"
    return "none"


def teacher_slug(name: str) -> str:
    """The teacher's name as one path component."""
    return Path(name).name if name.startswith(("/", ".")) else name.replace("/", "--")


def student_folder(out: Path, dataset: str, teacher: str, normal_class: str, seed: int) -> Path:
    """`<out>/<data set>/<teacher>/<normal class>[-seed<N>]`."""
    suffix = f"-seed{seed}" if seed else ""
    return Path(out) / dataset_slug(dataset) / teacher_slug(teacher) / f"{normal_class}{suffix}"
