"""Score image files of any size and mode, for the command line."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from kdad.data.decoding import read_image
from kdad.data.images import batches_of_one_size, find_images, images_below, readable
from kdad.detection.detector import Detector, Prediction
from kdad.detection.localisation import localise
from kdad.detection.rendering import overlay, save_png
from kdad.errors import UserError
from kdad.files import check_output_folder, shown

MAX_STEM_BYTES = 200  # bytes
PATCH = "patch"  # the method of heatmaps that are compared on one scale


class Batch(NamedTuple):
    """Image files of one size, and how they were judged.

    Args:
        files: their paths.
        images: uint8 (B, 3, H, W).
        prediction: of all of them.
    """

    files: list[Path]
    images: Tensor
    prediction: Prediction

    @property
    def records(self) -> list[dict[str, Any]]:
        """One row per image, as of `Prediction.to_records`, by the printable form of its path."""
        return self.prediction.to_records([shown(file) for file in self.files])

    def heatmaps(self, detector: Detector, method: str) -> tuple[np.ndarray, tuple[float, float] | None]:
        """The heatmaps (B, H, W) by a method of `kdad.detection.localisation`, and the ends of their colour scale.

        Without ends, the method has no unit, and each map has a scale of its own.
        """
        if method == PATCH:
            return self.prediction.heatmap, detector.colour_range
        return localise(detector, self.images, method), None


def judge_files(
    detector: Detector, files: Sequence[Path], fpr: float | None, refuse: Callable[[Path, UserError], None]
) -> Iterator[Batch]:
    """Judge image files of any sizes, those of one size together, in their order.

    `refuse` is called with each file that cannot be read, and with its error.
    """
    read = partial(read_image, max_value=detector.config.max_value)
    for batch, images in batches_of_one_size(readable(read, files, refuse)):
        yield Batch(batch, images, detector.predict(images, fpr=fpr))


def judge_paths(
    detector: Detector, paths: Sequence[str], fpr: float | None, skip: Callable[[UserError], None]
) -> Iterator[Batch]:
    """Judge the images at `paths`, files and directories; `skip` is called with the error of an unreadable one.

    Raises:
        UserError: a path is missing, a file that was named itself is no image, or no image is left.
    """
    files = find_images(paths)
    named = {Path(path) for path in paths if Path(path).is_file()}
    if len(paths) > 1:  # before anything is written
        for path in named:
            read_image(path, max_value=detector.config.max_value)

    def refuse(file: Path, error: UserError) -> None:
        if file in named:
            raise error
        skip(error)

    judged = 0
    for batch in judge_files(detector, files, fpr, refuse):
        judged += len(batch.files)
        yield batch
    if not judged:
        raise UserError("none of the images could be read")


def score_files(
    detector: Detector, paths: list[str], fpr: float | None, heatmaps: str | None, method: str = PATCH
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
        check_heatmap_folder(Path(heatmaps), paths)
    judged = 0
    for batch in judge_paths(detector, paths, fpr, report_skipped):
        records = batch.records
        if heatmaps:
            written = save_heatmaps(Path(heatmaps), judged, batch, *batch.heatmaps(detector, method))
            records = [row | {"heatmap": shown(file)} for row, file in zip(records, written, strict=True)]
        judged += len(batch.files)
        yield from records


def report_skipped(error: UserError) -> None:
    """Report a file that cannot be read on standard error."""
    print(f"skipped {error}", file=sys.stderr)


def check_heatmap_folder(folder: Path, paths: Iterable[str]) -> None:
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


def save_heatmaps(
    folder: Path, first: int, batch: Batch, maps: np.ndarray, ends: tuple[float, float] | None
) -> Iterator[Path]:
    """Write one PNG per image, numbered from `first`, and yield its path.

    Args:
        maps: the heatmaps (B, H, W).
        ends: of the colour scale, or None for each map's own.

    Raises:
        UserError: a file cannot be written.
    """
    for i, (source, heatmap) in enumerate(zip(batch.files, maps, strict=True)):
        low, high = ends or (heatmap.min(), heatmap.max())
        picture = overlay(batch.images[i].permute(1, 2, 0).numpy(), heatmap, low, high)
        file = folder / f"{first + i:04d}-{_shortened(Path(shown(source)).stem)}.png"
        try:
            save_png(file, picture)
        except OSError as error:
            raise UserError(f"{file}: the heatmap cannot be written ({error.strerror})") from None
        yield file


def _shortened(stem: str) -> str:
    """A file name's stem, cut so that a prefix and a suffix still fit."""
    return stem.encode()[:MAX_STEM_BYTES].decode(errors="ignore")
