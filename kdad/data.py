"""Data sets, and the honest split of each into train, calibration, validation and test.

A `Source` knows classes, labels and images of its `train` and `test` files. A `Task` is a source
seen by one student: which class is normal, and which images may be used for what.
"""

import io
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdad import patterns
from kdad.catalogue import PARQUET, ParquetLayout, under_kdad_data
from kdad.discrepancy import DISTANT_ERROR, PEAK
from kdad.errors import UserError, one_of
from kdad.images import read_image

SPLIT_SEED = 42
HELD_OUT = 0.1


class Labelled(NamedTuple):
    """Images to evaluate on, and what is known of them.

    `images` are uint8 (N, 3, H, W), or a sequence of (3, H, W) where sizes differ; `labels` (N,) are
    class indices and `anomalous` (N,) is bool. `masks` are bool (H, W), or None for a defect whose
    place nobody marked; they are None as a whole where there are none.
    """

    images: Tensor | Sequence[Tensor]
    labels: Tensor
    anomalous: Tensor
    masks: Sequence[np.ndarray | None] | None = None


def all_normal(images: Tensor) -> Labelled:
    """Images of which none is anomalous."""
    labels = torch.zeros(len(images), dtype=torch.long)
    return Labelled(images, labels, labels.bool())


class Source(Protocol):
    """A labelled data set with a `train` and a `test` part."""

    name: str
    classes: tuple[str, ...]

    def labels(self, part: str) -> Tensor:
        """Class indices (N,) of one part."""

    def images(self, part: str, indices: Tensor) -> Tensor:
        """The chosen images of one part, uint8 (n, 3, H, W)."""


class ParquetSource:
    """A Hub-style parquet data set; images stay encoded until they are asked for."""

    def __init__(self, name: str):
        self.name, self.layout = name, PARQUET[name]
        self.classes = self.layout.classes
        self._parts: dict = {}

    def labels(self, part: str) -> Tensor:
        return self._columns(part)[1]

    def images(self, part: str, indices: Tensor) -> Tensor:
        encoded, _ = self._columns(part)
        return torch.stack(
            [read_image(io.BytesIO(encoded[i].as_py()), f"{self.name} {part} image {i}") for i in indices.tolist()]
        )

    def encoded(self, part: str, index: int) -> bytes:
        """The file that holds one image."""
        return self._columns(part)[0][index].as_py()

    def _columns(self, part: str):
        """Encoded images and class indices of one part, read once."""
        if part not in self._parts:
            self._parts[part] = self._read(_parquet_file(self.name, self.layout, part))
        return self._parts[part]

    def _read(self, file: Path):
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(file, columns=[self.layout.image_column, "label"])
            encoded = table[self.layout.image_column].combine_chunks().field("bytes")
            return encoded, torch.from_numpy(table["label"].to_numpy().astype(np.int64))
        except (pyarrow.ArrowException, OSError, AttributeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{file} is not a readable parquet file of {self.name}: {reason}") from None


def _parquet_file(name: str, layout: ParquetLayout, part: str) -> Path:
    """The local parquet file of one part: under `$KDAD_DATA` if it is there, else from the Hub."""
    relative = layout.file(part)
    if (local := under_kdad_data(name, relative)) is not None:
        return local
    place = f"put it at $KDAD_DATA/{name}/{relative}"
    if layout.repo is None:
        raise UserError(f"data set {name!r} is not here and on no Hub: {place}")
    return _from_hub(name, layout.repo, relative.as_posix(), place)


def _from_hub(name: str, repo: str, relative: str, place: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Asked for the one file, the client would try for half a minute before it believes there is no network.
        file = Path(snapshot_download(repo, repo_type="dataset", allow_patterns=[relative])) / relative
        if not file.is_file():
            raise FileNotFoundError(relative)
        return file
    except Exception as error:  # the Hub client raises a dozen unrelated types when it cannot fetch
        raise UserError(
            f"data set {name!r} is not here and could not be fetched ({type(error).__name__}): connect to the "
            f"network so that {repo} downloads from the Hub, or {place}"
        ) from None


def image_format(dataset: str) -> str | None:
    """How the test images of `dataset` are compressed: PNG is lossless, JPEG is not; None for what is generated."""
    if dataset not in PARQUET:
        return None
    with Image.open(io.BytesIO(load_source(dataset).encoded("test", 0))) as image:
        return image.format


class PatternsSource:
    """The embedded data set: 1,200 training and 200 test images of each of ten textures."""

    name = "patterns"
    classes = patterns.CLASSES
    per_class = {"train": 1200, "test": 200}

    def labels(self, part: str) -> Tensor:
        return torch.arange(len(self.classes)).repeat_interleave(self.per_class[part])

    def images(self, part: str, indices: Tensor) -> Tensor:
        return _all_patterns(part)[indices]


@cache
def _all_patterns(part: str) -> Tensor:
    seed = {"train": 0, "test": 1}[part]
    count = PatternsSource.per_class[part]
    return torch.from_numpy(np.concatenate([patterns.normals(name, count, seed) for name in patterns.CLASSES]))


def holdout_split(n: int) -> tuple[Tensor, Tensor]:
    """Indices of the 90 % to train on and of the 10 % held out of every student and teacher."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    kept = n - round(n * HELD_OUT)
    return order[:kept], order[kept:]


class Task:
    """One-vs-rest on a labelled source: `normal_class` is normal, every other class anomalous.

    The parts never overlap except that the calibration images are the normals of the validation
    part: they set thresholds, and are never trained on.
    """

    score = DISTANT_ERROR
    tile = 0
    folds = ()
    same_images = True  # whether the tasks of all classes validate and test on the same images

    def __init__(self, source: Source, normal_class: str):
        self.source = source
        self.normal_class = one_of(f"class of {source.name}", normal_class, source.classes)
        self.normal_index = source.classes.index(normal_class)

    @property
    def dataset(self) -> str:
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the labels of test images mean."""
        return self.source.classes

    @cached_property
    def train(self) -> Tensor:
        """Normals to train on, uint8 (N, 3, H, W)."""
        return self.source.images("train", self._normals(self._split[0]))

    @cached_property
    def calibration(self) -> Tensor:
        """Held-out normals, uint8 (N, 3, H, W): thresholds, p-values and heatmap scales."""
        return self.source.images("train", self._normals(self._split[1]))

    @cached_property
    def validation(self) -> Labelled:
        """All held-out images of every class, for curves."""
        return self._labelled("train", self._split[1])

    @cached_property
    def test(self) -> Labelled:
        """The test part, to be read once at the end."""
        return self._labelled("test", torch.arange(len(self.source.labels("test"))))

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        return holdout_split(len(self.source.labels("train")))

    def _normals(self, indices: Tensor) -> Tensor:
        return indices[self.source.labels("train")[indices] == self.normal_index]

    def _labelled(self, part: str, indices: Tensor) -> Labelled:
        labels = self.source.labels(part)[indices]
        return Labelled(self.source.images(part, indices), labels, labels != self.normal_index)


class DefectsTask:
    """`patterns-defects`: normals of one texture; the test part holds defects with exact masks."""

    dataset = "patterns-defects"
    classes = patterns.CLASSES
    kinds = ("good", *patterns.DEFECTS)
    score = PEAK
    tile = 0
    folds = ()
    same_images = False
    counts = {"train": 1080, "calibration": 200, "test": 200, "defects": 50}

    def __init__(self, normal_class: str):
        self.normal_class = one_of("class of patterns-defects", normal_class, self.classes)
        self.normal_index = self.classes.index(normal_class)

    @cached_property
    def train(self) -> Tensor:
        return self._normals("train", seed=2)

    @cached_property
    def calibration(self) -> Tensor:
        return self._normals("calibration", seed=3)

    @cached_property
    def validation(self) -> Labelled:
        """The calibration normals, for the loss alone."""
        return all_normal(self.calibration)

    @cached_property
    def test(self) -> Labelled:
        """200 good images (label 0) and 50 of each defect (labels 1…), with masks (N, 32, 32)."""
        good = self._normals("test", seed=4)
        drawn = [patterns.defects(self.normal_class, kind, self.counts["defects"], 5) for kind in patterns.DEFECTS]
        bad, masks = (torch.from_numpy(np.concatenate(part)) for part in zip(*drawn, strict=True))
        kinds = torch.arange(1, len(patterns.DEFECTS) + 1).repeat_interleave(self.counts["defects"])
        labels = torch.cat([torch.zeros(len(good), dtype=torch.long), kinds])
        no_defect = torch.zeros(len(good), *masks.shape[1:], dtype=torch.bool)
        return Labelled(torch.cat([good, bad]), labels, labels > 0, torch.cat([no_defect, masks]).numpy())

    def _normals(self, part: str, seed: int) -> Tensor:
        return torch.from_numpy(patterns.normals(self.normal_class, self.counts[part], seed))


@cache
def load_source(name: str) -> Source:
    """The labelled data set `name`; a `UserError` says what to do when its files cannot be had."""
    if name == "patterns":
        return PatternsSource()
    return ParquetSource(one_of("data set", name, ["patterns", *PARQUET]))
