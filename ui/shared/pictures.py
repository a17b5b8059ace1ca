"""Images of the app: samples, uploads and data sets, and their display."""

import base64
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st
from PIL import Image

from kdad.data.datasets import folder_path, is_folder
from kdad.errors import UserError

if TYPE_CHECKING:
    import torch

DISPLAY_SIDE = 448
MAX_UPLOAD_MB = 20  # MB; the server's limit in .streamlit/config.toml is higher so the page can explain the refusal
MAX_UPLOADS = 1000
ZIP = ".zip"
TYPES = ["png", "jpg", "jpeg", "jfif", "heic", "heif", "hif", "avif", "webp", "bmp", "tif", "tiff", "gif", "pgm", "jp2"]


@dataclass(frozen=True, eq=False)
class Picture:
    """One image that is read when it is asked for, so that hundreds of them need no memory.

    Args:
        name: for people.
        digest: identifies its content, whatever its name.
        read: returns its pixels, uint8 (H, W, 3).
        truth: its label, if known.
        mask: of its defect, bool (H, W), if known.
    """

    name: str
    digest: str
    read: Callable[[], np.ndarray]
    truth: str | None = None
    mask: np.ndarray | None = None

    @classmethod
    def of(cls, name: str, pixels: np.ndarray, truth: str | None = None, mask: np.ndarray | None = None) -> "Picture":
        """A picture of pixels in memory."""
        content = str(pixels.shape).encode() + pixels.tobytes()
        return cls(name, hashlib.blake2b(content, digest_size=16).hexdigest(), partial(np.asarray, pixels), truth, mask)

    @property
    def pixels(self) -> np.ndarray:
        """Its pixels, uint8 (H, W, 3).

        Raises:
            UserError: the file is damaged or not an image.
        """
        return self.read()

    @cached_property
    def shown(self) -> np.ndarray:
        """The pixels at their `display_size`."""
        return to_display(self.pixels)

    def changed(self, pixels: np.ndarray, words: str) -> "Picture":
        """Return a copy with changed pixels and the change in its name; the mask no longer applies and is dropped."""
        return Picture.of(f"{self.name} {words}", pixels, self.truth)


def uploaded(files: list, max_value: int) -> tuple[list[Picture], list[str]]:
    """Pictures of uploaded files, also of those in zip files, and a message per refused file and on masks.

    Files are read when their pixels are asked for, with the student's `max_value`.
    """
    from kdad.data.images import set_aside, split_masks

    pictures, problems = [], []
    for file in files:
        try:
            pictures += _in_zip(file, max_value) if file.name.lower().endswith(ZIP) else [_alone(file, max_value)]
        except UserError as error:
            problems.append(str(error))
    _, masks = split_masks(PurePosixPath(picture.name) for picture in pictures)
    kept = [picture for picture in pictures if PurePosixPath(picture.name) not in masks]
    if len(kept) > MAX_UPLOADS:
        problems.append(f"{len(kept)} images: the first {MAX_UPLOADS} are shown; score the others with kdad score")
    return _with_distinct_names(kept[:MAX_UPLOADS]), [*set_aside(masks, "scored"), *problems]


def _alone(file, max_value: int) -> Picture:
    """The picture of an uploaded file."""
    if file.size > MAX_UPLOAD_MB * 2**20:
        raise UserError(f"{file.name}: larger than {MAX_UPLOAD_MB} MB; reduce its size")
    return Picture(file.name, f"{file.file_id} {max_value}", partial(_decode, file.file_id, file.name, max_value, file))


def _in_zip(file, max_value: int) -> list[Picture]:
    """The pictures in an uploaded zip file, named by their paths below the folder that they share."""
    from kdad.data.archives import image_names

    names = image_names(file, MAX_UPLOAD_MB * 2**20)
    return [
        Picture(short, f"{file.file_id} {name} {max_value}", partial(_decode, file.file_id, name, max_value, file))
        for name, short in zip(names, _below_common_folder(map(PurePosixPath, names)), strict=True)
    ]


@st.cache_resource(max_entries=32, show_spinner=False)
def _decode(file_id: str, name: str, max_value: int, _file) -> np.ndarray:
    from kdad.data.archives import member
    from kdad.data.decoding import read_image

    content = member(_file, name) if _file.name.lower().endswith(ZIP) else _file
    return read_image(content, name, max_value).permute(1, 2, 0).contiguous().numpy()


def _with_distinct_names(pictures: list[Picture]) -> list[Picture]:
    """Number pictures of the same name."""
    seen: dict[str, int] = {}
    distinct = []
    for picture in pictures:
        seen[picture.name] = seen.get(picture.name, 0) + 1
        count = seen[picture.name]
        distinct.append(picture if count == 1 else replace(picture, name=f"{picture.name} ({count})"))
    return distinct


@dataclass(frozen=True)
class Gallery:
    """Test split of a data set.

    Args:
        kinds: classes, or kinds of defect.
        labels: index of each image's kind, (N,).
        fetch: of indices (n,), the images (3, H, W) and their masks (H, W) or None.
        files: name of each image's file below the test folder; empty for data sets without files.
        fingerprint: the hash of these files, '' for data sets without files.
    """

    kinds: tuple[str, ...]
    labels: np.ndarray
    fetch: "Callable[[torch.Tensor], tuple[Sequence, Sequence | None]]"
    files: tuple[str, ...] = ()
    fingerprint: Callable[[], str] = str

    def name(self, index: int) -> str:
        """Name of a test image: its file's, or its kind and index."""
        return self.files[index] if self.files else f"{self.kinds[self.labels[index]]} {index}"


def gallery(dataset: str, normal_class: str) -> Gallery:
    """Test split of a data set, as its files are now.

    Raises:
        UserError: the data set is unknown, or its files cannot be read.
    """
    parts = [folder_path(dataset) / part for part in ("test", "ground_truth")] if is_folder(dataset) else []
    return _gallery(dataset, normal_class, *map(folder_stamp, parts))


def stamp_of(dataset: str) -> str:
    """The `folder_stamp` of a data set that is a folder of one's own; '' of the others, which never change."""
    return folder_stamp(folder_path(dataset)) if is_folder(dataset) else ""


def folder_stamp(folder: Path) -> str:
    """Digest of the names, sizes and times of change of a folder's files."""
    from kdad.data.images import files_below

    try:
        files = [(str(file), file.stat()) for file in files_below(folder)]
        about = [(name, state.st_size, state.st_mtime_ns) for name, state in files]
    except (UserError, OSError) as error:
        about = [(str(error), 0, 0)]
    return hashlib.blake2b(repr(about).encode(), digest_size=16).hexdigest()


@st.cache_resource(max_entries=4, show_spinner="Reading the data set…")
def _gallery(dataset: str, normal_class: str, *stamps: str) -> Gallery:
    from kdad.data.folders import ImageFiles
    from kdad.data.loading import load_task
    from kdad.data.one_vs_rest import OneVsRestTask

    task = load_task(dataset, normal_class)
    if isinstance(task, OneVsRestTask):
        source = task.source
        labels = source.labels("test").numpy()
        return Gallery(source.classes, labels, lambda indices: (source.images("test", indices), None))
    if task.test is None:
        raise UserError(f"{dataset} lacks normal or anomalous test images: put them in test/good and test/<kind>")
    labels, fetch = task.test.labels.numpy(), lambda indices: _chosen(task.test, indices.tolist())
    if not isinstance(task.test.images, ImageFiles):
        return Gallery(task.kinds, labels, fetch)
    files = _below_common_folder(task.test.images.files)
    return Gallery(task.kinds, labels, fetch, files, lambda: task.fingerprint("test"))


def _below_common_folder(files: Iterable[PurePath]) -> tuple[str, ...]:
    """Paths of files below the folder that they share."""
    files = tuple(files)
    common = os.path.commonpath([file.parent for file in files])
    return tuple(file.relative_to(common).as_posix() for file in files)


def _chosen(test, indices: list[int]) -> tuple[list, list | None]:
    masks = None if test.masks is None else [test.masks[i] for i in indices]
    return [test.images[i] for i in indices], masks


def gallery_page(shown: Gallery, normal_class: str, kind: str, page: int, per_page: int) -> list[Picture]:
    """One page, counted from 1, of test images of one kind."""
    import torch

    of_kind = np.flatnonzero(shown.labels == shown.kinds.index(kind))
    indices = of_kind[(page - 1) * per_page : page * per_page]
    truth = "normal" if kind in (normal_class, "good") else "anomaly"
    images, masks = shown.fetch(torch.from_numpy(indices))
    return [
        Picture.of(shown.name(index), channels_last(image.numpy()), truth, None if masks is None else masks[i])
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
