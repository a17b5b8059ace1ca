"""Data sets by name, and what is known of each without reading a file of it."""

import os
from dataclasses import dataclass
from pathlib import Path

from kdad.errors import one_of


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
# What `--dataset` may be, beside a folder.
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


def public_name(dataset: str) -> str:
    """A data set's name without its path on this machine: `folder:NAME` for a folder."""
    return f"{FOLDER}{dataset_slug(dataset)}" if is_folder(dataset) else dataset


def class_names(dataset: str) -> tuple[str, ...]:
    """The classes of `dataset`, without reading any file of it."""
    if is_folder(dataset):
        return ("good",)
    one_of("data set", dataset, DATASETS)
    from kdad.data import patterns

    return patterns.CLASSES if dataset.startswith("patterns") else PARQUET[dataset].classes


def at_hand(dataset: str, parts: tuple[str, ...] = ("test",)) -> bool:
    """Whether these parts of `dataset` are here, so that reading them needs no network."""
    if dataset not in PARQUET:
        return folder_path(dataset).is_dir() if is_folder(dataset) else dataset in DATASETS
    layout = PARQUET[dataset]
    return all(
        under_kdad_data(dataset, layout.file(part)) is not None
        or in_hub_cache(layout.repo, layout.file(part).as_posix(), "dataset")
        for part in parts
    )


def under_kdad_data(dataset: str, relative: Path) -> Path | None:
    """The file `$KDAD_DATA/<data set>/<relative>`, if it is there."""
    root = os.environ.get("KDAD_DATA")
    return local if root and (local := Path(root) / dataset / relative).is_file() else None


def in_hub_cache(repo: str | None, file: str, kind: str) -> bool:
    """Whether a file of a Hub repository of this kind, `model` or `dataset`, is in the local cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return repo is not None and isinstance(try_to_load_from_cache(repo, file, repo_type=kind), str)
    except HFValidationError:  # a name that no repository can have
        return False
