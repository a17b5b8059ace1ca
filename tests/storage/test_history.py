"""The file of losses and AUROCs."""

from kdad.storage.history import read_history, write_history


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [
        {"epoch": 1, "split": "train", "loss": 0.25, "auroc": "", "seconds": 1.5},
        {"epoch": 1, "split": "validation", "loss": 0.5, "auroc": 0.75, "seconds": 1.5},
    ]
    write_history(tmp_path, rows)
    assert read_history(tmp_path) == rows


def test_without_a_file_there_are_no_rows(tmp_path):
    assert read_history(tmp_path) == []
