"""The table that the default score was chosen by."""

import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import scores
from benchmarks.scores import main, measure
from kdad.detection.detector import Detector


@pytest.fixture
def one_task(monkeypatch, tiny_task):
    monkeypatch.setattr(scores, "load_task", lambda *_: tiny_task)


def test_every_score_is_measured_on_the_validation_part_alone(one_task, tiny_task, student_folder, vgg_teacher):
    validation = tiny_task.validation
    detector = Detector.load(student_folder, teacher=vgg_teacher, device="cpu")
    prediction = detector.predict(validation.images)
    del tiny_task.test
    found = measure("patterns", "dots", detector)
    for name, score in (
        ("distant-error", prediction.score),
        ("last-layer", prediction.layer_errors[:, -1, 0]),
        ("mkd", prediction.layer_scores[:, -3:].sum(1)),
        ("distance", prediction.distance),
    ):
        assert found[name] == pytest.approx(roc_auc_score(validation.anomalous, score), abs=1e-6)


def test_it_prints_a_row_per_score(one_task, student_folder, vgg_folder, capsys):
    arguments = ["--dataset", "patterns", "--teacher", str(vgg_folder), "--classes", "dots"]
    main([*arguments, "--students", str(student_folder.parents[2])])
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "| score", "|---|---|", "| distant-error", "| last-layer", "| mkd", "| distance",
    ]  # fmt: skip


def test_a_student_that_is_not_here_is_one_line(one_task, vgg_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--teacher", str(vgg_folder), "--classes", "cat", "--students", str(tmp_path)])
    assert caught.value.code == 2
    assert "no such student folder" in capsys.readouterr().err
