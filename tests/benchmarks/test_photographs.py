"""Defects on photographs, measured from a folder to a row of the table."""

import json
from functools import partial

import pytest

from benchmarks import photographs, student_designs
from kdad.networks.recipes import Recipe


def test_a_row_per_teacher_and_a_new_run_replaces_it(defect_folder, tmp_path, vgg_folder, monkeypatch):
    quick = partial(photographs.train_student, recipe=Recipe(epochs=1, batch_size=8))
    monkeypatch.setattr(photographs, "train_student", quick)
    file = tmp_path / "photographs.json"
    for source in ("first", "second"):
        photographs.main(
            [
                str(defect_folder),
                "--source",
                source,
                "--teachers",
                str(vgg_folder),
                "--results",
                str(file),
                "--device",
                "cpu",
            ]
        )
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["dataset"], row["teacher"], row["source"]) == ("screws", "tiny-vgg", "second")
    assert (row["n_normal"], row["n_anomalous"], row["normals"]) == (4, 2, 12)
    compared = ("student_auroc", "student_pixel_auroc", "student_pro", "both_auroc_0.25", "both_auroc_1")
    assert all(0 <= row[name] <= 1 for name in (*photographs.FIGURES, *compared))
    assert str(tmp_path) not in file.read_text()


def test_a_folder_that_is_not_there_is_one_line(tmp_path, vgg_folder, capsys):
    with pytest.raises(SystemExit):
        photographs.main([str(tmp_path / "nowhere"), "--source", "x", "--teachers", str(vgg_folder)])
    assert "no such folder" in capsys.readouterr().err


def test_every_design_is_judged_by_every_reading(defect_folder, monkeypatch, timm_teacher):
    monkeypatch.setattr(student_designs, "load_teacher", lambda *_, **__: timm_teacher)
    monkeypatch.setattr(student_designs, "STEPS", 2)
    monkeypatch.setattr(student_designs, "DRAWS", 1)
    found = student_designs.run(defect_folder, "nobody")
    assert [row["design"] for row in found["rows"]][:3] == ["patch embedding", "narrow copy", "reverse decoder"]
    assert all(len(row) == 2 + 4 * len(student_designs.READINGS) for row in found["rows"])
    assert all(0 <= value <= 1 for row in found["rows"] for name, value in row.items() if name != "design")
