"""Calibrate a student on held-out normals: thresholds, p-values and heatmap scales."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from kdad.data.images import EvenBatches, in_batches
from kdad.data.task import Fold, Images, Task
from kdad.detection.discrepancy import Observation, observe
from kdad.detection.heatmaps import HeatmapRenderer, MapNormalization, sampled
from kdad.detection.mahalanobis import Gaussian
from kdad.detection.normal_patches import MAX_NORMALS, FittedPatches, NormalPatches
from kdad.detection.tiles import Tiler, WholeImages, tiler_for
from kdad.detection.weighting import SyntheticPairs, pseudo_anomalies_for
from kdad.errors import UserError, one_line
from kdad.files import write_bytes
from kdad.networks.teachers.loading import Teacher
from kdad.progress import CALIBRATING, track
from kdad.scores import DISTANCE, DISTANCE_WEIGHT, LOCAL_DISTANCES, Measurement, score_named
from kdad.storage.layout import CALIBRATION, CROSS_FITTED, HELD_OUT, LEFT_OUT
from kdad.storage.sealing import read_verified
from kdad.storage.student_config import StudentConfig


class FittedStudent(NamedTuple):
    """A trained student beside what its score reads of normals; None where it does not.

    `gaussian` is that of training images' summaries, `patches` those of all normals.
    """

    student: nn.Module
    gaussian: Gaussian | None = None
    patches: FittedPatches | None = None


MAX_GAUSSIAN_IMAGES = 10_000  # images; a covariance has few enough numbers to be known from so many
HeldOut = Sequence[tuple[FittedStudent, Images]]


@dataclass(frozen=True)
class Calibration:
    """Statistics of held-out normals that give scores and heatmaps a scale; all tensors float32.

    Args:
        layer_errors: their error tables, (N, L, 2).
        peaks: the highest values of their heatmaps, (N,).
        normalization: the scale of patch errors in heatmaps.
        heatmap_quantiles: the percentiles of their heatmaps, (101,), for colour scales.
        distances: the teacher's own distances of them from training normals, (N,); None where no score reads them.
        gaussian: the Gaussian behind the distances, or None.
        distance_weight: the weight of their logarithm beside a peak, (1,); None where no score reads it.
        local_distances: how far the worst places of n normals, each left out in turn, are from the others, (n, 2); None
            where no score reads them.
        patches: what these n normals show, or None.
        kind: how the normals were held out, one of `kdad.storage.layout.CALIBRATION_KINDS`.
    """

    layer_errors: Tensor
    peaks: Tensor
    normalization: MapNormalization
    heatmap_quantiles: Tensor
    distances: Tensor | None = None
    gaussian: Gaussian | None = None
    distance_weight: Tensor | None = None
    local_distances: Tensor | None = None
    patches: NormalPatches | None = None
    kind: str = HELD_OUT

    def __len__(self) -> int:
        """The number of normals that scores are compared with."""
        return len(self.layer_errors if self.local_distances is None else self.local_distances)

    def measurement(self, mse_weight: float) -> Measurement:
        """The measurement that scores of the held-out normals are read from, without maps."""
        return Measurement.of_normals({name: tensor.numpy() for name, tensor in self.tensors().items()}, mse_weight)

    def tensors(self) -> dict[str, Tensor]:
        """As calibration.safetensors holds it."""
        tensors = {
            "layer_errors": self.layer_errors,
            "peaks": self.peaks,
            "patch_mean": self.normalization.mean,
            "patch_std": self.normalization.std,
            "layer_weights": self.normalization.weights,
            "heatmap_quantiles": self.heatmap_quantiles,
        }
        if self.distances is not None and self.gaussian is not None:
            tensors |= {"distances": self.distances, **self.gaussian.packed()}
        if self.distance_weight is not None:
            tensors["distance_weight"] = self.distance_weight
        if self.local_distances is not None and self.patches is not None:
            tensors |= {"local_distances": self.local_distances, **self.patches.packed()}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], kind: str = HELD_OUT) -> "Calibration":
        """The inverse of `tensors`.

        Raises:
            ValueError: a tensor is missing, one too many, of another shape than the others ask for, or not finite.
        """
        normals, layers = (*tensors.get("layer_errors", torch.empty(0)).shape, 0)[:2]
        expected: dict[str, tuple[int, ...]] = {
            "layer_errors": (normals, layers, 2),
            "peaks": (normals,),
            "patch_mean": (layers,),
            "patch_std": (layers,),
            "layer_weights": (layers,),
            "heatmap_quantiles": (101,),
        }
        if "distances" in tensors:
            width = tensors.get("distance_mean", torch.empty(0)).numel()
            expected["distances"] = (normals,)
            expected |= {"distance_mean": (width,), "distance_whitening": (width * (width + 1) // 2,)}
        if "distance_weight" in tensors:
            expected["distance_weight"] = (1,)
        if "local_distances" in tensors:
            expected |= {"local_distances": (len(tensors["local_distances"]), 2), **NormalPatches.shapes(tensors)}
        if not normals or {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
            raise ValueError("its tensors do not fit each other")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("it holds numbers that are not finite")
        return cls(
            tensors["layer_errors"],
            tensors["peaks"],
            MapNormalization(tensors["patch_mean"], tensors["patch_std"], tensors["layer_weights"]),
            tensors["heatmap_quantiles"],
            tensors.get("distances"),
            Gaussian.unpacked(tensors) if "distances" in tensors else None,
            tensors.get("distance_weight"),
            tensors.get("local_distances"),
            NormalPatches.unpacked(tensors) if "local_distances" in tensors else None,
            kind,
        )


def save_calibration(folder: Path, calibration: Calibration) -> str:
    """Write calibration.safetensors; returns its SHA-256, which belongs into the student's configuration."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in calibration.tensors().items()}
    return write_bytes(folder / CALIBRATION, save(tensors))


def load_calibration(folder: Path, config: StudentConfig) -> Calibration | None:
    """The calibration of the student of `config`, or None if it was never calibrated.

    Raises:
        UserError: the file is damaged, or lacks what the score reads.
    """
    file = Path(folder) / CALIBRATION
    if not file.is_file():
        return None
    try:
        calibration = Calibration.from_tensors(load(read_verified(file, config.calibration_sha256)), config.calibration)
        known = calibration.tensors().keys() & {DISTANCE, DISTANCE_WEIGHT, LOCAL_DISTANCES}
        if known != score_named(config.score).needs:
            raise ValueError(f"it was not made for the score {config.score!r}")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({one_line(error)}); remove it, and run evaluate on the folder to calibrate again"
        ) from None
    return calibration


@torch.inference_mode()
def calibrate(
    fitted: FittedStudent, teacher: Teacher, held_out: HeldOut, train: Tensor, score: str, tile_size: int
) -> Calibration:
    """Calibrate a student on normals that it was not trained on.

    The p-values of a score are exact where all normals were held out of one network: nothing that a score reads is
    learned from them. Those of a score that reads `FittedStudent.patches` come from all normals, each left out in turn.

    Args:
        fitted: the student, and what its score reads of normals; see `fit_statistics`.
        held_out: normals that had no part in training: pairs of a fitted student and the images that it never
            saw. One pair of `fitted` itself, or several where folds of the data were left out in turn.
        train: training images (N, 3, H, W), some of which become pseudo-anomalies to weigh the layers by.
        score: the name in `kdad.scores.SCORES` of what will be read.
        tile_size: the side in pixels of the tiles to look at one by one; 0 for whole images.
    """
    tiler = tiler_for(teacher.preprocessing, tile_size)
    observations = Observations(teacher, held_out, tiler)
    mean, std = _moments(observation.maps for _, observation in observations)
    # Only units come from the held-out normals: what is read, up to a factor and a constant that all images share, does
    # not depend on them, or the p-values of few of them would be too low.
    pairs = SyntheticPairs.of(fitted.student, teacher, train, pseudo_anomalies_for(score))
    weights = pairs.layer_weights()
    normalization = MapNormalization(mean, std, std * weights.to(std.device))
    renderer = HeatmapRenderer(tiler, normalization.weights)
    errors, distances, peaks, levels = [], [], [], []
    for gaussian, observation in observations:
        combined = renderer.combine(normalization.standardise(observation.maps))
        errors.append(observation.errors)
        distances += [] if gaussian is None else [largest_distance(gaussian, observation)]
        peaks.append(combined.amax((1, 2)))
        levels.append(sampled(combined))
    level = torch.cat(levels).cpu()
    unit = level.std().clamp(min=1e-12)  # so that the heatmap, too, is in standard deviations
    weighted = DISTANCE_WEIGHT in score_named(score).needs
    calibration = Calibration(
        layer_errors=torch.cat(errors).cpu(),
        peaks=torch.cat(peaks).cpu() / unit,
        normalization=MapNormalization(mean.cpu(), std.cpu(), normalization.weights.cpu() / unit),
        heatmap_quantiles=_percentiles(level / unit),
        distances=torch.cat(distances).cpu() if distances else None,
        gaussian=fitted.gaussian,
        distance_weight=pairs.distance_weight(weights)[None] / unit if weighted else None,
        kind=CROSS_FITTED if len(held_out) > 1 else HELD_OUT,
    )
    return calibration if fitted.patches is None else with_patches(calibration, fitted.patches)


def with_patches(calibration: Calibration, fitted: FittedPatches) -> Calibration:
    """The same where the score and the heatmap read distances of patches from those of normals."""
    patches = fitted.patches
    return replace(
        calibration,
        heatmap_quantiles=_percentiles(patches.region_values(fitted.left_out.sum(1))),
        local_distances=patches.worst_places(fitted.left_out),
        patches=patches,
        kind=LEFT_OUT,
    )


def _percentiles(values: Tensor) -> Tensor:
    """The percentiles (101,) of values."""
    return torch.from_numpy(np.quantile(values, np.linspace(0, 1, 101))).float()


class Observations:
    """The observations of held-out normals, batch by batch, beside the Gaussian that measures each; iterable twice.

    Those of whole images are kept for the second time; of tiles, maps are as large as the images.
    """

    def __init__(self, teacher: Teacher, held_out: HeldOut, tiler: Tiler):
        self.teacher, self.held_out, self.tiler = teacher, held_out, tiler
        self._kept = list(self._observed()) if isinstance(tiler, WholeImages) else None

    def __iter__(self) -> Iterator[tuple[Gaussian | None, Observation]]:
        return self._observed() if self._kept is None else iter(self._kept)

    def _observed(self) -> Iterator[tuple[Gaussian | None, Observation]]:
        for fitted, images in self.held_out:
            device = next(fitted.student.parameters()).device
            for batch in track(CALIBRATING, in_batches(images), len):
                yield fitted.gaussian, observe(fitted.student, self.teacher, batch.to(device), self.tiler)


@torch.inference_mode()
def fit_statistics(student: nn.Module, teacher: Teacher, task: Task | Fold, score: str) -> FittedStudent:
    """Fit what `score`, a name in `kdad.scores.SCORES`, reads of normals beside the student.

    Summaries are of training images, patches of all normals.
    """
    needs, device = score_named(score).needs, next(student.parameters()).device
    gaussian, patches = None, None
    if DISTANCE in needs:
        batches = EvenBatches([task.train], MAX_GAUSSIAN_IMAGES, device)
        gaussian = Gaussian.fit(teacher.network.summary(teacher(teacher.preprocessing(batch))) for batch in batches)
    if LOCAL_DISTANCES in needs:
        held_out = task.validation
        assert isinstance(held_out.images, Tensor)  # of one size, as training images are
        normals = [task.train, held_out.images[~held_out.anomalous]]
        patches = NormalPatches.fit(teacher, EvenBatches(normals, MAX_NORMALS, device))
    return FittedStudent(student, gaussian, patches)


def largest_distance(gaussian: Gaussian, observation: Observation) -> Tensor:
    """The teacher's distance of each image from normals, (B,): the largest over its tiles."""
    return gaussian.distance(observation.summaries).amax(1)


def _moments(batches: Iterable[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (L,) of the patch errors of each layer."""
    sums = torch.zeros(1, 3, dtype=torch.float64)
    for maps in batches:
        values = [layer.cpu().double() for layer in maps]
        sums = sums + torch.tensor([[v.numel(), v.sum(), v.square().sum()] for v in values], dtype=torch.float64)
    count, total, squares = sums.T
    mean = total / count
    device = maps[0].device
    return mean.float().to(device), (squares / count - mean.square()).clamp(min=0).sqrt().float().to(device)
