"""Evaluate a finished student: reads the test set once, for figures and raw scores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kdad.data.datasets import public_name
from kdad.data.images import digest_of
from kdad.data.task import Labelled, Task
from kdad.detection.calibration import calibrate, fit_statistics, save_calibration
from kdad.detection.detector import Detector, Prediction
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.files import sha256_of, write_atomically, write_json, write_text
from kdad.networks.teachers.provenance import label_overlap
from kdad.progress import TESTING, Stage, advance
from kdad.scores import GAUSSIAN, NEAREST, Measurement, last_layer_error
from kdad.storage import layout, student_folder
from kdad.storage.sealing import sealed
from kdad.storage.student_config import StudentConfig

IMAGE, IMAGE_WITH_MASK = 2.0, 2.5  # costs of one image, in looks of a teacher at one
HALF = 0.5 - 1e-4  # of a pixel, in single precision
MAX_MAP_SIZE = 256  # pixels a side on which heatmaps are compared with masks


@dataclass(frozen=True)
class Evaluation:
    """The result of a student on a test part.

    Args:
        figures: as `evaluate --json` prints them.
        detector: the student, calibrated if it was not and the task is its own.
        own: whether the task is the one that the student was trained for, on the same images.
    """

    figures: dict[str, Any]
    detector: Detector
    own: bool
    _judged: "_Judged"
    _test: Labelled

    def save(self, folder: Path) -> None:
        """Write figures, raw scores and card into the student's folder.

        Raises:
            UserError: the figures are of another task than the student's own, so they do not belong there.
        """
        if not self.own:
            raise UserError(f"figures of {self.figures['dataset']} do not belong into {folder}: it has another task")
        if self.detector.calibration is not None and not (folder / layout.CALIBRATION).is_file():
            digest = save_calibration(folder, self.detector.calibration)
            student_folder.save_config(folder, replace(self.detector.config, calibration_sha256=digest))
        write_atomically(folder / layout.SCORES_TABLE, lambda path: _write_scores(path, self._judged, self._test))
        files = [folder / layout.SCORES_TABLE]
        if self._judged.masks:
            write_text(folder / layout.PIXEL_CURVES, _curves_as_csv(self._judged))
            files.append(folder / layout.PIXEL_CURVES)
        digests = {file.name: sha256_of([file]) for file in files}
        write_json(folder / layout.EVALUATION, sealed({**self.figures, "files_sha256": digests}))
        student_folder.save_card(folder, self.detector.config)


def evaluate(task: Task, detector: Detector) -> Evaluation:
    """Evaluate a detector on the test part of `task`; changes neither the detector nor any file.

    A student that was never calibrated is calibrated first, if the task is its own.

    Raises:
        UserError: the task has no labelled test images of both kinds.
    """
    own = is_own(task, detector.config)
    if own and detector.calibration is None:
        detector = _calibrated(detector, task)
    test = task.test
    if test is None:
        raise UserError(
            f"{task.dataset} has no test images to evaluate on: put normal ones into test/good and anomalous ones "
            "into test/<kind>"
        )
    judged = _Judged(detector, test)
    return Evaluation(_figures(judged, task, test, detector), detector, own, judged, test)


def testing(task: Task) -> list[Stage]:
    """The stage of an evaluation on the test part of `task`; none without one."""
    if task.test is None:
        return []
    images, cost = len(task.test.images), IMAGE if task.test.masks is None else IMAGE_WITH_MASK
    return [Stage(TESTING, images, cost)]


def is_own(task: Task, config: StudentConfig) -> bool:
    """Whether a student was trained for this very task, on the same images."""
    if (public_name(task.dataset), task.normal_class) != (public_name(config.dataset), config.normal_class):
        return False
    return config.images_sha256 in ("", task.fingerprint("train"))


def _calibrated(detector: Detector, task: Task) -> Detector:
    """The same student, calibrated on the task's held-out normals."""
    student, teacher, config = detector.student, detector.teacher, detector.config
    fitted = fit_statistics(student, teacher, task, config.score)
    calibration = calibrate(fitted, teacher, [(fitted, task.calibration)], task.train, config.score, config.tile_size)
    return Detector(config, student, teacher, calibration)


class _Judged:
    """The scores of all test images, and heatmaps small enough to keep where there are masks."""

    def __init__(self, detector: Detector, test: Labelled):
        self.heatmaps: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []
        self.anomalous: list[bool] = []
        scores, measurements, first = [], [], 0
        learned = detector.config.learned_normals
        self.learned: list[bool] = []  # whether the student was told that a test image is normal
        for prediction in detector.predict_each(self._noted(test.images, learned) if learned else test.images):
            scores.append(prediction.score)
            measurements.append(replace(prediction.measurement, patch_maps=(), distance_maps=()))
            if test.masks is not None:
                masks = [test.masks[first + index] for index in range(len(prediction))]
                self._keep(prediction, masks, test.anomalous[first : first + len(prediction)].tolist())
            first += len(prediction)
            advance(TESTING, len(prediction))
        self.score, self.measurement = np.concatenate(scores), Measurement.concatenated(measurements)

    def _noted(self, images: Iterable[Tensor], learned: frozenset[str]) -> Iterator[Tensor]:
        """The images, of each of which it is noted whether it was learned."""
        for image in images:
            self.learned.append(digest_of(image) in learned)
            yield image

    def _keep(self, prediction: Prediction, masks: Sequence[np.ndarray | None], anomalous: list[bool]) -> None:
        height, width = shrunk(*prediction.size)
        heatmaps = prediction.heatmap_at(height, width)
        for heatmap, mask, is_anomalous in zip(heatmaps, masks, anomalous, strict=True):
            if mask is not None:
                self.heatmaps.append(heatmap)
                self.masks.append(shrunk_mask(mask, height, width))
                self.anomalous.append(is_anomalous)

    def without_good(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Heatmaps and masks of the anomalous images alone."""
        kept = np.flatnonzero(self.anomalous)
        return [self.heatmaps[index] for index in kept], [self.masks[index] for index in kept]


def shrunk(height: int, width: int) -> tuple[int, int]:
    """The size of an image whose longer side is at most `MAX_MAP_SIZE`."""
    scale = min(1.0, MAX_MAP_SIZE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrunk_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask (H, W) at a smaller size: pixels covered by half, and of a region without one, those covered most."""
    from PIL import Image
    from scipy.ndimage import label

    if mask.shape == (height, width):
        return mask
    if not mask.any():
        return np.zeros((height, width), bool)
    covered = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    smaller = np.asarray(covered) >= HALF
    regions, _ = label(mask, structure=np.ones((3, 3)))
    rows, columns = np.nonzero(mask)
    region, place = regions[rows, columns], (rows * height // len(mask)) * width + columns * width // mask.shape[1]
    lost = ~np.isin(region, region[smaller.flat[place]])
    if lost.any():
        pairs, counts = np.unique(np.stack([region[lost], place[lost]]), axis=1, return_counts=True)
        most = np.zeros(region.max() + 1, int)
        np.maximum.at(most, pairs[0], counts)
        smaller.flat[pairs[1][counts == most[pairs[0]]]] = True
    return smaller


def pixel_figures(heatmaps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, float]:
    """Localisation figures: pixel AUROC, PRO up to 30 % false positives, and average precision."""
    auroc, average_precision = metrics.pixel_ranking(heatmaps, masks)
    return {"pixel_auroc": auroc, "pro": metrics.pro(heatmaps, masks), "pixel_ap": average_precision}


def _figures(judged: _Judged, task: Task, test: Labelled, detector: Detector) -> dict[str, Any]:
    config, anomalous = detector.config, test.anomalous.numpy()
    figures = {
        "auroc": metrics.auroc(judged.score, anomalous),
        "auroc_mkd": metrics.auroc(judged.measurement.published_score, anomalous),
    }
    if any(mask.any() for mask in judged.masks):
        figures |= pixel_figures(judged.heatmaps, judged.masks)
        heatmaps, masks = judged.without_good()
        if not all(mask.all() for mask in masks):  # of images that are defects all over, no pixel is normal
            alone = pixel_figures(heatmaps, masks)
            figures |= {f"{name}_without_good": value for name, value in alone.items()}
    figures["auroc_peak"] = metrics.auroc(judged.measurement.peak, anomalous)
    figures["auroc_last_layer"] = metrics.auroc(last_layer_error(judged.measurement.layer_errors), anomalous)
    return {
        **{name: round(value, 6) for name, value in figures.items()},
        "score": config.score,
        "split": "test",
        "dataset": public_name(task.dataset),
        "normal_class": task.normal_class,
        "kinds": list(task.kinds),
        "seed": config.seed,
        "teacher": config.teacher,
        "label_overlap": label_overlap(detector.teacher.trained_on, task.dataset),
        "weights_sha256": config.weights_sha256,
        "test_images_sha256": task.fingerprint("test"),
        "n_normal": int((~anomalous).sum()),
        "n_anomalous": int(anomalous.sum()),
        "calibration": config.calibration,
        **_learned(judged, anomalous),
        "n_calibration": 0 if detector.calibration is None else len(detector.calibration),
    }


def _learned(judged: _Judged, anomalous: np.ndarray) -> dict[str, int]:
    """How many test images a student was told to be normal, and how many of these are labelled anomalous."""
    if not judged.learned:
        return {}
    learned = np.array(judged.learned)
    return {"n_learned": int(learned.sum()), "n_learned_anomalous": int((learned & anomalous).sum())}


def _write_scores(file: Path, judged: _Judged, test: Labelled) -> None:
    """Write scores.parquet: exact scores, and in half precision, so that a clone stays small, what they read."""
    import pandas

    labels, anomalous = test.labels.numpy().astype(np.int16), test.anomalous.numpy()
    table = {"index": np.arange(len(labels), dtype=np.int32), "label": labels, "anomalous": anomalous}
    layer_errors = judged.measurement.layer_errors
    measured = {
        f"layer{layer + 1}_{name}": layer_errors[:, layer, column]
        for layer in range(layer_errors.shape[1])
        for column, name in enumerate(("cosine", "mse"))
    } | {"distance": judged.measurement.distance, "peak": judged.measurement.peak}
    parts = zip((NEAREST, GAUSSIAN), judged.measurement.local_distances, strict=False)  # none where none is read
    measured |= {part.name: values for part, values in parts}
    measured = {name: values.clip(max=np.finfo(np.float16).max).astype(np.float16) for name, values in measured.items()}
    scores = {"score": judged.score, "score_mkd": judged.measurement.published_score}
    pandas.DataFrame({**table, **measured, **scores}).to_parquet(
        file,
        index=False,
        compression="brotli",
        compression_level=11,
        use_dictionary=["label"],
        use_byte_stream_split=[*measured, *scores],
        column_encoding={"index": "DELTA_BINARY_PACKED"},
        write_statistics=False,
    )


def _curves_as_csv(judged: _Judged) -> str:
    import pandas

    columns = ("threshold", "false_alarms", "found", "overlap")
    curves = metrics.pixel_curves(judged.heatmaps, judged.masks)
    return pandas.DataFrame(dict(zip(columns, curves, strict=True))).to_csv(index=False, float_format="%.5g")
