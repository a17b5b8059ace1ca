"""Conformal p-values and thresholds from held-out normals, and what they guarantee. No torch here."""

import numpy as np

from kdad.data.protocol import ENOUGH_TO_CALIBRATE
from kdad.errors import UserError
from kdad.storage.layout import CROSS_FITTED, HELD_OUT, LEFT_OUT, UNKNOWN

DEFAULT_FPR = 0.05
WEAKER = {
    CROSS_FITTED: "Normal images were scored by several helper networks, each on images it had not seen; your images "
    "are scored by the final one. Treat the rate as an estimate.",
    LEFT_OUT: "Each normal image was compared with the others, your images are compared with all of them. Treat the "
    "rate as an estimate.",
    UNKNOWN: "This student's format does not say how they were held out, so no bound is given; train it anew.",
}


def p_values(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Conformal p-values (N,): (1 + number of calibration scores ≥ s) / (n + 1); ties count against the image."""
    calibration = np.sort(np.asarray(calibration))
    at_least = len(calibration) - np.searchsorted(calibration, scores, side="left")
    return (1 + at_least) / (len(calibration) + 1)


def share_below(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """The share (N,) in 0…1 of calibration scores that lie below each score."""
    calibration = np.sort(np.asarray(calibration))
    return np.searchsorted(calibration, scores, side="left") / len(calibration)


def standardised(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """The distance of each score (N,) above the calibration scores' mean, in their standard deviations."""
    calibration = np.asarray(calibration, np.float64)
    return (np.asarray(scores, np.float64) - calibration.mean()) / max(calibration.std(), 1e-12)


def lowest_fpr(normals: int) -> float:
    """The smallest false-positive rate that `normals` calibration images can hold: 1 / (n + 1)."""
    return 1 / (normals + 1)


def held_rates(normals: int) -> np.ndarray:
    """The false-positive rates (n,) that `normals` calibration images can hold exactly: k / (n + 1), ascending."""
    return np.arange(1, normals + 1) / (normals + 1)


def threshold(calibration: np.ndarray, fpr: float) -> float:
    """The largest score that is still normal at false-positive rate `fpr`; anything above it is anomalous.

    A score is above it just when its conformal p-value is ≤ `fpr`: it is the k-th largest
    calibration score, k = floor(fpr · (n + 1)).

    Raises:
        UserError: `fpr` is below `lowest_fpr`, where no score is ever anomalous, or not below 1.
    """
    calibration = np.sort(np.asarray(calibration))
    allowed = np.floor(fpr * (len(calibration) + 1) + 1e-9)
    if not 1 <= allowed <= len(calibration):
        lowest = np.ceil(lowest_fpr(len(calibration)) * 1e4) / 1e4  # rounded up, so that it works when typed in
        raise UserError(
            f"a false-positive rate of {fpr:g} cannot be held with {len(calibration)} calibration images; "
            f"choose one from {lowest:.4f} to below 1"
        )
    return float(calibration[-int(allowed)])


def realised_fpr(normals: int, fpr: float, confidence: float = 0.95) -> tuple[float, float]:
    """The range of the true false-positive rate of a threshold set for `fpr` on `normals` calibration images.

    The realised rate is Beta(k, n + 1 − k) distributed, k = floor(fpr · (n + 1)) (Vovk 2012, arXiv 1209.2673).
    """
    from scipy.special import betaincinv

    k = int(np.floor(fpr * (normals + 1) + 1e-9))
    tail = (1 - confidence) / 2
    return float(betaincinv(k, normals + 1 - k, tail)), float(betaincinv(k, normals + 1 - k, 1 - tail))


def guarantee(normals: int, fpr: float, kind: str) -> str:
    """State what a threshold for `fpr` guarantees, given how many normals there are and how they were held out."""
    if kind == HELD_OUT:
        low, high = realised_fpr(normals, fpr)
        return (
            f"Set on {normals} held-out normals: the true rate lies between {100 * low:.3g} % and {100 * high:.3g} %."
        )
    return f"Set on {normals} normal images. {WEAKER[kind]}"


def warning(normals: int, kind: str) -> str | None:
    """A sentence on what a calibration of few normals, or of a weaker kind, means for verdicts; or None."""
    if kind != HELD_OUT:
        return f"p-values come from {normals} normal images. {WEAKER[kind]}"
    if normals >= ENOUGH_TO_CALIBRATE:
        return None
    return (
        f"only {normals} calibration images: p-values move in steps of {lowest_fpr(normals):.3f}, "
        "so treat verdicts near the threshold with care"
    )
