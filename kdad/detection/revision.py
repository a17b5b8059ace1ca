"""Revise a student of photographs without training: normals that it learns, and a region of interest.

What its score reads of normals is remembered patch by patch, so that statistics and calibration are fitted anew in
seconds. The result is a new version beside the old one, which stays as it is.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdad.data.images import digest_of
from kdad.detection.calibration import save_calibration, with_patches
from kdad.detection.detector import Detector
from kdad.detection.inputs import to_batch
from kdad.detection.normal_patches import FittedPatches, NormalPatches, layer_maps
from kdad.errors import UserError
from kdad.files import shown
from kdad.storage import layout, student_folder

FINE = 1000  # rows and columns on which a rectangle is drawn
INSIDE = 0.5  # share of a patch that lies in a region, from which on the patch does
KEPT = (layout.WEIGHTS, layout.HISTORY, layout.LOCAL, layout.OPERATING_POINT)  # of the version before


def correct(
    folder: Path,
    images: Sequence[Any],
    *,
    into: Path | None = None,
    detector: Detector | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Let a student learn that images are normal; returns the folder of the new version.

    Each image joins the normals that others are compared with, and is itself compared with them to set thresholds: what
    looks like it is no longer unusual, and one false alarm in so many is expected still.

    Args:
        folder: the student's.
        images: each as `Detector.predict` takes it, of any sizes.
        into: the folder to make; by default, `<folder>-v2` or the next that is free.
        detector: the student, if it is loaded.
        names: of the images, for errors; by default, their paths or numbers.

    Raises:
        UserError: the student is in no folder of this machine, or its score reads no remembered normals; or an image is
            none, known already, or given twice.
    """
    check_folder(folder)
    detector = detector or Detector.load(folder)
    patches = _patches_of(detector)
    batches = [to_batch(image, detector.config.max_value) for image in images]
    added = torch.cat([_projected(detector, patches, batch) for batch in batches])
    # A normal that is there twice is at no distance from the others, and would spoil the scale of all distances.
    named = names or [
        str(image) if isinstance(image, str | Path) else f"image {n}" for n, image in enumerate(images, 1)
    ]
    each = [name for name, batch in zip(named, batches, strict=True) for _ in batch]
    _refuse(patches.know(added), each, "among the normals of this student already")
    _refuse(patches.repeated(added), each, "given more than once")
    digests = [digest_of(image) for batch in batches for image in batch]
    return _saved(folder, detector, patches.extended(added), {"normals": digests}, into)


def rectangle(top: float, bottom: float, left: float, right: float) -> Tensor:
    """A region of interest, bool (h, w), from the sides of a rectangle as shares of the image's.

    Raises:
        UserError: a side lies outside of 0…1, or the rectangle is empty.
    """
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise UserError("a rectangle needs 0 ≤ top < bottom ≤ 1 and 0 ≤ left < right ≤ 1, as shares of the image")
    centres = (torch.arange(FINE) + 0.5) / FINE
    return ((centres > top) & (centres < bottom))[:, None] & ((centres > left) & (centres < right))


def restrict(folder: Path, region: Tensor, *, into: Path | None = None, detector: Detector | None = None) -> Path:
    """Let a student look at a region of interest alone; returns the folder of the new version.

    Args:
        folder: the student's.
        region: bool (H, W) of any size: where an image is looked at.
        into: as in `correct`.
        detector: the student, if it is loaded.

    Raises:
        UserError: the student is in no folder of this machine, or its score reads no remembered normals, or the region
            holds no whole patch of what the teacher sees.
    """
    check_folder(folder)
    detector = detector or Detector.load(folder)
    patches = _patches_of(detector)
    seen = detector.teacher.preprocessing.cropped(region[None, None].float())
    share = torch.nn.functional.adaptive_avg_pool2d(seen, patches.projection.grid)[0, 0]
    inside = share >= INSIDE
    if region.any() and not seen.any():
        raise UserError("the region lies outside of what the teacher sees, the middle of the image")
    if not inside.any():
        raise UserError("the region is smaller than one patch: mark a larger part of the image")
    change = {"region": round(float(inside.float().mean()), 4)}
    return _saved(folder, detector, patches.restricted(inside), change, into)


def check_folder(folder: Path) -> None:
    """Raise a `UserError` if no student is there that a version could be made beside."""
    if not (folder / layout.WEIGHTS).is_file():
        raise UserError(
            f"{shown(folder)} is no folder with a student, which a version is made beside; pull one of the Hub first"
        )


def _refuse(which: Tensor, names: Sequence[str], reason: str) -> None:
    """Raise a `UserError` on the first of the named images that is marked in `which` (B,)."""
    if which.any():
        raise UserError(f"{names[int(which.nonzero()[0])]}: {reason}")


def _patches_of(detector: Detector) -> NormalPatches:
    if detector.calibration is None or detector.calibration.patches is None:
        raise UserError(
            "only students that compare whole photographs with remembered normals can be revised; add the images to "
            "the normals of this one, and train it again"
        )
    return detector.calibration.patches.to("cpu")


@torch.inference_mode()
def _projected(detector: Detector, patches: NormalPatches, batch: Tensor) -> Tensor:
    """The patches (B, P, D) of images, on the CPU."""
    teacher = detector.teacher
    features = teacher(teacher.preprocessing(batch.to(detector.device)))
    return patches.projection([layer.cpu() for layer in layer_maps(features, teacher)])


def _saved(folder: Path, detector: Detector, fitted: FittedPatches, change: dict[str, Any], into: Path | None) -> Path:
    """Write the next version of a student, complete or not at all."""
    assert detector.calibration is not None
    calibration, config = with_patches(detector.calibration, fitted), detector.config
    place = into or layout.next_version(folder)
    temporary = place.with_name(f".{place.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name in KEPT:
            if (folder / name).is_file():
                shutil.copy2(folder / name, temporary / name)
        before = {"name": place.name, "version": folder.name, "calibration_sha256": config.calibration_sha256}
        digest = save_calibration(temporary, calibration)
        config = replace(config, calibration_sha256=digest, ancestry=[*config.ancestry, before | change])
        student_folder.save_config(temporary, config)
        student_folder.save_card(temporary, config)
        temporary.replace(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place
