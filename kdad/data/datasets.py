"""Data sets by name, with the facts known without reading their files."""

import os
from dataclasses import dataclass
from pathlib import Path

from kdad.errors import UserError, one_of
from kdad.files import is_directory


@dataclass(frozen=True)
class ParquetLayout:
    """Location of a data set's parquet files, on the Hub and under `$KDAD_DATA/<name>/`."""

    repo: str | None
    folder: str
    image_column: str
    classes: tuple[str, ...]
    test_part: str = "test"

    def file(self, part: str) -> Path:
        """Path of one split (`train` or `test`) below the repository or `$KDAD_DATA/<name>/`."""
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
PHOTO_TEXTURES = "photo-textures"
BUILT_IN = ("patterns", "patterns-defects", PHOTO_TEXTURES)  # made on this machine, without any file to fetch
# Values of `--dataset`, besides a folder.
DATASETS = (*BUILT_IN, "cifar10", "mnist", "fashion-mnist")
FOLDER = "folder:"


def is_folder(dataset: str) -> bool:
    """Whether `dataset` names a folder of custom images."""
    return dataset.startswith(FOLDER)


def folder_path(dataset: str) -> Path:
    """Folder named by `folder:PATH`."""
    return Path(dataset.removeprefix(FOLDER)).expanduser()


def dataset_slug(dataset: str) -> str:
    """A data set's name as one path component; for a folder, the folder's name."""
    return folder_path(dataset).resolve().name if is_folder(dataset) else dataset


def public_name(dataset: str) -> str:
    """A data set's name without its path on this machine: `folder:NAME` for a folder."""
    return f"{FOLDER}{dataset_slug(dataset)}" if is_folder(dataset) else dataset


def check_dataset(dataset: str) -> None:
    """Raise a `UserError` if there is no data set of this name; a folder's files are not looked at."""
    if dataset == FOLDER:
        raise UserError(f"{FOLDER} needs a path, as in {FOLDER}photos")
    if is_folder(dataset):
        return
    if dataset not in DATASETS and is_directory(dataset):
        raise UserError(f"the data set {dataset} is a folder: images of your own are {FOLDER}{dataset}")
    one_of("data set", dataset, (*DATASETS, f"{FOLDER}PATH"))


def class_names(dataset: str) -> tuple[str, ...]:
    """Classes of `dataset`, without reading its files."""
    if is_folder(dataset):
        return ("good",)
    one_of("data set", dataset, DATASETS)
    from kdad.data import patterns, photo_textures

    if dataset == PHOTO_TEXTURES:
        return photo_textures.CLASSES
    return patterns.CLASSES if dataset.startswith("patterns") else PARQUET[dataset].classes


def at_hand(dataset: str, parts: tuple[str, ...] = ("test",)) -> bool:
    """Whether these splits of `dataset` can be read without network access."""
    if dataset not in PARQUET:
        return folder_path(dataset).is_dir() if is_folder(dataset) else dataset in DATASETS
    layout = PARQUET[dataset]
    return all(
        under_kdad_data(dataset, layout.file(part)) is not None
        or in_hub_cache(layout.repo, layout.file(part).as_posix(), "dataset")
        for part in parts
    )


def under_kdad_data(dataset: str, relative: Path) -> Path | None:
    """Path of `$KDAD_DATA/<data set>/<relative>`; None if there is no such file."""
    root = os.environ.get("KDAD_DATA")
    return local if root and (local := Path(root) / dataset / relative).is_file() else None


def in_hub_cache(repo: str | None, file: str, kind: str) -> bool:
    """Whether a file of a Hub repository of this kind, `model` or `dataset`, is in the local cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return repo is not None and isinstance(try_to_load_from_cache(repo, file, repo_type=kind), str)
    except HFValidationError:  # not a valid repository name
        return False
