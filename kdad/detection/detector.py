"""A trained student ready to judge images: scores, p-values and heatmaps, by one path for all callers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdad.data.images import in_batches
from kdad.detection import conformal
from kdad.detection.calibration import Calibration, farthest, load_calibration
from kdad.detection.discrepancy import SCORES, layer_scores
from kdad.detection.heatmaps import MapGeometry, PatchReading
from kdad.detection.inputs import to_batch
from kdad.detection.observation import Observation, observe
from kdad.detection.rendering import colour_range
from kdad.detection.tiles import Tiling
from kdad.devices import accelerator, in_halves, joined
from kdad.errors import UserError
from kdad.networks.teachers import Teacher, teacher_copied, teacher_of_student
from kdad.storage import hub, student_folder
from kdad.storage.student_config import StudentConfig

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
    peak: np.ndarray  # (B,) float32, the highest value of the heatmap
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
        calibration: what held-out normals show, or None for a student that was never calibrated.

    Raises:
        UserError: the teacher or the calibration is not the one that belongs to the student.
    """

    def __init__(self, config: StudentConfig, student: nn.Module, teacher: Teacher, calibration: Calibration | None):
        _check_teacher(config, teacher)
        layers = len(teacher.grids)
        if calibration is not None and calibration.layer_errors.shape[1] != layers:
            raise UserError(
                f"the calibration is of {calibration.layer_errors.shape[1]} layers, the teacher has {layers}"
            )
        self.config, self.student, self.teacher, self.calibration = config, student, teacher, calibration
        self.device = next(student.parameters()).device
        self.folder: Path | None = None
        self._geometry = MapGeometry(teacher.preprocessing, config.tile)
        reading = PatchReading.plain(layers) if calibration is None else calibration.reading
        self._reading = reading.to(self.device)
        self._gaussian, self.distance_weight = None, 0.0
        if calibration is not None and calibration.gaussian is not None:
            self._gaussian = calibration.gaussian.to(self.device)
        if calibration is not None and calibration.distance_weight is not None:
            self.distance_weight = float(calibration.distance_weight)

    @classmethod
    def load(
        cls,
        folder_or_repo: str | Path,
        *,
        teacher: Teacher | None = None,
        device: str = "auto",
        revision: str | None = None,
    ) -> "Detector":
        """Load a student folder or Hub id, with its teacher unless one is given to share.

        Args:
            revision: the branch, tag or commit of a Hub id; by default main.

        Raises:
            UserError: the folder, the weights or the teacher are missing, damaged or do not match.
        """
        folder = hub.resolve(folder_or_repo, revision)
        config = student_folder.load_config(folder)
        device = accelerator(device)
        student = student_folder.load_student(folder, config).to(device)
        teacher = (teacher or _teacher_of(folder, config)).to(device)
        detector = cls(config, student, teacher, load_calibration(folder, config))
        detector.folder = folder
        return detector

    @classmethod
    def from_pretrained(cls, repo_id: str | Path, *, revision: str | None = None, device: str = "auto") -> "Detector":
        """`load`, by the name that users of the Hub know."""
        return cls.load(repo_id, revision=revision, device=device)

    def push_to_hub(self, repo_id: str, *, private: bool = True, commit_message: str | None = None) -> str:
        """Upload the folder that this detector was loaded from; returns the repository's address.

        Raises:
            UserError: it was not loaded from a folder, or see `kdad.storage.hub.push`.
        """
        if self.folder is None:
            raise UserError("a detector that was not loaded has no folder to share; use Detector.load")
        return hub.push(self.folder, repo_id, public=not private, message=commit_message)

    @property
    def tile(self) -> int:
        """The side in pixels of the tiles that it looks at one by one; 0 for whole images."""
        return self.config.tile

    @cached_property
    def calibration_scores(self) -> np.ndarray | None:
        """The default score of every held-out normal (N,), or None without calibration."""
        if self.calibration is None:
            return None
        return self.calibration.scores(self.config.score, self.config.recipe.mse_weight)

    @cached_property
    def calibration_layer_scores(self) -> np.ndarray | None:
        """Each layer's part of the published score of every held-out normal (N, L), or None without calibration."""
        return None if self.calibration is None else self.calibration.layer_scores(self.config.recipe.mse_weight)

    @property
    def colour_range(self) -> tuple[float, float]:
        """The fixed ends of the heatmap's colour scale, from held-out normals."""
        return colour_range(None if self.calibration is None else self.calibration.heatmap_quantiles.numpy())

    def predict(self, images: Any, *, fpr: float | None = None) -> Prediction:
        """Judge images of one size.

        Args:
            images: one or more paths, PIL images, tensors (3, H, W) or arrays (H, W, 3), or a batch of them; see
                `kdad.detection.inputs.to_batch`.
            fpr: the false-positive rate at which `is_anomaly` decides; by default 5 %, or the lowest
                that the calibration can hold.

        Raises:
            UserError: they are no images or differ in size, or `fpr` cannot be held with so few calibration images.
            WorkFailed: the device has not memory enough for a single image.
        """
        parts = [in_halves(self.measured, batch) for batch in in_batches(to_batch(images, self.config.white))]
        return self._prediction(*(tensor.cpu() for tensor in joined(parts)), fpr=fpr)

    def predict_each(self, images: Tensor | Iterable[Tensor], *, fpr: float | None = None) -> Iterator[Prediction]:
        """As `predict` for uint8 images (3, H, W) of any sizes, a few at a time and in their order."""
        for batch in in_batches(images):
            yield self.predict(batch, fpr=fpr)

    def judge(self, features: Sequence[Tensor], images: Tensor, *, fpr: float | None = None) -> Prediction:
        """As `predict` for one batch whose teacher features are already known, so that students can share them."""
        observation = observe(self.student, self.teacher, images.to(self.device), self.tile, features)
        return self._prediction(*(tensor.cpu() for tensor in self._read(images, observation)), fpr=fpr)

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
        maps, weights = [torch.from_numpy(patches) for patches in prediction.patch_maps], self._reading.weights.cpu()
        if layer is not None:
            maps, weights = [maps[layer]], torch.ones(1)
        return self._geometry.to_image(self._geometry.combine(maps, weights), height, width).numpy()

    def measured(self, images: Tensor) -> tuple[Tensor, ...]:
        """What scores and heatmaps are read from, of one batch of uint8 images (B, 3, H, W), on the device.

        The error table (B, L, 2), distances (B,), peaks (B,), heatmaps (B, H, W) and one patch map (B, h, w) per layer.
        """
        return self._read(images, observe(self.student, self.teacher, images.to(self.device), self.tile))

    @torch.inference_mode()
    def _read(self, images: Tensor, observation: Observation) -> tuple[Tensor, ...]:
        """Error table (B, L, 2), distance and peak (B,), heatmap (B, H, W) and one patch map (B, h, w) per layer."""
        maps = self._reading.standardise(observation.maps)
        combined = self._geometry.combine(maps, self._reading.weights)
        heatmap = self._geometry.to_image(combined, *images.shape[-2:])
        distance = combined.new_ones(combined.shape[0])
        if self._gaussian is not None:
            distance = farthest(self._gaussian, observation)
        return observation.errors, distance, combined.amax((1, 2)), heatmap, *maps

    def _prediction(
        self, errors: Tensor, distances: Tensor, peaks: Tensor, heatmap: Tensor, *patch_maps: Tensor, fpr: float | None
    ) -> Prediction:
        mse_weight = self.config.recipe.mse_weight
        measured = {
            "layer_errors": errors.numpy(),
            "distances": distances.numpy(),
            "distance_weight": np.array([self.distance_weight], np.float32),
            "peaks": peaks.numpy(),
        }
        score = SCORES[self.config.score](measured, mse_weight)
        p_value, verdict = self._significance(score, fpr)
        return Prediction(
            score=score,
            p_value=p_value,
            is_anomaly=verdict,
            heatmap=heatmap.numpy(),
            layer_scores=layer_scores(errors, mse_weight).numpy(),
            layer_errors=measured["layer_errors"],
            peak=measured["peaks"],
            distance=measured["distances"],
            patch_maps=tuple(patch_map.numpy() for patch_map in patch_maps),
        )

    def _significance(self, score: np.ndarray, fpr: float | None) -> tuple[np.ndarray, np.ndarray]:
        """p-values (B,) float32 and verdicts (B,) bool."""
        normals = self.calibration_scores
        if normals is None:
            return np.full(len(score), np.nan, np.float32), np.zeros(len(score), bool)
        fpr = max(DEFAULT_FPR, conformal.lowest_fpr(len(normals))) if fpr is None else fpr
        return conformal.p_values(score, normals).astype(np.float32), score > conformal.threshold(normals, fpr)


def _teacher_of(folder: Path, config: StudentConfig) -> Teacher:
    """The teacher that a student names, wherever it is on this machine."""
    place = student_folder.load_local(folder).get("teacher", config.teacher)
    return teacher_of_student(place, config.preprocessing.resize, config.layers)


def _check_teacher(config: StudentConfig, teacher: Teacher) -> None:
    """Raise a `UserError` unless a student of `config` copied just this teacher, through just these pixels."""
    # A student imported from the original code knows only the leading digits, as torchvision does.
    if len(config.teacher_sha256) < 8 or not teacher.sha256.startswith(config.teacher_sha256):
        raise UserError(
            f"teacher {teacher.name!r} has SHA-256 {teacher.sha256[:12]}…, but this student copied one with "
            f"{config.teacher_sha256[:12]}…: their scores would mean nothing; get the original teacher"
        )
    if list(teacher.layers) != config.layers:
        raise UserError(
            f"teacher {teacher.name!r} is read at {', '.join(teacher.layers)}, but this student copied "
            f"{', '.join(config.layers)}: load it with these layers"
        )
    if teacher.preprocessing != config.preprocessing:
        raise UserError(
            f"teacher {teacher.name!r} now prepares its pixels as {teacher.preprocessing}, but this student was "
            f"trained with {config.preprocessing}: restore its preprocessor_config.json, or load it with that side"
        )


def load_with(folder_or_repo: str | Path, teacher: str | None, device: str) -> Detector:
    """As `Detector.load`, with the teacher of this name, folder or Hub id; with the student's own if None."""
    if teacher is None:
        return Detector.load(folder_or_repo, device=device)
    config = student_folder.load_config(hub.resolve(folder_or_repo))
    copied = teacher_copied(teacher, config.preprocessing.resize, config.layers)
    return Detector.load(folder_or_repo, teacher=copied, device=device)
