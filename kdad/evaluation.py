"""Reading the test set, once, at the end: figures and raw scores of a finished student."""

from pathlib import Path

import numpy as np

from kdad import metrics, store
from kdad.catalogue import label_overlap
from kdad.data import DefectsTask, Task
from kdad.detector import Detector, Prediction, calibrate
from kdad.discrepancy import DEFAULT_SCORE, SCORED_LAYERS
from kdad.files import write_atomically, write_json

FEW_NORMALS = 100


def evaluate(folder: Path, task: Task | DefectsTask, detector: Detector) -> dict:
    """Figures of `detector` on the test part of `task`, as `evaluate --json` prints them.

    They are saved in the student's folder, with the raw scores, if the task is the student's own.
    A student that was never calibrated is calibrated first.
    """
    config, own = detector.config, task.dataset == detector.config.dataset
    if own and detector.calibration is None:
        detector.calibration = calibrate(detector.student, detector.teacher, task.calibration)
        store.save_calibration(folder, detector.calibration)
    prediction = detector.predict(task.test.images)
    figures = _figures(prediction, task, detector)
    if own:
        write_atomically(folder / store.SCORES_FILE, lambda path: _write_scores(path, prediction, task))
        write_json(folder / store.EVALUATION, figures)
        store.save_card(folder, config)
    return figures


def _figures(prediction: Prediction, task: Task | DefectsTask, detector: Detector) -> dict:
    test, config = task.test, detector.config
    anomalous = test.anomalous.numpy()
    figures = {
        "auroc": metrics.auroc(prediction.score, anomalous),
        "auroc_mkd": metrics.auroc(published_score(prediction), anomalous),
    }
    if test.masks is not None:
        figures["pixel_auroc"] = metrics.pixel_auroc(prediction.heatmap, test.masks.numpy())
        figures["pro"] = metrics.pro(prediction.heatmap, test.masks.numpy())
    return {
        **{name: round(value, 6) for name, value in figures.items()},
        "score": DEFAULT_SCORE,
        "split": "test",
        "dataset": task.dataset,
        "normal_class": task.normal_class,
        "seed": config.seed,
        "teacher": config.teacher,
        "label_overlap": label_overlap(detector.teacher.trained_on, task.dataset),
        "n_normal": int((~anomalous).sum()),
        "n_anomalous": int(anomalous.sum()),
        "n_calibration": 0 if detector.calibration is None else len(detector.calibration["layer_errors"]),
    }


def published_score(prediction: Prediction) -> np.ndarray:
    """The `mkd` score (B,) of a prediction: its last three layers summed."""
    return prediction.layer_scores[:, -SCORED_LAYERS:].sum(1)


def _write_scores(file: Path, prediction: Prediction, task: Task | DefectsTask) -> None:
    """Write scores.parquet: exact scores, and layer errors in half precision, so that a clone stays small."""
    import pandas

    labels, anomalous = task.test.labels.numpy().astype(np.int16), task.test.anomalous.numpy()
    table = {"index": np.arange(len(prediction), dtype=np.int32), "label": labels, "anomalous": anomalous}
    errors = {
        f"layer{layer + 1}_{name}": prediction.layer_errors[:, layer, column]
        .clip(max=np.finfo(np.float16).max)
        .astype(np.float16)
        for layer in range(prediction.layer_errors.shape[1])
        for column, name in enumerate(("cosine", "mse"))
    }
    scores = {"score": prediction.score, "score_mkd": published_score(prediction)}
    packed = {"use_dictionary": ["label"], "column_encoding": {"index": "DELTA_BINARY_PACKED"}}
    pandas.DataFrame({**table, **errors, **scores}).to_parquet(
        file, index=False, compression="zstd", use_byte_stream_split=[*errors, *scores], **packed
    )


def warn_if_few(n_calibration: int) -> str | None:
    """A sentence on what few calibration images mean, or None."""
    if n_calibration >= FEW_NORMALS:
        return None
    return (
        f"only {n_calibration} calibration images: p-values move in steps of {metrics.lowest_fpr(n_calibration):.3f}, "
        "so treat verdicts near the threshold with care"
    )
