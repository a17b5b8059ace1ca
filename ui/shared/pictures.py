"""The images a page looks at: where they come from, and how they become pictures on a screen."""

import base64
import hashlib
import io
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import streamlit as st
from PIL import Image

from kdad.data import patterns
from kdad.errors import UserError

SAMPLE_SEED = 100  # no data set of `kdad.data.sources` is drawn from this seed or a higher one
DISPLAY_SIDE = 448
MAX_UPLOAD_MB = 20  # MB; the server's own limit in .streamlit/config.toml is higher, so that the page can say why
TYPES = ["png", "jpg", "jpeg", "jfif", "heic", "heif", "hif", "avif", "webp", "bmp", "tif", "tiff", "pgm"]


@dataclass(frozen=True, eq=False)
class Picture:
    """One image, uint8 (H, W, 3), what to call it, what it is known to be, and where: bool (H, W)."""

    name: str
    pixels: np.ndarray
    truth: str | None = None
    mask: np.ndarray | None = None

    @cached_property
    def digest(self) -> str:
        """Tells images of different content or shape apart, whatever their names."""
        return hashlib.blake2b(str(self.pixels.shape).encode() + self.pixels.tobytes(), digest_size=16).hexdigest()

    @cached_property
    def shown(self) -> np.ndarray:
        """The pixels at their `display_size`."""
        return to_display(self.pixels)

    def changed(self, pixels: np.ndarray, words: str) -> "Picture":
        """The same after something was done to it, which its name says; where it is odd is no longer known."""
        return replace(self, name=f"{self.name} {words}", pixels=pixels, mask=None)


@st.cache_data(max_entries=16, show_spinner=False)
def samples(texture: str, draw: int) -> list[Picture]:
    """Built-in samples: normals of one texture, each kind of defect on it, and two other textures."""
    seed = SAMPLE_SEED + draw
    pictures = [
        Picture(f"normal {i + 1}", _channels_last(image), "normal")
        for i, image in enumerate(patterns.normals(texture, 3, seed))
    ]
    for kind in patterns.DEFECTS:
        images, masks = patterns.defects(texture, kind, 1, seed)
        pictures.append(Picture(kind, _channels_last(images[0]), "defect", masks[0]))
    others = [name for name in patterns.CLASSES if name != texture]
    for name in np.random.default_rng(seed).choice(others, 2, replace=False):
        pictures.append(Picture(str(name), _channels_last(patterns.normals(name, 1, seed)[0]), "other texture"))
    return pictures


def read_uploads(files: list, max_value: int) -> tuple[list[Picture], list[str]]:
    """The readable ones of uploaded files, `max_value` as in the student's images, and one sentence for each other."""
    pictures, problems = [], []
    for file in files:
        if file.size > MAX_UPLOAD_MB * 2**20:
            problems.append(f"{file.name}: above {MAX_UPLOAD_MB} MB; make it smaller")
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
    """Files of one name from several folders, numbered."""
    seen: dict[str, int] = {}
    distinct = []
    for picture in pictures:
        seen[picture.name] = seen.get(picture.name, 0) + 1
        count = seen[picture.name]
        distinct.append(picture if count == 1 else replace(picture, name=f"{picture.name} ({count})"))
    return distinct


@st.cache_resource(max_entries=4, show_spinner="Reading the data set…")
def gallery(dataset: str, normal_class: str):
    """The test part of a data set: kinds, index of the kind of each image (N,), and fetch(indices), which gives
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
        raise UserError(f"{dataset} has no test images of both kinds: put them into test/good and test/<kind>")
    return task.kinds, task.test.labels.numpy(), lambda indices: _chosen(task.test, indices.tolist())


def _chosen(test, indices: list[int]) -> tuple[list, list | None]:
    masks = None if test.masks is None else [test.masks[i] for i in indices]
    return [test.images[i] for i in indices], masks


def gallery_page(dataset: str, normal_class: str, kind: str, page: int, per_page: int) -> list[Picture]:
    """One page, counted from 1, of the test images of one kind."""
    import torch

    kinds, labels, fetch = gallery(dataset, normal_class)
    indices = np.flatnonzero(labels == kinds.index(kind))[(page - 1) * per_page : page * per_page]
    truth = "normal" if kind in (normal_class, "good") else "anomaly"
    images, masks = fetch(torch.from_numpy(indices))
    return [
        Picture(f"{kind} {index}", _channels_last(image.numpy()), truth, None if masks is None else masks[i])
        for i, (index, image) in enumerate(zip(indices, images, strict=True))
    ]


def _channels_last(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def display_size(pixels: np.ndarray, side: int = DISPLAY_SIDE) -> tuple[int, int]:
    """(height, width) on the screen: small images grow by a whole factor, large ones shrink to `side`."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    scale = max(1, side // longer) if longer <= side else side / longer
    return max(1, round(height * scale)), max(1, round(width * scale))


def to_display(pixels: np.ndarray, side: int = DISPLAY_SIDE) -> np.ndarray:
    """`pixels` at their `display_size`, with the pixels of small images left visible."""
    height, width = display_size(pixels, side)
    interpolation = Image.Resampling.NEAREST if height >= len(pixels) else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width, height), interpolation))


def card(pixels: np.ndarray, side: int) -> np.ndarray:
    """`pixels` centred on a transparent square, so that images of any shape line up: uint8 (side, side, 4)."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)


def side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, C) of one height in a row, with a little room between them that is empty."""
    gap = np.zeros((len(pictures[0]), 4, pictures[0].shape[2]), np.uint8)
    row = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(row[1:], 1)


def png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3), or (H, W, 4) with opacity, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)  # it is looked at once; encoding would wait
    return file.getvalue()


def data_url(pixels: np.ndarray) -> str:
    """uint8 (H, W, 3) as an address that holds the picture itself: a JPEG that the eye cannot tell from it.

    It is made and read in a fraction of the time of a PNG, and has a fraction of its length.
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
