"""A score as what it is the sum of, each part with a map that adds up to it, and with what normals show."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdad.detection.detector import Detector, Prediction
from kdad.detection.discrepancy import DISTANCE, ERROR, HIGHEST, PARTS
from kdad.detection.heatmaps import MapGeometry
from kdad.detection.inputs import to_batch
from kdad.detection.rendering import colour_range
from kdad.detection.tiles import Tiling, map_tiles
from kdad.errors import UserError
from kdad.networks.features import in_parts


@dataclass(frozen=True)
class Part:
    """One of the addends of a score, for one image of H×W pixels.

    Args:
        name: `error`, the student's in the last critical layer; `distance`, the teacher's own from normals; `peak`,
            the highest value of the heatmap; or `layer N`.
        value: what is added.
        normals: the same of the held-out normals, (N,).
        measured: what is drawn: an error or distance before its logarithm, a peak.
        heatmap: (H, W); its mean, over what it covers, is `measured` (of tiles, about that of the most unusual one), or
            its highest value of a peak. None for a layer, whose patch errors `Prediction.patch_maps` has.
        colour_range: what is dark and what is bright on the heatmap.
    """

    name: str
    value: float
    normals: np.ndarray
    measured: float
    heatmap: np.ndarray | None
    colour_range: tuple[float, float]

    @property
    def excess(self) -> float:
        """How far it lifts the score above that of an ordinary normal."""
        return self.value - float(np.median(self.normals))


def explain(detector: Detector, image: Any, said: Prediction | None = None) -> list[Part]:
    """The parts of the default score of one image, the one that lifts it most first.

    They add up to `Prediction.score`, as far as float32 goes.

    Args:
        image: as `Detector.predict` takes it.
        said: what that says of it, if it is known.

    Raises:
        UserError: the detector was never calibrated, so that there is nothing to compare with.
    """
    calibration, config = detector.calibration, detector.config
    if calibration is None:
        raise UserError("a student without calibration has no normals to explain a score by; run evaluate on it")
    batch = to_batch(image, config.white)
    said = said or detector.predict(batch)
    measured = {
        "layer_errors": said.layer_errors,
        "distances": said.distance,
        "peaks": said.peak,
        "distance_weight": np.float32(detector.distance_weight),
    }
    of_normals = {name: tensor.numpy() for name, tensor in calibration.tensors().items()}
    mse_weight = config.recipe.mse_weight
    normals = PARTS[config.score](of_normals, mse_weight)
    values = PARTS[config.score](measured, mse_weight)
    drawn = {
        ERROR: lambda: (said.layer_errors[0, -1, 0], of_normals["layer_errors"][:, -1, 0], error_map(detector, batch)),
        DISTANCE: lambda: (said.distance[0], of_normals["distances"], distance_map(detector, batch)),
        HIGHEST: lambda: (said.peak[0], of_normals["peaks"], said.heatmap),
    }
    parts = []
    for name, value in values.items():
        shown, usual, heatmap = drawn[name]() if name in drawn else (value[0], normals[name], [None])
        ends = detector.colour_range if name == HIGHEST else colour_range(np.percentile(usual, np.arange(101)))
        parts.append(Part(name, float(value[0]), normals[name], float(shown), heatmap[0], ends))
    return sorted(parts, key=lambda part: -part.excess)


@torch.inference_mode()
def distance_map(detector: Detector, images: Tensor) -> np.ndarray:
    """How far the teacher sees each place from normals, (B, H, W): shares whose mean is the distance.

    Args:
        images: uint8 (B, 3, H, W).

    Raises:
        UserError: the detector's score does not read the distance.
    """
    if detector.calibration is None or detector.calibration.gaussian is None:
        raise UserError(
            f"the score {detector.config.score!r} does not read how far the teacher sees an image from normals"
        )
    gaussian = detector.calibration.gaussian

    def look(pieces: Tensor) -> tuple[Tensor]:
        features = detector.teacher(detector.teacher.preprocessing(pieces))
        return (_on_grid(gaussian.shares(detector.teacher.network.summarised(features)), detector),)

    return _over_images(look, detector, images)


@torch.inference_mode()
def error_map(detector: Detector, images: Tensor) -> np.ndarray:
    """What each place adds to the last layer's error, (B, H, W): shares whose mean is 1 − cosine of the whole maps.

    Args:
        images: uint8 (B, 3, H, W).
    """

    def look(pieces: Tensor) -> tuple[Tensor]:
        pixels = detector.teacher.preprocessing(pieces)
        copied, target = in_parts(detector.student, pixels)[-1].float(), detector.teacher(pixels)[-1].float()
        lengths = [features.flatten(1).norm(dim=1)[:, None].clamp(min=1e-8) for features in (copied, target)]
        agreed = (copied * target).sum(2) / (lengths[0] * lengths[1])
        shares = target.square().sum(2) / lengths[1].square() - agreed
        prefix, patches = detector.teacher.prefix, shares[:, detector.teacher.prefix :]
        return (_on_grid(patches * patches.shape[1] + shares[:, :prefix].sum(1, keepdim=True), detector),)

    return _over_images(look, detector, images)


def _on_grid(shares: Tensor, detector: Detector) -> Tensor:
    """Shares (B, n) of the patches of the last critical layer as a map (B, h, w); 0 at an edge that has none."""
    height, width = detector.teacher.grids[-1]
    edge = int(shares.shape[1] < height * width)
    inner = shares.unflatten(1, (height - 2 * edge, width - 2 * edge))
    return torch.nn.functional.pad(inner, (edge,) * 4)


def _over_images(look: Callable[[Tensor], tuple[Tensor]], detector: Detector, images: Tensor) -> np.ndarray:
    """What `look` shows of images or of their tiles, upsampled to the images."""
    images = images.to(detector.device)
    preprocessing = detector.teacher.preprocessing
    if detector.tile:
        tiling = Tiling.over(images, detector.tile, preprocessing)
        (maps,) = map_tiles(look, tiling.cut(images))
        maps = tiling.stitch(preprocessing.to_input(maps, tiling.side, tiling.side))
    else:
        (maps,) = look(images)
    return MapGeometry(preprocessing, detector.tile).to_image(maps, *images.shape[2:]).cpu().numpy()
