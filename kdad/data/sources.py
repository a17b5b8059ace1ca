"""Labelled data sets: their files, classes, labels and images."""

import io
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdad.data import patterns
from kdad.data.datasets import PARQUET, ParquetLayout, under_kdad_data
from kdad.data.decoding import read_image
from kdad.errors import UserError, one_of
from kdad.files import sha256_of


class Source(Protocol):
    """A labelled data set with a `train` and a `test` split."""

    name: str
    classes: tuple[str, ...]

    def labels(self, part: str) -> Tensor:
        """Class indices (N,) of one split."""

    def images(self, part: str, indices: Tensor) -> Tensor:
        """The given images of one split, uint8 (n, 3, H, W)."""

    def fingerprint(self, part: str) -> str:
        """SHA-256 of the files or settings behind one split."""


class ParquetSource:
    """A Hub-style parquet data set; images are decoded on access."""

    def __init__(self, name: str):
        self.name, self.layout = name, PARQUET[name]
        self.classes = self.layout.classes
        self._parts: dict[str, tuple[Any, Tensor]] = {}
        self._fingerprints: dict[str, str] = {}

    def labels(self, part: str) -> Tensor:
        return self._columns(part)[1]

    def images(self, part: str, indices: Tensor) -> Tensor:
        encoded, _ = self._columns(part)
        images = [
            read_image(io.BytesIO(encoded[i].as_py() or b""), f"{self.name} {part} image {i}") for i in indices.tolist()
        ]
        if len({image.shape for image in images}) > 1:
            raise UserError(f"{self.name} {part} contains images of several sizes, unlike the original; fetch it again")
        return torch.stack(images)

    def fingerprint(self, part: str) -> str:
        if part not in self._fingerprints:
            self._fingerprints[part] = sha256_of([_parquet_file(self.name, self.layout, part)])
        return self._fingerprints[part]

    def encoded(self, part: str, index: int) -> bytes:
        """Encoded file of one image."""
        return self._columns(part)[0][index].as_py()

    def _columns(self, part: str) -> tuple[Any, Tensor]:
        """Encoded images and class indices of one split, read once."""
        if part not in self._parts:
            self._parts[part] = self._read(_parquet_file(self.name, self.layout, part))
        return self._parts[part]

    def _read(self, file: Path) -> tuple[Any, Tensor]:
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(file, columns=[self.layout.image_column, "label"])
            encoded = table[self.layout.image_column].combine_chunks().field("bytes")
            labels = table["label"].to_numpy()
            if not (np.issubdtype(labels.dtype, np.integer) and np.isin(labels, range(len(self.classes))).all()):
                raise ValueError(f"its labels are not 0 to {len(self.classes) - 1}")
            return encoded, torch.from_numpy(labels.astype(np.int64))
        except (pyarrow.ArrowException, OSError, AttributeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{file} is not a readable parquet file of {self.name}: {reason}") from None


def _parquet_file(name: str, layout: ParquetLayout, part: str) -> Path:
    """Parquet file of one split: under `$KDAD_DATA` if it exists, else from the Hub."""
    relative = layout.file(part)
    if (local := under_kdad_data(name, relative)) is not None:
        return local
    place = f"put it at $KDAD_DATA/{name}/{relative}"
    if layout.repo is None:
        raise UserError(f"data set {name!r} is not on this machine and not on the Hub: {place}")
    return _from_hub(name, layout.repo, relative.as_posix(), place)


def _from_hub(name: str, repo: str, relative: str, place: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # When requesting a single file, the client retries for half a minute without a network.
        file = Path(snapshot_download(repo, repo_type="dataset", allow_patterns=[relative])) / relative
        if not file.is_file():
            raise FileNotFoundError(relative)
        return file
    except Exception as error:  # the Hub client raises a dozen unrelated types when it cannot fetch
        raise UserError(
            f"data set {name!r} is not on this machine and could not be fetched ({type(error).__name__}): connect to "
            f"the network to download {repo} from the Hub, or {place}"
        ) from None


def image_format(dataset: str) -> str | None:
    """Format of the test images of `dataset`: PNG is lossless, JPEG is not; None for generated images."""
    if dataset not in PARQUET:
        return None
    source = load_source(dataset)
    assert isinstance(source, ParquetSource)
    with Image.open(io.BytesIO(source.encoded("test", 0))) as image:
        return image.format


class PatternsSource:
    """The built-in data set: 1,200 training and 200 test images of each of ten textures."""

    name = "patterns"
    classes = patterns.CLASSES
    per_class = {"train": 1200, "test": 200}

    def labels(self, part: str) -> Tensor:
        return torch.arange(len(self.classes)).repeat_interleave(self.per_class[part])

    def images(self, part: str, indices: Tensor) -> Tensor:
        return _all_patterns(part)[indices]

    def fingerprint(self, part: str) -> str:
        return patterns.fingerprint(f"{self.name} {part} {self.per_class[part]}")


@cache
def _all_patterns(part: str) -> Tensor:
    seed = {"train": 0, "test": 1}[part]
    count = PatternsSource.per_class[part]
    return torch.from_numpy(np.concatenate([patterns.normals(name, count, seed) for name in patterns.CLASSES]))


@cache
def load_source(name: str) -> Source:
    """Load the labelled data set `name`; reading it raises a `UserError` if its files are not available."""
    if name == "patterns":
        return PatternsSource()
    return ParquetSource(one_of("data set", name, ["patterns", *PARQUET]))
