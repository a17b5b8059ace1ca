"""What a teacher's statistics find without a student."""

import json

from benchmarks import regions


def test_a_row_per_method_and_folder_and_a_new_run_replaces_them(defect_folder, tmp_path):
    file = tmp_path / "regions.json"
    for _ in range(2):
        regions.main([str(defect_folder), "--results", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [row["method"] for row in rows] == [*regions.METHODS, *regions.SUMS]
    assert {row["folder"] for row in rows} == {"screws"}
    assert all(row["auroc"] == 100 and row["pixel_auroc"] > 90 for row in rows), rows
    assert str(tmp_path) not in file.read_text()
