"""A trained student ready to judge images: scores, p-values and heatmaps, by one path for all callers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdad import metrics, store
from kdad.devices import accelerator
from kdad.discrepancy import DEFAULT_SCORE, SCORES, layer_errors, layer_scores, patch_errors
from kdad.errors import UserError, WorkFailed
from kdad.heatmaps import colour_range, combine, in_normal_units
from kdad.images import batch_size
from kdad.store import StudentConfig
from kdad.teachers import Teacher, load_teacher

DEFAULT_FPR = 0.05


@dataclass(frozen=True)
class Prediction:
    """What a detector says of B images of H×W pixels; numpy arrays.

    `heatmap` is in units of the normals' mean patch error: 1 is what a normal patch shows.
    p-value and verdict are NaN and False for a student without calibration.
    """

    score: np.ndarray  # (B,) float32, the default score
    p_value: np.ndarray  # (B,) float32
    is_anomaly: np.ndarray  # (B,) bool, at the false-positive rate that was asked for
    heatmap: np.ndarray  # (B, H, W) float32
    layer_scores: np.ndarray  # (B, L) float32, each layer's part of the published score
    layer_errors: np.ndarray  # (B, L, 2) float32, the error table
    patch_maps: tuple[np.ndarray, ...]  # one (B, h, w) float32 per critical layer, in the unit of `heatmap`

    def __len__(self) -> int:
        return len(self.score)


@torch.inference_mode()
def calibrate(student: nn.Module, teacher: Teacher, normals: Tensor) -> dict[str, Tensor]:
    """What held-out normals (N, 3, H, W) say of a student.

    Returns `layer_errors` (N, L, 2), `patch_scale` (L,), the mean patch error of each layer, and
    `heatmap_quantiles` (101,), the percentiles of the combined heatmap, for colour scales.
    """
    errors, maps = [], []
    for batch in normals.split(batch_size(*normals.shape[2:])):
        pixels = teacher.preprocessing(batch.to(next(student.parameters()).device))
        copied, taught = student(pixels), teacher(pixels)
        errors.append(layer_errors(copied, taught))
        maps.append(patch_errors(copied, taught, teacher.prefix, teacher.grids))
    scale = torch.stack([torch.cat(layer).mean() for layer in zip(*maps, strict=True)])
    side = teacher.preprocessing.crop
    combined = np.concatenate(
        [combine(batch, scale, side).cpu().numpy().ravel()[:: max(1, side // 32)] for batch in maps]
    )
    quantiles = torch.from_numpy(np.quantile(combined, np.linspace(0, 1, 101))).float()
    return {"layer_errors": torch.cat(errors).cpu(), "patch_scale": scale.cpu(), "heatmap_quantiles": quantiles}


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
        return cls(config, student, teacher, store.load_calibration(folder))

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    @property
    def calibration_scores(self) -> np.ndarray | None:
        """The default score of every calibration normal (N,), or None."""
        if self.calibration is None:
            return None
        return self._score(self.calibration["layer_errors"]).numpy()

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
        batch = to_tensor(images)
        parts = [self._judge_batch(part) for part in batch.split(batch_size(*batch.shape[2:]))]
        return self._prediction(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)), fpr=fpr)

    def judge(self, teacher_features: Sequence[Tensor], images: Tensor, *, fpr: float | None = None) -> Prediction:
        """As `predict` for one batch whose teacher features are already known, so that students can share them."""
        compared = self._compare(teacher_features, images.to(self.device))
        return self._prediction(*(tensor.cpu() for tensor in compared), fpr=fpr)

    @torch.inference_mode()
    def teacher_features(self, images: Tensor) -> list[Tensor]:
        """The teacher's features of one batch of uint8 images, for `judge`."""
        return self.teacher(self.teacher.preprocessing(images.to(self.device)))

    @torch.inference_mode()
    def heatmap(self, prediction: Prediction, height: int, width: int, layer: int | None = None) -> np.ndarray:
        """The heatmap (B, height, width) of a prediction at any size, of one critical layer (from 0) or of all."""
        maps = [torch.from_numpy(patches) for patches in prediction.patch_maps]
        maps = maps if layer is None else [maps[layer]]
        preprocessing = self.teacher.preprocessing
        return preprocessing.to_input(combine(maps, torch.ones(len(maps)), preprocessing.crop), height, width).numpy()

    def _judge_batch(self, images: Tensor) -> tuple[Tensor, ...]:
        """As `_compare`, in halves where the device's memory runs out."""
        try:
            images = images.to(self.device)
            return self._compare(self.teacher_features(images), images)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise WorkFailed("the device ran out of memory on a single image; use --device cpu") from None
        halves = [self._judge_batch(half) for half in images.chunk(2)]
        return tuple(torch.cat(column) for column in zip(*halves, strict=True))

    @torch.inference_mode()
    def _compare(self, taught: Sequence[Tensor], images: Tensor) -> tuple[Tensor, ...]:
        """Error table (B, L, 2), heatmap (B, H, W) and one patch map (B, h, w) per layer, on the device."""
        preprocessing = self.teacher.preprocessing
        copied = self.student(preprocessing(images))
        maps = patch_errors(copied, taught, self.teacher.prefix, self.teacher.grids)
        combined = combine(maps, self._patch_scale, preprocessing.crop)
        heatmap = preprocessing.to_input(combined, *images.shape[-2:])
        return layer_errors(copied, taught), heatmap, *in_normal_units(maps, self._patch_scale)

    @property
    def _patch_scale(self) -> Tensor:
        if self.calibration is None:
            return torch.ones(len(self.teacher.grids), device=self.device)
        return self.calibration["patch_scale"].to(self.device)

    def _score(self, errors: Tensor) -> Tensor:
        return SCORES[DEFAULT_SCORE](errors, self.config.recipe.mse_weight)

    def _prediction(self, errors: Tensor, heatmap: Tensor, *patch_maps: Tensor, fpr: float | None) -> Prediction:
        score = self._score(errors).numpy()
        p_value, verdict = self._significance(score, fpr)
        parts = layer_scores(errors, self.config.recipe.mse_weight).numpy()
        patches = tuple(patch_map.numpy() for patch_map in patch_maps)
        return Prediction(score, p_value, verdict, heatmap.numpy(), parts, errors.numpy(), patches)

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
