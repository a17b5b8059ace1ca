"""Scoring image files of any size and mode, for the command line."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kdad.data.images import batches_of_one_size, find_images, read_image, read_images
from kdad.detection.detector import Detector, Prediction
from kdad.detection.localisation import localise
from kdad.detection.rendering import overlay, save_png
from kdad.errors import UserError


def score_files(
    detector: Detector, paths: list[str], fpr: float | None, heatmaps: str | None, method: str = "patch"
) -> list[dict[str, Any]]:
    """One row per image of `paths` (files and directories), in order; heatmap PNGs go to the folder `heatmaps`.

    A file named itself must be readable; an unreadable one inside a directory is reported and
    skipped. `method` is one of `kdad.detection.localisation.METHODS`.

    Raises:
        UserError: a path is missing, a named file is no image, no image is left, or the method is
            unknown or not for this network.
    """
    named = {Path(path) for path in paths}
    for path in named:
        if path.is_file():
            read_image(path)
    rows: list[dict[str, Any]] = []
    for names, images in batches_of_one_size(_readable(find_images(paths), named)):
        prediction = detector.predict(images, fpr=fpr)
        if heatmaps:
            maps = prediction.heatmap if method == "patch" else localise(detector, images, method)
            ends = detector.colour_range if method == "patch" else None
            _save_heatmaps(Path(heatmaps), len(rows), names, images, maps, ends)
        rows += _rows(names, prediction)
    if not rows:
        raise UserError("none of the images could be read")
    return rows


def _readable(files: list[Path], named: set[Path]) -> Iterator[tuple[str, Tensor]]:
    for file, image in zip(files, read_images(files), strict=True):
        if not isinstance(image, UserError):
            yield str(file), image
        elif file in named:
            raise image
        else:
            print(f"skipped {image}", file=sys.stderr)


def _rows(names: list[str], prediction: Prediction) -> list[dict[str, Any]]:
    return [
        {
            "image": name,
            "score": float(prediction.score[i]),
            "p_value": None if prediction.p_value[i] != prediction.p_value[i] else float(prediction.p_value[i]),
            "is_anomaly": bool(prediction.is_anomaly[i]),
        }
        for i, name in enumerate(names)
    ]


def _save_heatmaps(
    folder: Path, first: int, names: list[str], images: Tensor, maps: np.ndarray, ends: tuple[float, float] | None
) -> None:
    """One PNG per image; `ends` are those of the colour scale, or None for each map's own."""
    for i, (name, heatmap) in enumerate(zip(names, maps, strict=True)):
        low, high = ends or (heatmap.min(), heatmap.max())
        picture = overlay(images[i].permute(1, 2, 0).numpy(), heatmap, low, high)
        save_png(folder / f"{first + i:04d}-{Path(name).stem}.png", picture)
