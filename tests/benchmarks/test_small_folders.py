"""Verdicts of few normals."""

import json

import pytest

from benchmarks import small_folders
from benchmarks.tables import small_folders as table


@pytest.mark.slow
def test_a_row_per_number_of_normals_and_a_new_run_replaces_them(defect_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(small_folders, "SIZES", (12, 1000))
    monkeypatch.setattr(small_folders, "DRAWS", 2)
    file = tmp_path / "small_folders.json"
    for _ in range(2):
        small_folders.main([str(defect_folder), "--results", str(file)])
    measured = json.loads(file.read_text())
    [row] = measured["rows"]
    assert (row["folder"], row["normals"], row["fpr"]) == ("screws", 12, 7.69)
    assert row["auroc"] > 95
    assert row["false_positives"] <= 50 < row["detected"]
    assert f"| 12 | 7.7 | {row['auroc']:.1f} / " in table(measured)
