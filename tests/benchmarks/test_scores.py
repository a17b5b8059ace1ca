"""The table that the default score is chosen by."""

import json

import numpy as np
import pytest
import torch
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
    monkeypatch.setattr(scores, "pictures", lambda: tiny_task.train)


def test_every_candidate_is_measured_on_the_validation_part_alone(one_task, tiny_task, student_folder, vgg_teacher):
    validation = tiny_task.validation
    detector = Detector.load(student_folder, teacher=vgg_teacher, device="cpu")
    prediction = detector.predict(validation.images)
    del tiny_task.test
    found = measure("dots", detector, summaries(vgg_teacher, tiny_task.train))
    for name, score in (
        ("last layer × distance, patches", prediction.score),
        ("last layer", prediction.measurement.layer_errors[:, -1, 0]),
        ("published", prediction.measurement.layer_scores[:, -3:].sum(1)),
        ("distance, patches", prediction.measurement.distance),
    ):
        assert found[name] == pytest.approx(roc_auc_score(validation.anomalous, score), abs=1e-6)
    assert "distance, class token" not in found  # a VGG has none
    relative = [name for name in found if "relative" in name]
    assert len(relative) == 2
    assert all(found[name] > 0.8 for name in found if name.startswith("distance")), found


def own(teacher, features):
    return teacher.network.summary(features)


def same_as(found: dict[str, list[torch.Tensor]], summary: torch.Tensor) -> list[str]:
    """Names of plain candidates that read just this summary."""
    plain = [name for name in found if "relative" not in name and len(found[name]) == 1]
    return [
        name
        for name in plain
        if found[name][0].shape == summary.shape and np.allclose(found[name][0], summary, atol=1e-6)
    ]


def test_levels_and_layers_are_summaries_of_their_own(vgg_teacher):
    images = TinyTask().train[:4]
    layers = vgg_teacher(vgg_teacher.preprocessing(images))
    found = summaries(vgg_teacher, images)
    assert [len(found[name]) for name in ("levels 1 and 2", "last two layers", "mean and deviation")] == [5, 2, 1]
    torch.testing.assert_close(found["levels 1 and 2"][0], layers[-1].mean(1))
    torch.testing.assert_close(torch.stack(found["levels 1 and 2"][1:]).mean(0), layers[-1].mean(1))
    torch.testing.assert_close(found["last two layers"][1], layers[-2].mean(1))
    assert found["mean and deviation"][0].shape == (4, 2 * layers[-1].shape[2])


def test_one_of_the_summaries_is_what_the_default_score_reads(vit_teacher):
    images = TinyTask().train[:4]
    features = vit_teacher(vit_teacher.preprocessing(images))
    found = summaries(vit_teacher, images)
    assert same_as(found, own(vit_teacher, features)) == ["halfway"]


@pytest.mark.parametrize(("teacher", "name"), [("vgg_teacher", "unit length"), ("vit_teacher", "halfway, unit length")])
def test_it_may_be_of_unit_length(request, monkeypatch, teacher, name):
    teacher = request.getfixturevalue(teacher)
    monkeypatch.setattr(teacher.network, "unit_length", True)
    images = TinyTask().train[:4]
    features = teacher(teacher.preprocessing(images))
    assert same_as(summaries(teacher, images), own(teacher, features)) == [name]


def test_that_of_a_full_size_cnn_is_of_its_inner_patches(timm_teacher):
    images = TinyTask().train[:4]
    features = timm_teacher(timm_teacher.preprocessing(images))
    found = summaries(timm_teacher, images)
    assert same_as(found, own(timm_teacher, features)) == ["inner patches, unit length"]


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
