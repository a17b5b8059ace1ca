"""What a teacher's statistics find without a student."""

import json

import pytest

from benchmarks import regions


@pytest.mark.slow
def test_a_row_per_method_and_folder_and_every_sum_of_methods_is_a_candidate(defect_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "default_image_size", lambda *_: 128)
    file = tmp_path / "regions.json"
    for _ in range(2):
        regions.main([str(defect_folder), "--results", str(file)])
    measured = json.loads(file.read_text())
    rows = measured["rows"]
    assert [row["method"] for row in rows] == [*regions.METHODS, *regions.SUMS]
    assert {row["folder"] for row in rows} == {"screws"}
    assert all(row["auroc"] == 100 and row["pixel_auroc"] > 90 for row in rows), rows
    assert str(tmp_path) not in file.read_text()
    [choice] = measured["candidates"]
    assert len(choice["test"]) == (2 ** len(regions.METHODS) - 1) * len(regions.SHARES)
    assert choice["pseudo"].keys() == choice["test"].keys()
    row = next(row for row in measured["rows"] if row["method"] == regions.DEFAULT)
    assert choice["test"][measured["default"]] == row["auroc"]
    assert 60 < choice["pseudo"][measured["default"]] < 100
