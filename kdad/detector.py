"""A trained student ready to judge images: scores, p-values and heatmaps, by one path for all callers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdad import metrics, store
from kdad.calibration import Observation, combined_map, observe
from kdad.devices import accelerator
from kdad.discrepancy import SCORES, layer_scores
from kdad.errors import UserError, WorkFailed
from kdad.heatmaps import PatchReading, colour_range
from kdad.images import in_batches
from kdad.normality import Gaussian
from kdad.preprocessing import resample
from kdad.store import StudentConfig
from kdad.teachers import Teacher, load_teacher
from kdad.tiles import Tiling

DEFAULT_FPR = 0.05


@dataclass(frozen=True)
class Prediction:
    """What a detector says of B images of H×W pixels; numpy arrays.

    `heatmap` is in standard deviations above a normal patch (of a student without calibration: the
    mean patch error, 0…2). p-value and verdict are NaN and False for a student without calibration.
    """

    score: np.ndarray  # (B,) float32, the default score
    p_value: np.ndarray  # (B,) float32
    is_anomaly: np.ndarray  # (B,) bool, at the false-positive rate that was asked for
    heatmap: np.ndarray  # (B, H, W) float32
    layer_scores: np.ndarray  # (B, L) float32, each layer's part of the published score
    layer_errors: np.ndarray  # (B, L, 2) float32, the error table
    distance: np.ndarray  # (B,) float32, how far the teacher sees the image from normals; 1 where that is not scored
    patch_maps: tuple[np.ndarray, ...]  # one (B, h, w) float32 per critical layer, standardised patch errors

    def __len__(self) -> int:
        return len(self.score)


class Detector:
    """A student, its calibration, and a reference to its teacher.

    Args:
        config: what the student is.
        student: its network, in eval mode.
        teacher: the teacher it was trained on; its hash is checked.
        calibration: as `calibrate` returns it, or None.
    """

    def __init__(
        self, config: StudentConfig, student: nn.Module, teacher: Teacher, calibration: dict[str, Tensor] | None
    ):
        # A student imported from the original code knows only the leading digits, as torchvision does.
        if len(config.teacher_sha256) < 8 or not teacher.sha256.startswith(config.teacher_sha256):
            raise UserError(
                f"teacher {teacher.name!r} has SHA-256 {teacher.sha256[:12]}…, but this student copied one with "
                f"{config.teacher_sha256[:12]}…: their scores would mean nothing; get the original teacher"
            )
        if teacher.preprocessing != config.preprocessing:
            raise UserError(
                f"teacher {teacher.name!r} now prepares its pixels as {teacher.preprocessing}, but this student was "
                f"trained with {config.preprocessing}: restore its preprocessor_config.json"
            )
        self.config, self.student, self.teacher, self.calibration = config, student, teacher, calibration

    @classmethod
    def load(cls, folder_or_repo: str | Path, *, teacher: Teacher | None = None, device: str = "auto") -> "Detector":
        """Load a student folder or Hub id, with its teacher unless one is given to share.

        Raises:
            UserError: the folder, the weights or the teacher are missing, damaged or do not match.
        """
        folder = store.resolve(folder_or_repo)
        config = store.load_config(folder)
        device = accelerator(device)
        student = store.load_student(folder, config).to(device)
        teacher = (teacher or load_teacher(config.teacher)).to(device)
        return cls(config, student, teacher, store.load_calibration(folder, config))

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    @property
    def calibration_scores(self) -> np.ndarray | None:
        """The default score of every calibration normal (N,), or None."""
        if self.calibration is None:
            return None
        return self._score(self.calibration)

    @property
    def calibration_layer_scores(self) -> np.ndarray | None:
        """Each layer's part of the published score for every calibration normal (N, L), or None."""
        if self.calibration is None:
            return None
        return layer_scores(self.calibration["layer_errors"], self.config.recipe.mse_weight).numpy()

    @property
    def colour_range(self) -> tuple[float, float]:
        """The fixed ends of the heatmap's colour scale, from calibration normals."""
        return colour_range(None if self.calibration is None else self.calibration["heatmap_quantiles"].numpy())

    def predict(self, images: Tensor | np.ndarray | Sequence, *, fpr: float | None = None) -> Prediction:
        """Judge images of one size: a uint8 tensor (B, 3, H, W), or a sequence of PIL images or (H, W, 3) arrays.

        Args:
            images: any number of images of equal size.
            fpr: the false-positive rate at which `is_anomaly` decides; by default 5 %, or the lowest
                that the calibration can hold.

        Raises:
            UserError: the images differ in size, or `fpr` cannot be held with so few calibration images.
        """
        parts = [self._judge_batch(part) for part in in_batches(to_tensor(images))]
        return self._prediction(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)), fpr=fpr)

    def predict_each(self, images: Tensor | Iterable[Tensor], *, fpr: float | None = None) -> Iterator[Prediction]:
        """As `predict` for uint8 images (3, H, W) of any sizes, a few at a time and in their order."""
        for batch in in_batches(images):
            yield self.predict(batch, fpr=fpr)

    def judge(self, taught: Sequence[Tensor], images: Tensor, *, fpr: float | None = None) -> Prediction:
        """As `predict` for one batch whose teacher features are already known, so that students can share them."""
        judged = self._read(images, observe(self.student, self.teacher, images.to(self.device), self.tile, taught))
        return self._prediction(*(tensor.cpu() for tensor in judged), fpr=fpr)

    @torch.inference_mode()
    def teacher_features(self, images: Tensor) -> list[Tensor]:
        """The teacher's features of one batch of uint8 images, or of all their tiles, for `judge`."""
        preprocessing = self.teacher.preprocessing
        if self.tile:
            images = Tiling.over(images, self.tile, preprocessing).cut(images)
        return self.teacher(preprocessing(images.to(self.device)))

    @torch.inference_mode()
    def heatmap(self, prediction: Prediction, height: int, width: int, layer: int | None = None) -> np.ndarray:
        """The heatmap (B, height, width) of a prediction at any size, of one critical layer (from 0) or of all."""
        maps = [torch.from_numpy(patches) for patches in prediction.patch_maps]
        if layer is not None:
            return self._to_input(self._combine([maps[layer]], torch.ones(1)), height, width).numpy()
        return self._to_input(self._combine(maps, self._reading.weights.cpu()), height, width).numpy()

    def _judge_batch(self, images: Tensor) -> tuple[Tensor, ...]:
        """As `_read`, in halves where the device's memory runs out."""
        try:
            return self._read(images, observe(self.student, self.teacher, images.to(self.device), self.tile))
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise WorkFailed("the device ran out of memory on a single image; use --device cpu") from None
        halves = [self._judge_batch(half) for half in images.chunk(2)]
        return tuple(torch.cat(column) for column in zip(*halves, strict=True))

    @torch.inference_mode()
    def _read(self, images: Tensor, seen: Observation) -> tuple[Tensor, ...]:
        """Error table (B, L, 2), distance and peak (B,), heatmap (B, H, W) and one patch map (B, h, w) per layer."""
        maps = self._reading.standardise(seen.maps)
        combined = self._combine(maps, self._reading.weights)
        heatmap = self._to_input(combined, *images.shape[-2:])
        return seen.errors, self._distance(seen.summary), combined.amax((1, 2)), heatmap, *maps

    def _distance(self, summary: Tensor) -> Tensor:
        gaussian = self._gaussian
        return summary.new_ones(len(summary)) if gaussian is None else gaussian.distance(summary)

    def _combine(self, maps: list[Tensor], weights: Tensor) -> Tensor:
        return combined_map(maps, weights, self.teacher.preprocessing.crop, self.tile)

    def _to_input(self, combined: Tensor, height: int, width: int) -> Tensor:
        """A map as `_combine` makes it at the size of the image, or any other."""
        if self.tile:
            return resample(combined[:, None], height, width, "bilinear")[:, 0]
        return self.teacher.preprocessing.to_input(combined, height, width)

    @property
    def tile(self) -> int:
        """The side in pixels of the tiles that it looks at one by one; 0 for whole images."""
        return self.config.tile

    @property
    def _reading(self) -> PatchReading:
        if self.calibration is None:
            return PatchReading.plain(len(self.teacher.grids), self.device)
        names = ("patch_mean", "patch_std", "layer_weights")
        return PatchReading(*(self.calibration[name].to(self.device) for name in names))

    @property
    def _gaussian(self) -> Gaussian | None:
        """What distances are measured by, where the score asks for it."""
        if self.calibration is None or "distances" not in self.calibration:
            return None
        return Gaussian.unpacked({name: tensor.to(self.device) for name, tensor in self.calibration.items()})

    def _score(self, seen: Mapping[str, Tensor]) -> np.ndarray:
        arrays = {name: tensor.numpy() for name, tensor in seen.items()}
        return SCORES[self.config.score](arrays, self.config.recipe.mse_weight)

    def _prediction(
        self, errors: Tensor, distances: Tensor, peaks: Tensor, heatmap: Tensor, *patch_maps: Tensor, fpr: float | None
    ) -> Prediction:
        score = self._score({"layer_errors": errors, "distances": distances, "peaks": peaks})
        p_value, verdict = self._significance(score, fpr)
        parts = layer_scores(errors, self.config.recipe.mse_weight).numpy()
        patches = tuple(patch_map.numpy() for patch_map in patch_maps)
        return Prediction(score, p_value, verdict, heatmap.numpy(), parts, errors.numpy(), distances.numpy(), patches)

    def _significance(self, score: np.ndarray, fpr: float | None) -> tuple[np.ndarray, np.ndarray]:
        normals = self.calibration_scores
        if normals is None:
            return np.full(len(score), np.nan, np.float32), np.zeros(len(score), bool)
        fpr = max(DEFAULT_FPR, metrics.lowest_fpr(len(normals))) if fpr is None else fpr
        return metrics.p_values(score, normals).astype(np.float32), score > metrics.threshold(normals, fpr)


def to_tensor(images: Tensor | np.ndarray | Sequence) -> Tensor:
    """One batch uint8 (B, 3, H, W) from a tensor of that shape, or a sequence of PIL images or (H, W, 3) arrays.

    Raises:
        UserError: no image, sizes that differ, or values that are not uint8.
    """
    if isinstance(images, Tensor):
        batch = images
    elif len(images) == 0:
        raise UserError("no image to judge")
    else:
        arrays = [np.asarray(image) for image in images]
        if len({array.shape for array in arrays}) > 1:
            raise UserError("predict takes images of one size; call it once for every size")
        batch = torch.from_numpy(np.stack(arrays))
        batch = batch.permute(0, 3, 1, 2) if batch.ndim == 4 else batch
    if batch.ndim != 4 or batch.shape[1] != 3 or batch.dtype != torch.uint8 or batch.numel() == 0:
        raise UserError(f"images must be uint8 (B, 3, H, W), not {batch.dtype} {tuple(batch.shape)}")
    return batch
