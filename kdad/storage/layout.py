"""The names in the student format: its files, where its folders are, and what its score may be. No torch here."""

from pathlib import Path

from kdad.data.datasets import dataset_slug
from kdad.networks.registry import teacher_slug

CONFIG, WEIGHTS, CALIBRATION = "config.json", "model.safetensors", "calibration.safetensors"
HISTORY, EVALUATION, SCORES_TABLE, CARD = "history.csv", "evaluation.json", "scores.parquet", "README.md"
PIXEL_CURVES = "pixel_curves.csv"  # where the test images have masks
SHARED_FILES = (CONFIG, WEIGHTS, CALIBRATION, HISTORY, EVALUATION, SCORES_TABLE, PIXEL_CURVES, CARD)
DEFAULT_OUT = Path("trained_students")
# How each is computed stands in `kdad.detection.discrepancy.SCORES`.
DISTANT_ERROR, LAST_LAYER, MKD, PEAK = SCORE_NAMES = ("distant-error", "last-layer", "mkd", "peak")


def student_folder(out: Path, dataset: str, teacher: str, normal_class: str, seed: int) -> Path:
    """`<out>/<data set>/<teacher>/<normal class>[-seed<N>]`."""
    suffix = f"-seed{seed}" if seed else ""
    return Path(out) / dataset_slug(dataset) / teacher_slug(teacher) / f"{normal_class}{suffix}"
