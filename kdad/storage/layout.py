"""The names in the student format: its files, where its folders are, and what its score may be. No torch here."""

from pathlib import Path
from typing import Any

from kdad.data.datasets import dataset_slug, is_folder
from kdad.networks.registry import teacher_slug

CONFIG, WEIGHTS, CALIBRATION = "config.json", "model.safetensors", "calibration.safetensors"
HISTORY, EVALUATION, SCORES_TABLE, CARD = "history.csv", "evaluation.json", "scores.parquet", "README.md"
PIXEL_CURVES = "pixel_curves.csv"  # where the test images have masks
LOCAL = "local.json"  # where own images and an own teacher are on this machine; never shared
SHARED_FILES = (CONFIG, WEIGHTS, CALIBRATION, HISTORY, EVALUATION, SCORES_TABLE, PIXEL_CURVES, CARD)
DEFAULT_OUT = Path("trained_students")
# How normals were held out to calibrate on: all of one network, each of one of several, or nobody can say.
HELD_OUT, CROSS_FITTED, UNKNOWN = CALIBRATION_KINDS = ("held-out", "cross-fitted", "unknown")
# How each score is computed stands in `kdad.detection.discrepancy.SCORES`.
DISTANT_ERROR, DISTANT_PEAK, LAST_LAYER, MKD, PEAK = SCORE_NAMES = (
    "distant-error",
    "distant-peak",
    "last-layer",
    "mkd",
    "peak",
)
LARGEST_TILE = 65_535  # pixels: no format that is read here holds a wider image
DISTANT = (DISTANT_ERROR, DISTANT_PEAK)  # those that read the teacher's own distance from normals


def calibration_kind(config: dict[str, Any]) -> str:
    """How normals were held out, from a config.json; unknown for folders in the first format."""
    return str(config.get("calibration", UNKNOWN if is_folder(config["dataset"]) else HELD_OUT))


def student_folder(out: Path, dataset: str, teacher: str, normal_class: str, seed: int) -> Path:
    """`<out>/<data set>/<teacher>/<normal class>[-seed<N>]`."""
    suffix = f"-seed{seed}" if seed else ""
    return Path(out) / dataset_slug(dataset) / teacher_slug(teacher) / f"{normal_class}{suffix}"
