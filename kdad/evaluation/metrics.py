"""Ranking metrics, computed by scikit-learn; every function takes numpy arrays."""

from collections.abc import Sequence

import numpy as np

from kdad.errors import UserError


def _both_classes(scores: np.ndarray, anomalous: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        raise UserError("AUROC needs finite scores; some are NaN or infinite")
    if anomalous.all() or not anomalous.any():
        raise UserError("AUROC needs both normal and anomalous images; only one kind is here")


def auroc(scores: np.ndarray, anomalous: np.ndarray) -> float:
    """Area under the ROC curve in 0…1 of scores (N,) of any range; ties count half.

    Raises:
        UserError: only one class is present, or a score is not finite.
    """
    from sklearn.metrics import roc_auc_score

    scores, anomalous = np.asarray(scores, np.float64), np.asarray(anomalous, bool)
    _both_classes(scores, anomalous)
    return float(roc_auc_score(anomalous, scores))


def roc_curve(scores: np.ndarray, anomalous: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False-positive rates, true-positive rates and thresholds, each (K,), in scikit-learn's order."""
    from sklearn.metrics import roc_curve as sklearn_roc_curve

    scores, anomalous = np.asarray(scores, np.float64), np.asarray(anomalous, bool)
    _both_classes(scores, anomalous)
    return sklearn_roc_curve(anomalous, scores)


def pixel_ranking(heatmaps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[float, float]:
    """AUROC and average precision, 0…1, over all pixels of heatmaps (H, W), of one size or several, against bool masks.

    Both are as in scikit-learn, from one ROC curve: to rank millions of pixels takes nearly all of the time.

    Raises:
        UserError: there are no defect pixels, or only defect pixels.
    """
    from sklearn.metrics import auc
    from sklearn.metrics import roc_curve as sklearn_roc_curve

    scores, anomalous = _all_pixels(heatmaps, masks)
    false_positives, true_positives, _ = sklearn_roc_curve(anomalous, scores, drop_intermediate=False)
    found, alarms = true_positives[1:] * anomalous.sum(), false_positives[1:] * (~anomalous).sum()
    average_precision = np.sum(np.diff(true_positives) * found / (found + alarms))
    return float(auc(false_positives, true_positives)), float(average_precision)


def _all_pixels(heatmaps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    values, anomalous = (np.concatenate([np.ravel(part) for part in parts]) for parts in (heatmaps, masks))
    _both_classes(values, anomalous)
    return values, anomalous


def pro(
    heatmaps: Sequence[np.ndarray], masks: Sequence[np.ndarray], most_fpr: float = 0.3, thresholds: int = 10_000
) -> float:
    """Per-region overlap in 0…1: Bergmann et al. 2021 (IJCV 129, MVTec AD), section 4.

    The share of each connected defect region that is found, averaged over regions, as a function
    of the pixel false-positive rate, integrated from 0 to `most_fpr` and divided by it.

    Args:
        heatmaps: (H, W) each; masks: bool (H, W) each, regions are 8-connected.
        thresholds: maximum number of thresholds at which the integral is evaluated.

    Raises:
        UserError: there are no defect pixels, or only defect pixels.
    """
    values, anomalous = _all_pixels(heatmaps, masks)
    cuts, rates = _cuts(np.sort(values[~anomalous])[::-1], most_fpr, thresholds)
    return float(np.trapezoid(_overlap(heatmaps, masks, cuts), rates) / rates[-1])


def pixel_curves(
    heatmaps: Sequence[np.ndarray], masks: Sequence[np.ndarray], points: int = 200
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points of the pixel ROC and PRO curves, each (K,), with K at most about `points`.

    Returns thresholds, and above each: the share of good pixels, of defect pixels, and of the defect regions' areas.
    Half of the points are below a false-positive rate of 5 %, where the curves bend.
    """
    values, anomalous = _all_pixels(heatmaps, masks)
    good, bad = np.sort(values[~anomalous])[::-1], np.sort(values[anomalous])
    steep, rest = _cuts(good, 0.05, points // 2), _cuts(good, 1, points // 2)
    cuts, rates = np.append(steep[0], rest[0]), np.append(steep[1], rest[1])
    order = np.argsort(rates, kind="stable")
    cuts, rates = cuts[order], rates[order]
    found = 1 - np.searchsorted(bad, cuts, side="right") / len(bad)
    return cuts, rates, found, _overlap(heatmaps, masks, cuts)


def _cuts(good: np.ndarray, most_fpr: float, thresholds: int) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds and their false-positive rates, from 0 to `most_fpr`, for good pixels in descending order.

    At step k exactly the k highest good pixels are false positives: the threshold is just above the next one. With very
    few good pixels, a single one may exceed `most_fpr`.
    """
    steps = np.unique(np.linspace(0, max(1, most_fpr * len(good)), thresholds).astype(int))
    return good[np.minimum(steps, len(good) - 1)], steps / len(good)


def _overlap(heatmaps: Sequence[np.ndarray], masks: Sequence[np.ndarray], cuts: np.ndarray) -> np.ndarray:
    """Share (K,) of each connected defect region above each cut, averaged over regions."""
    from scipy.ndimage import label

    overlaps = []
    for heatmap, mask in zip(heatmaps, masks, strict=True):
        regions, count = label(mask, structure=np.ones((3, 3)))
        for region in range(1, count + 1):
            values = np.sort(heatmap[regions == region])
            overlaps.append(1 - np.searchsorted(values, cuts, side="right") / len(values))
    return np.mean(overlaps, 0)
