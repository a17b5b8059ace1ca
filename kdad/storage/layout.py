"""The student format: names of files and folders, and format versions. Imports no torch."""

import itertools
import re
from pathlib import Path
from typing import Any

from kdad.data.datasets import dataset_slug, is_folder
from kdad.networks.teachers.registry import teacher_slug

CONFIG, WEIGHTS, CALIBRATION = "config.json", "model.safetensors", "calibration.safetensors"
HISTORY, EVALUATION, SCORES_TABLE, CARD = "history.csv", "evaluation.json", "scores.parquet", "README.md"
PIXEL_CURVES = "pixel_curves.csv"  # if the test images have masks
SENSITIVITY = "sensitivity.json"  # of a student of whole photographs
OPERATING_POINT = "operating_point.json"  # if one was chosen by costs
LOCAL = "local.json"  # local paths of custom images and of a custom teacher; never shared
SHARED_FILES = (
    CONFIG, WEIGHTS, CALIBRATION, HISTORY, EVALUATION, SCORES_TABLE, PIXEL_CURVES, SENSITIVITY, OPERATING_POINT, CARD,
)  # fmt: skip
DEFAULT_OUT = Path("trained_students")
# Origin of the calibration normals: held out from the network, cross-fitted with several networks, each left out of
# the statistics of the others, or unknown.
HELD_OUT, CROSS_FITTED, LEFT_OUT, UNKNOWN = CALIBRATION_KINDS = ("held-out", "cross-fitted", "left-out", "unknown")
FORMAT = 8  # of student folders; the first if not recorded
RENAMED_FIELDS = {"tile": "tile_size", "white": "max_value"}  # since format 6
MAX_TILE_SIZE = 65_535  # pixels: no supported image format allows wider images


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """Convert the fields of a config.json of any format up to `FORMAT` to the current one."""
    config = {RENAMED_FIELDS.get(name, name): value for name, value in config.items() if name != "format"}
    calibration = UNKNOWN if is_folder(str(config["dataset"])) else HELD_OUT
    return {"images_sha256": "", "calibration": calibration, "layers": [], "max_value": 0, "ancestry": [], **config}


def next_version(folder: Path) -> Path:
    """A folder for the next version of a student: `<class>-v2` of `<class>`, and so on."""
    base = re.sub(r"-v\d+$", "", folder.name)
    return next(place for number in itertools.count(2) if not (place := folder.with_name(f"{base}-v{number}")).exists())


def student_folder(out: Path, dataset: str, teacher: str, normal_class: str, seed: int) -> Path:
    """`<out>/<data set>/<teacher>/<normal class>[-seed<N>]`."""
    suffix = f"-seed{seed}" if seed else ""
    return Path(out) / dataset_slug(dataset) / teacher_slug(teacher) / f"{normal_class}{suffix}"
