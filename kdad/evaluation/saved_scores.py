"""The scores that a student's folder keeps, of test images and of calibration normals. Imports no torch."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from kdad.scores import Measurement, score_named
from kdad.storage.layout import CALIBRATION, CONFIG, SCORES_TABLE
from kdad.storage.sealing import read_sealed, read_verified


def read_test_scores(folder: Path, evaluation: dict[str, Any], columns: list[str] | None = None) -> Any:
    """The table of scores.parquet, one row per test image, as pandas.DataFrame; all columns for None.

    Args:
        folder: the student's.
        evaluation: its evaluation.json, which holds the table's digest.
        columns: names of columns; those of the table that are not there are left out.

    Raises:
        OSError: the table cannot be read.
        ValueError: it is damaged, or not the one that was evaluated.
    """
    import pandas
    import pyarrow.parquet

    content = read_verified(folder / SCORES_TABLE, evaluation.get("files_sha256", {}).get(SCORES_TABLE, ""))
    if columns is not None:
        there = pyarrow.parquet.read_schema(BytesIO(content)).names
        columns = [name for name in columns if name in there]
    return pandas.read_parquet(BytesIO(content), columns=columns)


def read_calibration_normals(folder: Path) -> Measurement | None:
    """The measurement of the calibration normals, without maps, in numpy; None without calibration.

    Raises:
        OSError: a file cannot be read.
        ValueError, KeyError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    file = folder / CALIBRATION
    if not file.is_file():
        return None
    config = read_sealed(folder / CONFIG)
    mse_weight, sha256 = config["recipe"]["mse_weight"], config.get("calibration_sha256", "")
    try:
        return Measurement.of_normals(load(read_verified(file, sha256)), mse_weight)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def read_calibration_scores(folder: Path, score: str) -> np.ndarray | None:
    """The scores (n,) float64 of the calibration normals, as the detector computes them; None without calibration.

    Raises:
        OSError, ValueError, KeyError: as `read_calibration_normals`.
    """
    normals = read_calibration_normals(folder)
    return None if normals is None else score_named(score)(normals).astype(np.float64)
