"""Images of the app: samples, uploads and data sets, and their display."""

import base64
import hashlib
import io
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
import streamlit as st
from PIL import Image

from kdad.data import patterns
from kdad.errors import UserError

SAMPLE_SEED = 100  # data sets of `kdad.data.sources` use lower seeds only
DISPLAY_SIDE = 448
MAX_UPLOAD_MB = 20  # MB; the server's limit in .streamlit/config.toml is higher so the page can explain the refusal
TYPES = ["png", "jpg", "jpeg", "jfif", "heic", "heif", "hif", "avif", "webp", "bmp", "tif", "tiff", "gif", "pgm", "jp2"]


@dataclass(frozen=True, eq=False)
class Picture:
    """One image, uint8 (H, W, 3), with its name and, if known, its label and defect mask, bool (H, W)."""

    name: str
    pixels: np.ndarray
    truth: str | None = None
    mask: np.ndarray | None = None

    @cached_property
    def digest(self) -> str:
        """Hash of content and shape, independent of the name."""
        return hashlib.blake2b(str(self.pixels.shape).encode() + self.pixels.tobytes(), digest_size=16).hexdigest()

    @cached_property
    def shown(self) -> np.ndarray:
        """The pixels at their `display_size`."""
        return to_display(self.pixels)

    def changed(self, pixels: np.ndarray, words: str) -> "Picture":
        """Return a copy with changed pixels and the change in its name; the mask no longer applies and is dropped."""
        return replace(self, name=f"{self.name} {words}", pixels=pixels, mask=None)


@st.cache_data(max_entries=16, show_spinner=False)
def samples(texture: str, draw: int) -> list[Picture]:
    """Built-in samples: normals of one texture, each kind of defect on it, and two other textures."""
    seed = SAMPLE_SEED + draw
    pictures = [
        Picture(f"normal {i + 1}", channels_last(image), "normal")
        for i, image in enumerate(patterns.normals(texture, 3, seed))
    ]
    for kind in patterns.DEFECTS:
        images, masks = patterns.defects(texture, kind, 1, seed)
        pictures.append(Picture(kind, channels_last(images[0]), "defect", masks[0]))
    others = [name for name in patterns.CLASSES if name != texture]
    for name in np.random.default_rng(seed).choice(others, 2, replace=False):
        pictures.append(Picture(str(name), channels_last(patterns.normals(name, 1, seed)[0]), "other texture"))
    return pictures


def read_uploads(files: list, max_value: int) -> tuple[list[Picture], list[str]]:
    """Read uploaded files, with the student's `max_value`; returns pictures, and a message per failure and on masks."""
    from kdad.data.images import set_aside, split_masks

    _, masks = split_masks(PurePosixPath(file.name) for file in files)
    pictures, problems = [], set_aside(masks, "scored")
    for file in files:
        if PurePosixPath(file.name) in masks:
            continue
        if file.size > MAX_UPLOAD_MB * 2**20:
            problems.append(f"{file.name}: larger than {MAX_UPLOAD_MB} MB; reduce its size")
            continue
        try:
            picture = _decode(file.file_id, file, max_value)
        except UserError as error:
            problems.append(str(error))
        else:
            pictures.append(picture)
    return _with_distinct_names(pictures), problems


@st.cache_resource(max_entries=32, show_spinner=False)
def _decode(file_id: str, _file, max_value: int) -> Picture:
    from kdad.data.decoding import read_image

    return Picture(_file.name, read_image(_file, _file.name, max_value).permute(1, 2, 0).contiguous().numpy())


def _with_distinct_names(pictures: list[Picture]) -> list[Picture]:
    """Number pictures of the same name."""
    seen: dict[str, int] = {}
    distinct = []
    for picture in pictures:
        seen[picture.name] = seen.get(picture.name, 0) + 1
        count = seen[picture.name]
        distinct.append(picture if count == 1 else replace(picture, name=f"{picture.name} ({count})"))
    return distinct


@st.cache_resource(max_entries=4, show_spinner="Reading the data set…")
def gallery(dataset: str, normal_class: str):
    """Test split of a data set: kinds, kind index of each image (N,), and fetch(indices), which returns
    images (3, H, W) and their masks (H, W) or None.

    Raises:
        UserError: the data set is unknown, or its files cannot be read.
    """
    from kdad.data.loading import load_task
    from kdad.data.one_vs_rest import OneVsRestTask

    task = load_task(dataset, normal_class)
    if isinstance(task, OneVsRestTask):
        source = task.source
        return source.classes, source.labels("test").numpy(), lambda indices: (source.images("test", indices), None)
    if task.test is None:
        raise UserError(f"{dataset} lacks normal or anomalous test images: put them in test/good and test/<kind>")
    return task.kinds, task.test.labels.numpy(), lambda indices: _chosen(task.test, indices.tolist())


def _chosen(test, indices: list[int]) -> tuple[list, list | None]:
    masks = None if test.masks is None else [test.masks[i] for i in indices]
    return [test.images[i] for i in indices], masks


def gallery_page(dataset: str, normal_class: str, kind: str, page: int, per_page: int) -> list[Picture]:
    """One page, counted from 1, of test images of one kind."""
    import torch

    kinds, labels, fetch = gallery(dataset, normal_class)
    indices = np.flatnonzero(labels == kinds.index(kind))[(page - 1) * per_page : page * per_page]
    truth = "normal" if kind in (normal_class, "good") else "anomaly"
    images, masks = fetch(torch.from_numpy(indices))
    return [
        Picture(f"{kind} {index}", channels_last(image.numpy()), truth, None if masks is None else masks[i])
        for i, (index, image) in enumerate(zip(indices, images, strict=True))
    ]


def channels_last(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def display_size(pixels: np.ndarray, side: int = DISPLAY_SIDE) -> tuple[int, int]:
    """(height, width) on screen: small images are enlarged by an integer factor, large ones reduced to `side`."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    scale = max(1, side // longer) if longer <= side else side / longer
    return max(1, round(height * scale)), max(1, round(width * scale))


def to_display(pixels: np.ndarray, side: int = DISPLAY_SIDE) -> np.ndarray:
    """Resize `pixels` to their `display_size`, keeping the pixels of small images visible."""
    height, width = display_size(pixels, side)
    interpolation = Image.Resampling.NEAREST if height >= len(pixels) else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width, height), interpolation))


def card(pixels: np.ndarray, side: int) -> np.ndarray:
    """Centre `pixels` on a transparent square, to align images of any shape: uint8 (side, side, 4)."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)


def side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
    """Join pictures (H, W, C) of the same height in a row, with a small empty gap between them."""
    gap = np.zeros((len(pictures[0]), 4, pictures[0].shape[2]), np.uint8)
    row = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(row[1:], 1)


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3), or (H, W, 4) with opacity, as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)  # shown once, so speed matters more than size
    return file.getvalue()


def data_url(pixels: np.ndarray) -> str:
    """Encode uint8 (H, W, 3) as a data URL of a visually lossless JPEG.

    It is encoded and decoded in a fraction of the time of a PNG, and is much shorter.
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
