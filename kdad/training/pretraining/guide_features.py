"""A guide's view of every picture of a data set, computed once and kept in a file outside the project.

A guide that reads enlarged pictures is dearer than the network that copies it, and every epoch would pay for it again.
Of its maps, whitened principal components are kept, in half precision.
"""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from kdad.data.sources import Source
from kdad.devices import full_float32
from kdad.errors import UserError
from kdad.files import read_json_or_empty, sha256_of, write_bytes, write_json
from kdad.locks import exclusive_lock
from kdad.networks.teachers.loading import Teacher
from kdad.networks.teachers.registry import teacher_slug
from kdad.networks.teachers.timm_backbones import FINAL, TimmFeatures
from kdad.networks.vgg import tokens
from kdad.progress import FEATURES, Stage, advance, running

GRIDS = (8, 4)  # of the compact networks' last two maps, for pictures of 32 px
COMPONENTS = (64, 256)  # of each map, at most
FITTED = 2000  # pictures that the components are fitted on
CHUNK, BATCH = 5000, 50  # pictures between two records of progress, and at once
FORMAT = 1
ROWS, BASIS, RECORD = "features.npy", "components.safetensors", "record.json"


class GuideView(NamedTuple):
    """A guide's view of B pictures: maps (B, 64, C) and (B, 16, D), and its logits (B, classes)."""

    maps: list[Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Whitening:
    """Principal components of a map's patches, each scaled to variance 1: (x − mean) @ axes, with axes (D, C)."""

    mean: Tensor
    axes: Tensor

    @classmethod
    def fit(cls, patches: Tensor, components: int) -> "Whitening":
        """Fit to patches (N, D); keeps as many components as asked for, or all."""
        mean = patches.double().mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((patches.double() - mean).T))
        values, vectors = values.flip(0)[:components], vectors.flip(1)[:, :components]
        scale = values.clamp(min=1e-6 * float(values[0])).rsqrt()  # a direction without variance stays small
        return cls(mean.float(), (vectors * scale).float().contiguous())

    def __call__(self, features: Tensor) -> Tensor:
        """Map (…, D) to (…, C)."""
        return (features - self.mean) @ self.axes


class Guide:
    """A CNN of timm with a classifier, read on the grids of the compact networks.

    Raises:
        UserError: it is no such network, or has no stride of 16 before its final layer.
    """

    def __init__(self, teacher: Teacher):
        network = teacher.network
        if not isinstance(network, TimmFeatures) or network.transformer or network.layers[-1] != FINAL:
            raise UserError(f"teacher {teacher.name!r} cannot guide without labels: it is no CNN of timm")
        if not isinstance(network.model.get_classifier(), nn.Linear):
            raise UserError(f"teacher {teacher.name!r} cannot guide without labels: it has no classifier")
        self.teacher, self.network, self.model = teacher, network, network.model
        names = [entry["module"] for entry in self.model.feature_info]
        self.fine = names.index(network.layers[-2])
        self.classes = int(self.model.get_classifier().out_features)
        fine, coarse = (min(pair) for pair in zip(COMPONENTS, network.channels[-2:], strict=True))
        self.widths = fine, coarse  # components of each map

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that its features depend on."""
        return {
            "guide": self.teacher.sha256,
            "layers": list(self.teacher.layers[-2:]),
            "preprocessing": self.teacher.preprocessing.as_dict(),
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> GuideView:
        """See uint8 images (B, 3, H, W), in float32; what is seen is in main memory."""
        pixels = self.teacher.preprocessing(images.to(next(self.model.parameters()).device))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with full_float32(pixels.device):
            final, (fine,) = self.model.forward_intermediates(pixels, indices=[self.fine], output_fmt="NCHW")
            coarse = tokens(final)
            if self.network.projection is not None:
                coarse = coarse @ self.network.projection
            maps = [
                resized(patches, grid, side).cpu()
                for patches, grid, side in zip((tokens(fine), coarse), self.teacher.grids[-2:], GRIDS, strict=True)
            ]
            return GuideView(maps, self.model.forward_head(final).cpu())


def resized(patches: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Patches (B, h·w, D) of a grid to those (B, side², D) of a square one, by bilinear interpolation."""
    maps = patches.transpose(1, 2).unflatten(2, grid)
    return interpolate(maps, (side, side), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class GuideFeatures:
    """The features of N pictures: `rows` (N, W) float16 on disk, each two maps and logits; see `split_rows`."""

    rows: np.ndarray[Any, Any]
    widths: tuple[int, int]  # components of each map

    def __getitem__(self, places: Tensor) -> GuideView:
        """The guide's view of some pictures, by their rows (B,), in float16."""
        rows = torch.from_numpy(self.rows[places.cpu().numpy()])
        fine, coarse, logits = rows.split([*_sizes(self.widths), rows.shape[1] - sum(_sizes(self.widths))], 1)
        maps = [part.unflatten(1, (-1, width)) for part, width in zip((fine, coarse), self.widths, strict=True)]
        return GuideView(maps, logits)


def _sizes(widths: Sequence[int]) -> list[int]:
    return [side**2 * width for side, width in zip(GRIDS, widths, strict=True)]


def cache_folder() -> Path:
    """The folder of what can be computed again: `$KDAD_CACHE`, or `kdad` in the user's folder of caches."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdad"
    return Path(os.environ.get("KDAD_CACHE") or usual)


def guide_features(guide: Guide, source: Source, order: Tensor) -> GuideFeatures:
    """A guide's features of training pictures of `source`, row i of picture `order[i]`; computed or read.

    The components are fitted on the first pictures of `order`. What is interrupted goes on where it was.

    Raises:
        UserError: there is no room for the file, its folder cannot be written, or another run fills it.
    """
    settings = {
        **guide.settings,
        "images": source.fingerprint("train"),
        "order": hashlib.sha256(order.numpy().tobytes()).hexdigest(),
        "grids": list(GRIDS),
        "components": list(COMPONENTS),
        "format": FORMAT,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "guides" / f"{source.name}-{teacher_slug(guide.teacher.name)}-{digest[:12]}"
    if not _is_whole(folder):
        try:
            with exclusive_lock(folder / "lock", f"{folder} is being filled by another run: wait for it"):
                _compute(folder, settings, guide, source, order)
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}; set KDAD_CACHE to a folder that can be written") from None
    return GuideFeatures(np.load(folder / ROWS, mmap_mode="r"), guide.widths)


def _compute(folder: Path, settings: dict[str, Any], guide: Guide, source: Source, order: Tensor) -> None:
    """Fill the file of rows under a temporary name, chunk by chunk, and give it its name and hash at the end."""
    unfinished, shape = folder / f"{ROWS}.part", (len(order), sum(_sizes(guide.widths)) + guide.classes)
    done = _rows_done(folder, unfinished, shape)
    if not done:
        _announce(folder, shape)
        _fit(folder, guide, source, order)
    whitenings = _whitenings(folder)
    rows = open_memmap(unfinished, "r+" if done else "w+", np.float16, shape)
    with running(lambda: [Stage(FEATURES, len(order) - done, 1)]):
        for start in range(done, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            rows[start : start + len(chunk)] = _rows(guide, whitenings, source, chunk)
            rows.flush()
            write_json(folder / RECORD, {**settings, "rows": start + len(chunk)})
    write_json(folder / RECORD, {**settings, "rows": len(order), "sha256": sha256_of([unfinished])})
    unfinished.replace(folder / ROWS)


def _rows_done(folder: Path, unfinished: Path, shape: tuple[int, int]) -> int:
    """The number of rows that an interrupted run has left; 0 if its files are not those of one."""
    if not ((folder / BASIS).is_file() and unfinished.is_file() and unfinished.stat().st_size > 2 * math.prod(shape)):
        return 0
    return int(read_json_or_empty(folder / RECORD).get("rows", 0))


def _rows(guide: Guide, whitenings: Sequence[Whitening], source: Source, chunk: Tensor) -> np.ndarray[Any, Any]:
    """The rows of some pictures, (n, W) float16."""
    found = []
    for maps, logits in _seen(guide, source, chunk):
        whitened = [whitening(layer).flatten(1) for whitening, layer in zip(whitenings, maps, strict=True)]
        found.append(torch.cat([*whitened, logits], 1).half())
        advance(FEATURES, len(logits))
    return torch.cat(found).numpy()


def _seen(guide: Guide, source: Source, chunk: Tensor) -> Iterator[GuideView]:
    for batch in source.images("train", chunk).split(BATCH):
        yield guide(batch)


def _fit(folder: Path, guide: Guide, source: Source, order: Tensor) -> None:
    """Fit the components, and write them."""
    seen = [maps for maps, _ in _seen(guide, source, order[:FITTED])]
    tensors: dict[str, Tensor] = {}
    for layer, (parts, components) in enumerate(zip(zip(*seen, strict=True), guide.widths, strict=True)):
        whitening = Whitening.fit(torch.cat(parts).flatten(0, 1), components)
        tensors |= {f"{layer}.mean": whitening.mean, f"{layer}.axes": whitening.axes}
    write_bytes(folder / BASIS, save(tensors))


def _whitenings(folder: Path) -> list[Whitening]:
    tensors = load_file(folder / BASIS)
    return [Whitening(tensors[f"{layer}.mean"], tensors[f"{layer}.axes"]) for layer in range(len(GRIDS))]


def _announce(folder: Path, shape: tuple[int, int]) -> None:
    """Say what will be written, before it is; refuse what does not fit."""
    size, free = 2 * math.prod(shape), shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder}: no room for {size / 1e9:.1f} GB of guide features ({free / 1e9:.1f} GB free); "
            "set KDAD_CACHE to a folder on a larger disk"
        )
    tqdm.write(f"guide features of {shape[0]} pictures: {size / 1e9:.2f} GB in {folder}", file=sys.stderr)


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds all rows, unchanged since they were written."""
    file, sha256 = folder / ROWS, read_json_or_empty(folder / RECORD).get("sha256")
    return sha256 is not None and file.is_file() and sha256_of([file]) == sha256
