"""Choose the operating point of least expected cost, and keep it with the student. Choosing imports no torch."""

from pathlib import Path

import numpy as np

from kdad.detection import conformal
from kdad.errors import UserError, one_line
from kdad.evaluation.saved_scores import read_calibration_scores, read_test_scores
from kdad.storage.layout import CONFIG, EVALUATION, upgraded
from kdad.storage.operating_point import Costs, OperatingPoint, remove_operating_point, save_operating_point
from kdad.storage.sealing import read_sealed

DAMAGED = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


def curve(normals: np.ndarray, anomalies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The false-positive rates (n,) that n calibration scores can hold, and the share (n,) of anomalies found at each.

    Args:
        normals: the scores (n,) of the calibration normals.
        anomalies: the scores (m,) of anomalous images.
    """
    thresholds = np.sort(np.asarray(normals))[::-1]  # as `conformal.threshold`: the k-th largest holds k / (n + 1)
    below = np.searchsorted(np.sort(np.asarray(anomalies)), thresholds, side="right")
    return conformal.held_rates(len(thresholds)), 1 - below / len(anomalies)


def least_cost(normals: np.ndarray, anomalies: np.ndarray, costs: Costs) -> tuple[float, float]:
    """The false-positive rate of least expected cost, the lowest of several, and the share of anomalies found at it."""
    rates, found = curve(normals, anomalies)
    best = int(np.argmin(costs.expected(rates, found)))
    return float(rates[best]), float(found[best])


def choose(folder: Path, costs: Costs) -> OperatingPoint:
    """Choose the operating point of a student on its anomalous test images; changes no file.

    Raises:
        UserError: the student is not calibrated, was not evaluated, or its folder is damaged.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no student folder: it holds no {CONFIG}")
    if not (folder / EVALUATION).is_file():
        raise UserError(
            f"{folder} was never tested, and costs need labelled anomalies: add test/good and test/<defect> to its "
            "images and run evaluate on it, or choose the rate yourself with --fpr"
        )
    try:
        config, evaluation = upgraded(read_sealed(folder / CONFIG)), read_sealed(folder / EVALUATION)
        normals = read_calibration_scores(folder, config["score"])
        table = read_test_scores(folder, evaluation, ["anomalous", "score"])
        anomalies = table["score"].to_numpy(np.float64)[table["anomalous"].to_numpy(bool)]
        digests = {name: str(config.get(name, "")) for name in ("weights_sha256", "calibration_sha256")}
    except DAMAGED as error:
        raise UserError(f"{folder} is damaged ({one_line(error)}); run evaluate on it again") from None
    if normals is None:
        raise UserError(f"{folder} is not calibrated, so it has no threshold; run evaluate on it")
    fpr, found = least_cost(normals, anomalies, costs)
    return OperatingPoint(fpr, costs, found, len(anomalies), **digests)


def keep(folder: Path, point: OperatingPoint) -> None:
    """Write an operating point into its student's folder and card; verdicts use its rate from then on."""
    from kdad.storage import student_folder

    config = student_folder.load_config(folder)
    save_operating_point(folder, point)
    student_folder.save_card(folder, config)


def clear(folder: Path) -> None:
    """Remove the operating point from a student's folder and card; verdicts use the usual rate from then on."""
    from kdad.storage import student_folder

    config = student_folder.load_config(folder)
    remove_operating_point(folder)
    student_folder.save_card(folder, config)
