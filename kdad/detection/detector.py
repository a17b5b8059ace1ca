"""A trained student ready to judge images: the one path to scores, p-values and heatmaps for all callers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdad.data.images import in_batches
from kdad.detection import conformal
from kdad.detection.calibration import Calibration, largest_distance, load_calibration
from kdad.detection.discrepancy import observe
from kdad.detection.heatmaps import HeatmapRenderer, MapNormalization
from kdad.detection.inputs import to_batch
from kdad.detection.rendering import colour_range
from kdad.detection.tiles import tiler_for
from kdad.devices import accelerator, halving_on_out_of_memory
from kdad.errors import UserError
from kdad.networks.teachers.loading import Teacher, load_teacher
from kdad.scores import Measurement, score_named
from kdad.storage import hub, student_folder
from kdad.storage.operating_point import OperatingPoint, load_operating_point
from kdad.storage.student_config import StudentConfig


@dataclass(frozen=True)
class Prediction:
    """The scores, verdicts and heatmaps of B images of H×W pixels; numpy arrays.

    p-values and verdicts are NaN and False for a student without calibration.

    Args:
        score: the default score, (B,) float32; higher is more anomalous.
        p_value: conformal p-values, (B,) float32.
        is_anomaly: the verdicts at the false-positive rate that was asked for, (B,) bool.
        measurement: what the score and the heatmap are read from.
        size: (H, W).
        renderer: how heatmaps are drawn from patch maps.
    """

    score: np.ndarray
    p_value: np.ndarray
    is_anomaly: np.ndarray
    measurement: Measurement
    size: tuple[int, int]
    renderer: HeatmapRenderer

    def __len__(self) -> int:
        return len(self.score)

    @cached_property
    def heatmap(self) -> np.ndarray:
        """The heatmaps (B, H, W), float32, in standard deviations above a normal patch.

        Without calibration, they are mean patch errors, 0…2.
        """
        return self.heatmap_at(*self.size)

    def heatmap_at(self, height: int, width: int, layer: int | None = None) -> np.ndarray:
        """The heatmaps (B, height, width) at any size: of what the score reads, or of a critical layer, from 0."""
        if layer is None:
            return self.renderer.render_score(self.measurement, height, width).numpy()
        return replace(self.renderer, weights=torch.ones(1)).render([self._patch_maps[layer]], height, width).numpy()

    def student_heatmap_at(self, height: int, width: int) -> np.ndarray:
        """The heatmaps (B, height, width) of the student alone: the patch errors of all critical layers."""
        return self.renderer.render(self._patch_maps, height, width).numpy()

    def distance_map_at(self, index: int, height: int, width: int) -> np.ndarray:
        """The maps (B, height, width) of one of `Measurement.distance_maps`."""
        maps = torch.from_numpy(self.measurement.distance_maps[index])
        return self.renderer.tiler.to_image(maps, height, width).numpy()

    @property
    def _patch_maps(self) -> list[Tensor]:
        return list(map(torch.from_numpy, self.measurement.patch_maps))

    def only(self, index: int) -> "Prediction":
        """The prediction of one image, B = 1."""
        kept = slice(index, index + 1)
        one = {name: getattr(self, name)[kept] for name in ("score", "p_value", "is_anomaly")}
        return replace(self, **one, measurement=self.measurement[kept])

    def to_records(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """One row per image, ready for JSON or a table: `image` (its name), `score`, `p_value` and `is_anomaly`."""
        columns = (names, self.score, self.p_value, self.is_anomaly)
        return [
            {
                "image": name,
                "score": float(score),
                "p_value": None if np.isnan(p_value) else float(p_value),
                "is_anomaly": bool(is_anomaly),
            }
            for name, score, p_value, is_anomaly in zip(*columns, strict=True)
        ]


class Detector:
    """A student, its calibration, and a reference to its teacher.

    Args:
        config: the student's configuration.
        student: its network, in eval mode.
        teacher: the teacher it was trained on; its hash is checked.
        calibration: the statistics of held-out normals, or None for a student that was never calibrated.

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
        self.operating_point: OperatingPoint | None = None
        self.score = score_named(config.score)
        self.tiler = tiler_for(teacher.preprocessing, config.tile_size)
        normalization = MapNormalization.identity(layers) if calibration is None else calibration.normalization
        self._normalization = normalization.to(self.device)
        self.renderer = HeatmapRenderer(self.tiler, self._normalization.weights)
        self._gaussian, self._patches, self._distance_weight = None, None, torch.zeros(1, device=self.device)
        if calibration is not None and calibration.gaussian is not None:
            self._gaussian = calibration.gaussian.to(self.device)
        if calibration is not None and calibration.patches is not None:
            self._patches = calibration.patches.to(self.device)
        if calibration is not None and calibration.distance_weight is not None:
            self._distance_weight = calibration.distance_weight.to(self.device)

    @classmethod
    def load(
        cls,
        folder_or_repo: str | Path,
        *,
        teacher: Teacher | str | None = None,
        device: str = "auto",
        revision: str | None = None,
    ) -> "Detector":
        """Load a student folder or Hub id.

        Args:
            teacher: the teacher, to share one that is loaded, or its name, folder or Hub id; by default, the one that
                the student names, which is not fetched unless it is known by name.
            revision: the branch, tag or commit of a Hub id; by default main.

        Raises:
            UserError: the folder, the weights or the teacher are missing, damaged or do not match.
        """
        folder = hub.resolve(folder_or_repo, revision)
        config = student_folder.load_config(folder)
        device = accelerator(device)
        student = student_folder.load_student(folder, config).to(device)
        if not isinstance(teacher, Teacher):
            teacher = _load_teacher(teacher, folder, config)
        detector = cls(config, student, teacher.to(device), load_calibration(folder, config))
        detector.folder, detector.operating_point = folder, load_operating_point(folder, config.weights_sha256)
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

    def predict(self, images: Any, *, fpr: float | None = None) -> Prediction:
        """Judge images of one size.

        Args:
            images: one or more paths, PIL images, tensors (3, H, W) or arrays (H, W, 3), or a batch of them; see
                `kdad.detection.inputs.to_batch`.
            fpr: the false-positive rate at which `is_anomaly` decides; by default `default_fpr`.

        Raises:
            UserError: the input is no image, sizes differ, or `fpr` cannot be held with so few calibration images.
            WorkFailed: the device does not have memory enough for a single image.
        """
        images = to_batch(images, self.config.max_value)
        parts = [part.numpy() for batch in in_batches(images) for part in halving_on_out_of_memory(self.measure, batch)]
        return self._prediction(Measurement.concatenated(parts), images, fpr)

    def predict_each(self, images: Tensor | Iterable[Tensor], *, fpr: float | None = None) -> Iterator[Prediction]:
        """Judge uint8 images (3, H, W) of any sizes as `predict` does, a few at a time and in their order."""
        for batch in in_batches(images):
            yield self.predict(batch, fpr=fpr)

    def predict_with_features(
        self, images: Tensor, features: Sequence[Tensor], *, fpr: float | None = None
    ) -> Prediction:
        """Judge one batch whose `teacher_features` are known, so that students can share them."""
        return self._prediction(self.measure(images, features).numpy(), images, fpr)

    @torch.inference_mode()
    def teacher_features(self, images: Tensor) -> list[Tensor]:
        """The teacher's features of one batch of uint8 images, or of all their tiles."""
        return self.teacher(self.teacher.preprocessing(self.tiler.split(images.to(self.device))))

    @torch.inference_mode()
    def measure(self, images: Tensor, features: Sequence[Tensor] | None = None) -> Measurement:
        """Measure one batch of uint8 images (B, 3, H, W), on the device; scores and heatmaps follow from it.

        Args:
            features: the `teacher_features` of the images, if they are known.
        """
        observation = observe(self.student, self.teacher, images.to(self.device), self.tiler, features, self._patches)
        maps = self._normalization.standardise(observation.maps)
        peak = self.renderer.combine(maps).amax((1, 2))
        distance = torch.ones_like(peak) if self._gaussian is None else largest_distance(self._gaussian, observation)
        mse_weight = self.config.recipe.mse_weight
        measurement = Measurement(observation.errors, distance, peak, mse_weight, self._distance_weight, tuple(maps))
        if observation.distances is None:
            return measurement
        assert self._patches is not None
        worst, local = self._patches.worst_places(observation.distances), observation.distances
        return replace(measurement, local_distances=worst.unbind(1), distance_maps=local.unbind(1))

    @cached_property
    def normals(self) -> Measurement | None:
        """The measurement of the held-out normals, without maps; None without calibration."""
        return None if self.calibration is None else self.calibration.measurement(self.config.recipe.mse_weight)

    @cached_property
    def calibration_scores(self) -> np.ndarray | None:
        """The default score of every held-out normal (N,), or None without calibration."""
        return None if self.normals is None else self.score(self.normals)

    @property
    def default_fpr(self) -> float:
        """The false-positive rate of verdicts unless another is asked for.

        That of the operating point that is kept with the student, or else 5 %; or the lowest that can be held.
        """
        usual = conformal.DEFAULT_FPR if self.operating_point is None else self.operating_point.fpr
        return usual if self.calibration is None else max(usual, self.lowest_fpr)

    @property
    def lowest_fpr(self) -> float:
        """The lowest false-positive rate that the calibration can hold; 1 without calibration."""
        return conformal.lowest_fpr(0 if self.calibration is None else len(self.calibration))

    def rate(self, fpr: float | None) -> float:
        """The false-positive rate at which verdicts are given: the one asked for, or `default_fpr`."""
        return self.default_fpr if fpr is None else fpr

    def threshold(self, fpr: float | None = None) -> float:
        """The largest score that is still normal at a false-positive rate; infinite without calibration.

        Raises:
            UserError: the rate cannot be held with so few calibration images.
        """
        if self.calibration_scores is None:
            return np.inf
        return conformal.threshold(self.calibration_scores, self.rate(fpr))

    def is_anomaly(self, prediction: Prediction, fpr: float | None = None) -> np.ndarray:
        """The verdicts (B,) at a false-positive rate: scores above the `threshold`; False without calibration."""
        return prediction.score > self.threshold(fpr)

    def guarantee(self, fpr: float) -> str:
        """The promise of a verdict at this false-positive rate, in a sentence; '' without calibration."""
        return (
            "" if self.calibration is None else conformal.guarantee(len(self.calibration), fpr, self.calibration.kind)
        )

    def share_below(self, prediction: Prediction) -> np.ndarray:
        """The share (B,), 0…1, of held-out normals with a lower score; NaN without calibration."""
        if self.calibration_scores is None:
            return np.full(len(prediction), np.nan)
        return conformal.share_below(prediction.score, self.calibration_scores)

    def deviations(self, prediction: Prediction) -> np.ndarray:
        """The scores (B,) in standard deviations above the mean of held-out normals; NaN without calibration."""
        if self.calibration_scores is None:
            return np.full(len(prediction), np.nan)
        return conformal.standardised(prediction.score, self.calibration_scores)

    @property
    def heatmap_threshold(self) -> float:
        """The value that 99 % of the patches of held-out normals stay below; infinite without calibration."""
        return np.inf if self.calibration is None else float(self.calibration.heatmap_quantiles[99])

    @property
    def colour_range(self) -> tuple[float, float]:
        """The fixed ends of the heatmap's colour scale, from held-out normals."""
        return colour_range(None if self.calibration is None else self.calibration.heatmap_quantiles.numpy())

    def _prediction(self, measurement: Measurement, images: Tensor, fpr: float | None) -> Prediction:
        height, width = images.shape[-2:]
        score, threshold = self.score(measurement), self.threshold(fpr)
        p_value = np.full(len(score), np.nan, np.float32)
        if self.calibration_scores is not None:
            p_value = conformal.p_values(score, self.calibration_scores).astype(np.float32)
        renderer = replace(self.renderer, weights=self.renderer.weights.cpu())
        return Prediction(score, p_value, score > threshold, measurement, (height, width), renderer)


def _load_teacher(named: str | None, folder: Path, config: StudentConfig) -> Teacher:
    """Load the teacher of this name, or the one that the student's own files name."""
    name = named or student_folder.load_local(folder).get("teacher", config.teacher)
    return load_teacher(name, image_size=config.image_size, layers=config.layers, allow_download=named is not None)


def _check_teacher(config: StudentConfig, teacher: Teacher) -> None:
    """Raise a `UserError` unless a student of `config` copied exactly this teacher with this preprocessing."""
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
            f"trained with {config.preprocessing}: restore its preprocessor_config.json, or load it at that image size"
        )
