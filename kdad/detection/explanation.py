"""Decompose a score into its parts, each with a map that adds up to it, beside those of the held-out normals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdad.detection.detector import Detector, Prediction
from kdad.detection.inputs import to_batch
from kdad.detection.rendering import colour_range
from kdad.detection.tiles import in_chunks
from kdad.errors import UserError
from kdad.networks.features import forward_in_chunks
from kdad.scores import ERROR, GAUSSIAN, HIGHEST_PATCH, LOG_DISTANCE, MIN_LOGARITHM, NEAREST, Measurement, Part

SCORE_UNIT = "above a typical normal"
MIN_SHARE = 1e-6  # of the mean, so that a place that adds nothing has a logarithm


@dataclass(frozen=True)
class Contribution:
    """The share of one part in the score of one image.

    Args:
        name, title, unit: those of `kdad.scores.Part`.
        value: what is added.
        normals: the same of the held-out normals, (N,).
        quantity: what the heatmap adds up to: an error or a distance before its logarithm, a peak.
        heatmap: (H, W); its mean, over what it covers, is `quantity` (of tiles, about that of the most unusual one), or
            its highest value of a peak, or the mean of its worst places. None for a layer, whose patch errors
            `Measurement.patch_maps` has.
        colour_range: the values that are dark and bright on the heatmap.
    """

    name: str
    title: str
    unit: str
    value: float
    normals: np.ndarray
    quantity: float
    heatmap: np.ndarray | None
    colour_range: tuple[float, float]

    @property
    def excess(self) -> float:
        """The amount by which it raises the score above that of a typical normal."""
        return self.value - float(np.median(self.normals))


def explain(
    detector: Detector, image: Any, prediction: Prediction | None = None, *, size: tuple[int, int] | None = None
) -> list[Contribution]:
    """Split the default score of one image into its parts, the one that raises it most first.

    They add up to `Prediction.score`, as far as float32 goes.

    Args:
        image: as `Detector.predict` takes it.
        prediction: that of `Detector.predict`, if it is known.
        size: (height, width) of the maps; by default the image's own.

    Raises:
        UserError: the detector was never calibrated, so that there is nothing to compare with.
    """
    normals = _normals_of(detector)
    batch = to_batch(image, detector.config.max_value)
    prediction = prediction or detector.predict(batch)
    contributions = [
        _contribution(detector, part, batch, prediction, normals, size or prediction.size)
        for part in detector.score.parts_of(prediction.measurement)
    ]
    return sorted(contributions, key=lambda contribution: -contribution.excess)


@dataclass(frozen=True)
class ScoreMap:
    """A map (H, W) of a whole score, on one scale for all images.

    Its highest values are the score, or those that the score is the mean of; or else the mean of its exponential is
    that of the score, so that what is brighter has a higher score.

    Args:
        unit: of its values.
        colour_range: the values that are dark and bright on it.
        found: the value that 99 % of the patches of normals stay below; infinite where nobody has measured it.
    """

    heatmap: np.ndarray
    unit: str
    colour_range: tuple[float, float]
    found: float = np.inf


def score_map(
    detector: Detector, image: Any, prediction: Prediction | None = None, *, size: tuple[int, int] | None = None
) -> ScoreMap | None:
    """Join the maps of a score's parts into the map of their sum, for one image; None if no part has a map.

    Maps in standard deviations of a normal patch are added, and stretched by what else is added to the score.
    Shares of logarithms are multiplied with how far the score exceeds a typical normal's.

    Args:
        image, prediction, size: as in `explain`.

    Raises:
        UserError: as in `explain`.
    """
    normals = _normals_of(detector)
    batch = to_batch(image, detector.config.max_value)
    prediction = prediction or detector.predict(batch)
    parts = detector.score.parts_of(prediction.measurement)
    drawn = [part for part in parts if part.name in MAPS]
    of_patches = [part for part in drawn if part.unit == HIGHEST_PATCH.unit]
    if not drawn:
        return None

    def map_of(part: Part) -> np.ndarray:
        return MAPS[part.name](detector, batch, prediction, size or prediction.size)[0]

    def excess_of(part: Part) -> float:
        return float(part.value(prediction.measurement)[0]) - float(np.median(part.value(normals)))

    if of_patches:
        heatmap = np.sum([map_of(part) for part in of_patches], 0)
        peak = max(float(heatmap.max()), MIN_LOGARITHM)
        raised = max(0.0, peak + sum(excess_of(part) for part in parts if part not in of_patches)) / peak
        return ScoreMap(
            heatmap * raised, HIGHEST_PATCH.unit, detector.colour_range, detector.heatmap_threshold * raised
        )
    scores = detector.score(normals)
    typical = float(np.median(scores))
    quantities = [max(float(part.quantity(prediction.measurement)[0]), MIN_LOGARITHM) for part in drawn]
    shares = np.mean([map_of(part) / quantity for part, quantity in zip(drawn, quantities, strict=True)], 0)
    excess = float(prediction.score[0]) - typical
    ends = colour_range(np.percentile(scores - typical, np.arange(101)))
    return ScoreMap(excess + np.log(shares.clip(min=MIN_SHARE)), SCORE_UNIT, ends)


def _normals_of(detector: Detector) -> Measurement:
    if detector.normals is None:
        raise UserError("a student without calibration has no normals to explain a score by; run evaluate on it")
    return detector.normals


def _contribution(
    detector: Detector, part: Part, batch: Tensor, prediction: Prediction, normals: Measurement, size: tuple[int, int]
) -> Contribution:
    draw = MAPS.get(part.name)
    ends = colour_range(np.percentile(part.quantity(normals), np.arange(101)))
    return Contribution(
        part.name,
        part.title,
        part.unit,
        float(part.value(prediction.measurement)[0]),
        part.value(normals),
        float(part.quantity(prediction.measurement)[0]),
        None if draw is None else draw(detector, batch, prediction, size)[0],
        detector.colour_range if part.unit == HIGHEST_PATCH.unit else ends,
    )


def distance_map(detector: Detector, images: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The teacher's distance from normals by place, (B, height, width): shares whose mean is the distance.

    Args:
        images: uint8 (B, 3, H, W).
        size: (height, width) of the maps.

    Raises:
        UserError: the detector's score does not read the distance.
    """
    if detector.calibration is None or detector.calibration.gaussian is None:
        raise UserError(
            f"the score {detector.config.score!r} does not read how far the teacher sees an image from normals"
        )
    gaussian, teacher = detector.calibration.gaussian, detector.teacher

    def shares(pieces: Tensor) -> Tensor:
        return gaussian.shares(teacher.network.summarised(teacher(teacher.preprocessing(pieces))))

    return _drawn(shares, detector, images, size)


def error_map(detector: Detector, images: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The share of each place in the last layer's error, (B, height, width); their mean is 1 − cosine of the maps.

    Args:
        images: uint8 (B, 3, H, W).
        size: (height, width) of the maps.
    """
    teacher = detector.teacher

    def shares(pieces: Tensor) -> Tensor:
        pixels = teacher.preprocessing(pieces)
        copied, target = forward_in_chunks(detector.student, pixels)[-1].float(), teacher(pixels)[-1].float()
        lengths = [features.flatten(1).norm(dim=1)[:, None].clamp(min=1e-8) for features in (copied, target)]
        agreed = (copied * target).sum(2) / (lengths[0] * lengths[1])
        of_tokens = target.square().sum(2) / lengths[1].square() - agreed
        prefix, patches = of_tokens[:, : teacher.prefix], of_tokens[:, teacher.prefix :]
        return patches * patches.shape[1] + prefix.sum(1, keepdim=True)

    return _drawn(shares, detector, images, size)


@torch.inference_mode()
def _drawn(shares: Callable[[Tensor], Tensor], detector: Detector, images: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The shares (N, n) of the patches of pieces (N, 3, h, w) as maps over the images (B, height, width)."""
    tiler = detector.tiler
    pieces = tiler.split(images.to(detector.device))
    (maps,) = in_chunks(lambda chunk: (_on_grid(shares(chunk), detector.teacher.grids[-1]),), pieces)
    return tiler.to_image(tiler.merge(maps, *images.shape[2:]), *size).cpu().numpy()


def _on_grid(shares: Tensor, grid: tuple[int, int]) -> Tensor:
    """Shares (B, n) of the patches of a layer as a map (B, h, w); 0 at an edge that has none."""
    height, width = grid
    edge = int(shares.shape[1] < height * width)
    inner = shares.unflatten(1, (height - 2 * edge, width - 2 * edge))
    return torch.nn.functional.pad(inner, (edge,) * 4)


# How the map of each part is drawn, by its name: (detector, images, prediction, size) to (B, height, width).
MAPS: dict[str, Callable[[Detector, Tensor, Prediction, tuple[int, int]], np.ndarray]] = {
    ERROR.name: lambda detector, images, _, size: error_map(detector, images, size),
    LOG_DISTANCE.name: lambda detector, images, _, size: distance_map(detector, images, size),
    HIGHEST_PATCH.name: lambda detector, images, prediction, size: prediction.heatmap_at(*size),
    NEAREST.name: lambda detector, images, prediction, size: prediction.distance_map_at(0, *size),
    GAUSSIAN.name: lambda detector, images, prediction, size: prediction.distance_map_at(1, *size),
}
