"""The table that the default score is chosen by."""

import json

import numpy as np
import pytest
from helpers.miniatures import TinyTask
from sklearn.metrics import roc_auc_score

from benchmarks import scores
from benchmarks.scores import main, measure, summaries
from benchmarks.tables import score_choice
from kdad.detection.detector import Detector


@pytest.fixture
def one_task(monkeypatch, tiny_task):
    monkeypatch.setattr(scores, "load_task", lambda *_: tiny_task)
    monkeypatch.setattr(scores, "SELECTION_CLASSES", ("dots",))
    monkeypatch.setattr(scores, "DATASET", "patterns")


def test_every_candidate_is_measured_on_the_validation_part_alone(one_task, tiny_task, student_folder, vgg_teacher):
    validation = tiny_task.validation
    detector = Detector.load(student_folder, teacher=vgg_teacher, device="cpu")
    prediction = detector.predict(validation.images)
    del tiny_task.test
    found = measure("dots", detector)
    for name, score in (
        ("last layer × distance, patches", prediction.score),
        ("last layer", prediction.measurement.layer_errors[:, -1, 0]),
        ("published", prediction.measurement.layer_scores[:, -3:].sum(1)),
        ("distance, patches", prediction.measurement.distance),
    ):
        assert found[name] == pytest.approx(roc_auc_score(validation.anomalous, score), abs=1e-6)
    assert len(found) == 4  # a VGG has no class token


def own(teacher, features):
    return teacher.network.summary(features)


def test_one_of_the_summaries_is_what_the_default_score_reads(vit_teacher):
    images = TinyTask().train[:4]
    features = vit_teacher(vit_teacher.preprocessing(images))
    found = summaries(vit_teacher, images)
    assert [
        name for name, found_as in found.items() if np.allclose(found_as, own(vit_teacher, features), atol=1e-6)
    ] == ["halfway"]


def test_that_of_a_full_size_cnn_is_of_its_inner_patches(timm_teacher):
    images = TinyTask().train[:4]
    features = timm_teacher(timm_teacher.preprocessing(images))
    found = summaries(timm_teacher, images)
    same = [name for name, found_as in found.items() if np.allclose(found_as, own(timm_teacher, features), atol=1e-6)]
    assert same == ["inner patches, unit length"]
    assert len(found) == 4


def test_it_saves_a_row_per_teacher_and_class(one_task, student_folder, vgg_folder, tmp_path):
    file = tmp_path / "scores.json"
    others = [{"teacher": "another", "normal_class": "dots", "figures": {}}]
    stale = [*others, {"teacher": str(vgg_folder.resolve()), "normal_class": "dots", "figures": {}}]
    file.write_text(json.dumps({"rows": stale}))
    main(["--teachers", str(vgg_folder), "--students", str(student_folder.parents[2]), "--results", str(file)])
    measured = json.loads(file.read_text())
    found = [(row["teacher"].split("/")[-1], row["normal_class"]) for row in measured["rows"]]
    assert found == [("another", "dots"), ("tiny-vgg", "dots")]
    measured["rows"] = measured["rows"][1:]
    best = max(measured["rows"][0]["figures"].items(), key=lambda item: item[1])
    assert f"| {best[0]} | {100 * best[1]:.2f} | **{100 * best[1]:.2f}** |" in score_choice(measured)


def test_a_student_that_is_not_here_is_one_line(one_task, vgg_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--teachers", str(vgg_folder), "--students", str(tmp_path)])
    assert caught.value.code == 2
    assert "no such student folder" in capsys.readouterr().err
