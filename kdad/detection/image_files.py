"""Score image files of any size and mode, for the command line."""

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kdad.data.decoding import read_image
from kdad.data.images import batches_of_one_size, find_images, images_below, readable
from kdad.detection.detector import Detector
from kdad.detection.localisation import localise
from kdad.detection.rendering import overlay, save_png
from kdad.errors import UserError
from kdad.files import check_output_folder, shown

MAX_STEM_BYTES = 200  # bytes


def score_files(
    detector: Detector, paths: list[str], fpr: float | None, heatmaps: str | None, method: str = "patch"
) -> Iterator[dict[str, Any]]:
    """Yield one row per image of `paths` (files and directories), in order.

    Heatmap PNGs go to the folder `heatmaps`, and the row's `heatmap` says where each is. A file named itself must be
    readable; an unreadable one inside a directory is reported and skipped. `method` is one of
    `kdad.detection.localisation.METHODS`.

    Raises:
        UserError: a path is missing, a named file is no image, no image is left, the method is unknown or not for this
            network, or a heatmap cannot be written or would lie among the images.
    """
    if heatmaps:
        _check_heatmap_folder(Path(heatmaps), paths)
    files = find_images(paths)
    read = partial(read_image, max_value=detector.config.max_value)
    named = {Path(path) for path in paths if Path(path).is_file()}
    if len(paths) > 1:  # before anything is written
        for path in named:
            read(path)

    def refuse(file: Path, error: UserError) -> None:
        if file in named:
            raise error
        print(f"skipped {error}", file=sys.stderr)

    judged = 0
    found = ((shown(file), image) for file, image in readable(read, files, refuse))
    for names, images in batches_of_one_size(found):
        prediction = detector.predict(images, fpr=fpr)
        records = prediction.to_records(names)
        if heatmaps:
            maps = prediction.heatmap if method == "patch" else localise(detector, images, method)
            ends = detector.colour_range if method == "patch" else None
            written = _save_heatmaps(Path(heatmaps), judged, names, images, maps, ends)
            records = [row | {"heatmap": shown(file)} for row, file in zip(records, written, strict=True)]
        judged += len(names)
        yield from records
    if not judged:
        raise UserError("none of the images could be read")


def _check_heatmap_folder(folder: Path, paths: Iterable[str]) -> None:
    """Raise a `UserError` if heatmaps in `folder` would be found as images: by the next run, and in training."""
    check_output_folder(folder)
    target = folder.resolve()
    for path in map(Path, paths):
        place = path if path.is_dir() else path.parent
        with_images = {file.parent.resolve() for file in images_below(path)} if path.is_dir() else {place.resolve()}
        if target in with_images or (path.is_dir() and target.is_relative_to(place.resolve())):
            raise UserError(
                f"heatmaps in {shown(folder)} would lie among the images of {shown(place)}, and be taken for images "
                "too; choose a folder outside for --heatmaps"
            )


def _save_heatmaps(
    folder: Path, first: int, names: list[str], images: Tensor, maps: np.ndarray, ends: tuple[float, float] | None
) -> Iterator[Path]:
    """Write one PNG per image and yield its path; `ends` are those of the colour scale, or None for each map's own."""
    for i, (name, heatmap) in enumerate(zip(names, maps, strict=True)):
        low, high = ends or (heatmap.min(), heatmap.max())
        picture = overlay(images[i].permute(1, 2, 0).numpy(), heatmap, low, high)
        file = folder / f"{first + i:04d}-{_shortened(Path(name).stem)}.png"
        try:
            save_png(file, picture)
        except OSError as error:
            raise UserError(f"{file}: the heatmap cannot be written ({error.strerror})") from None
        yield file


def _shortened(stem: str) -> str:
    """A file name's stem, cut so that a prefix and a suffix still fit."""
    return stem.encode()[:MAX_STEM_BYTES].decode(errors="ignore")
