"""Calibrating a student on normals: the statistics by which its scores and heatmaps are read."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdad.data.images import in_batches
from kdad.data.pseudo_anomalies import blend_in
from kdad.data.task import Images
from kdad.detection.discrepancy import SCORES, layer_scores
from kdad.detection.heatmaps import MapGeometry, PatchReading, layer_weights, sampled
from kdad.detection.mahalanobis import Gaussian
from kdad.detection.observation import Observation, observe
from kdad.errors import UserError
from kdad.files import write_atomically
from kdad.networks.teachers import Teacher
from kdad.storage.layout import CALIBRATION, CROSS_FITTED, DISTANT_ERROR, HELD_OUT
from kdad.storage.student_config import StudentConfig

PSEUDO_ANOMALIES = 300
HeldOut = Sequence[tuple[nn.Module, Images]]


@dataclass(frozen=True)
class Calibration:
    """Statistics of held-out normals, by which a student's scores and heatmaps are read; all tensors float32.

    Args:
        layer_errors: their error tables, (N, L, 2).
        peaks: the highest values of their heatmaps, (N,).
        reading: how patch errors become heatmaps.
        heatmap_quantiles: the percentiles of their heatmaps, (101,), for colour scales.
        distances: how far the teacher itself sees them from training normals, (N,); None where that is not scored.
        gaussian: what distances are measured by, or None.
        kind: how the normals were held out, one of `kdad.storage.layout.CALIBRATION_KINDS`.
    """

    layer_errors: Tensor
    peaks: Tensor
    reading: PatchReading
    heatmap_quantiles: Tensor
    distances: Tensor | None = None
    gaussian: Gaussian | None = None
    kind: str = HELD_OUT

    def __len__(self) -> int:
        """How many normals were held out."""
        return len(self.layer_errors)

    def scores(self, score: str, mse_weight: float) -> np.ndarray:
        """The score of every held-out normal, (N,)."""
        return SCORES[score]({name: tensor.numpy() for name, tensor in self.tensors().items()}, mse_weight)

    def layer_scores(self, mse_weight: float) -> np.ndarray:
        """Each layer's part of the published score of every held-out normal, (N, L)."""
        return layer_scores(self.layer_errors, mse_weight).numpy()

    def tensors(self) -> dict[str, Tensor]:
        """As calibration.safetensors holds it."""
        tensors = {
            "layer_errors": self.layer_errors,
            "peaks": self.peaks,
            "patch_mean": self.reading.mean,
            "patch_std": self.reading.std,
            "layer_weights": self.reading.weights,
            "heatmap_quantiles": self.heatmap_quantiles,
        }
        if self.distances is None or self.gaussian is None:
            return tensors
        return {**tensors, "distances": self.distances, **self.gaussian.packed()}

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
        if not normals or {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
            raise ValueError("its tensors do not fit each other")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("it holds numbers that are not finite")
        return cls(
            tensors["layer_errors"],
            tensors["peaks"],
            PatchReading(tensors["patch_mean"], tensors["patch_std"], tensors["layer_weights"]),
            tensors["heatmap_quantiles"],
            tensors.get("distances"),
            Gaussian.unpacked(tensors) if "distances" in tensors else None,
            kind,
        )


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Write calibration.safetensors."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in calibration.tensors().items()}
    write_atomically(folder / CALIBRATION, lambda path: save_file(tensors, path))


def load_calibration(folder: Path, config: StudentConfig) -> Calibration | None:
    """The calibration of the student of `config`, or None if it was never calibrated.

    Raises:
        UserError: the file is damaged, or lacks what the score reads.
    """
    file = Path(folder) / CALIBRATION
    if not file.is_file():
        return None
    try:
        calibration = Calibration.from_tensors(load_file(file), config.calibration)
        if (calibration.distances is not None) != (config.score == DISTANT_ERROR):
            raise ValueError(f"it was not made for the score {config.score!r}")
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file} is damaged ({reason}); remove it, and run evaluate on the folder to calibrate again"
        ) from None
    return calibration


@torch.inference_mode()
def calibrate(
    student: nn.Module, teacher: Teacher, held_out: HeldOut, train: Tensor, score: str, tile: int
) -> Calibration:
    """Calibrate a student on normals that it was not trained on.

    The p-values of a score are exact where all normals were held out of one network: nothing that a score reads is
    learned from them.

    Args:
        held_out: normals that had no part in training: pairs of a network and the images that it never
            saw. One pair with the student itself, or several where folds of the data were left out in turn.
        train: training images (N, 3, H, W), some of which become pseudo-anomalies to weigh the layers by.
        score: the name in `kdad.storage.layout.SCORE_NAMES` of what will be read.
        tile: see `observe`.
    """
    device = next(student.parameters()).device
    geometry = MapGeometry(teacher.preprocessing, tile)

    def observed() -> Iterator[Observation]:
        for network, images in held_out:
            yield from (observe(network, teacher, batch.to(device), tile) for batch in in_batches(images))

    mean, std = _moments(observation.maps for observation in observed())
    # Only units come from the held-out normals: what is read, up to a factor and a constant that all images share, does
    # not depend on them, or the p-values of few of them would be too low.
    reading = PatchReading(mean, std, std * _coefficients(student, teacher, train))
    errors, summaries, peaks, levels = [], [], [], []
    for observation in observed():
        combined = geometry.combine(reading.standardise(observation.maps), reading.weights)
        errors.append(observation.errors)
        summaries.append(observation.summary)
        peaks.append(combined.amax((1, 2)))
        levels.append(sampled(combined))
    level = torch.cat(levels).cpu()
    unit = level.std().clamp(min=1e-12)  # so that the heatmap, too, is in standard deviations
    gaussian = _gaussian(teacher, train, device) if score == DISTANT_ERROR else None
    return Calibration(
        layer_errors=torch.cat(errors).cpu(),
        peaks=torch.cat(peaks).cpu() / unit,
        reading=PatchReading(mean.cpu(), std.cpu(), reading.weights.cpu() / unit),
        heatmap_quantiles=torch.from_numpy(np.quantile(level / unit, np.linspace(0, 1, 101))).float(),
        distances=None if gaussian is None else gaussian.distance(torch.cat(summaries)).cpu(),
        gaussian=gaussian,
        kind=CROSS_FITTED if len(held_out) > 1 else HELD_OUT,
    )


def _gaussian(teacher: Teacher, train: Tensor, device: torch.device) -> Gaussian:
    """The Gaussian of the teacher's summaries of training images."""
    batches = (batch.to(device) for batch in in_batches(train))
    return Gaussian.fit(teacher.network.summary(teacher(teacher.preprocessing(batch))) for batch in batches)


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


def _coefficients(student: nn.Module, teacher: Teacher, train: Tensor) -> Tensor:
    """The weight of each layer's patch errors (L,) that separates pseudo-anomalies best.

    Learned on training images, evenly chosen, and what is pasted into them.
    """
    device = next(student.parameters()).device
    chosen = train[torch.linspace(0, len(train) - 1, min(len(train), PSEUDO_ANOMALIES)).round().long()]
    mean, std = _moments(observe(student, teacher, batch.to(device), tile=0).maps for batch in in_batches(chosen))
    reading = PatchReading(mean, std.clamp(min=1e-12), torch.ones_like(mean))
    pasted, masks = map(torch.from_numpy, blend_in(chosen.permute(0, 2, 3, 1).contiguous().numpy()))
    points, truth = [], []
    for batch, mask in zip(pasted.permute(0, 3, 1, 2).split(64), masks.split(64), strict=True):
        maps = reading.standardise(observe(student, teacher, batch.to(device), tile=0).maps)
        shown = [teacher.preprocessing.to_input(layer, *mask.shape[1:]) for layer in maps]
        points.append(torch.stack([sampled(layer) for layer in shown], 1).cpu())
        truth.append(sampled(mask))
    return layer_weights(torch.cat(points).numpy(), torch.cat(truth).numpy()).to(mean) / reading.std
