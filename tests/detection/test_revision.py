"""Versions of a student without training: normals that it learns, and a region of interest."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.miniatures import TinyTask
from PIL import Image

from kdad.cli import main
from kdad.cli.judging import print_figures
from kdad.data import patterns
from kdad.detection.detector import Detector
from kdad.detection.revision import correct, rectangle, restrict
from kdad.errors import UserError
from kdad.evaluation.evaluate import evaluate
from kdad.scores import LOCAL_DISTANCE
from kdad.storage import student_folder as storage


@pytest.fixture
def folder(place_student_folder, tmp_path):
    return shutil.copytree(place_student_folder, tmp_path / "tiny" / "dots")


@pytest.fixture
def load(vgg_teacher):
    return lambda folder: Detector.load(folder, teacher=vgg_teacher, device="cpu")


@pytest.fixture
def stripes():
    """Anomalies that are alike: one texture in glaring light."""
    return (255 - torch.from_numpy(patterns.normals("stripes", 3, 77)) // 8).byte()


def test_what_is_learned_is_normal_and_what_is_like_it_less_unusual(folder, load, stripes):
    before = load(folder)
    made = correct(folder, [stripes[:1]], detector=before)
    after = load(made)
    assert made.name == "dots-v2" and folder.is_dir()
    assert before.predict(stripes[:1]).p_value[0] < 0.05
    assert after.predict(stripes[:1]).p_value[0] == 1
    assert after.predict(stripes[1:]).score.max() < before.predict(stripes[1:]).score.max()
    assert len(after.calibration) == len(before.calibration) + 1


def test_a_version_says_what_it_comes_from(folder, load, stripes):
    made = correct(folder, [stripes[0], stripes[1]], detector=load(folder))
    (change,) = storage.load_config(made).ancestry
    assert (change["version"], change["name"]) == ("dots", "dots-v2") and len(change["normals"]) == 2
    assert storage.folder_of(Path("out"), storage.load_config(made)).name == "dots-v2"
    assert change["calibration_sha256"] == storage.load_config(folder).calibration_sha256
    assert "2 images learned as normal" in (made / "README.md").read_text()
    third = restrict(made, rectangle(0, 0.5, 0, 1), detector=load(made))
    assert third.name == "dots-v3"
    assert "region" in storage.load_config(third).ancestry[1]


def test_what_is_known_already_is_refused(folder, load, stripes):
    made = correct(folder, [stripes[:1]], detector=load(folder))
    with pytest.raises(UserError, match="already"):
        correct(made, [stripes[:1]], detector=load(made))


def test_what_is_given_twice_is_refused_by_name(folder, load, stripes, tmp_path):
    files = [tmp_path / "one.png", tmp_path / "other.png"]
    for file in files:
        Image.fromarray(stripes[0].permute(1, 2, 0).numpy()).save(file)
    with pytest.raises(UserError, match=r"one\.png: given more than once"):
        correct(folder, files, detector=load(folder))


def test_a_student_that_is_in_no_folder_is_refused(folder, load, stripes, tmp_path, monkeypatch):
    detector = load(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="pull one of the Hub first"):
        correct(Path("owner/student"), [stripes[:1]], detector=detector)
    with pytest.raises(UserError, match="pull one of the Hub first"):
        restrict(Path("owner/student"), rectangle(0, 0.5, 0, 1), detector=detector)
    assert not Path("owner").exists()


def test_a_region_is_of_the_whole_image_where_the_teacher_sees_its_middle(folder, load):
    detector = load(folder)
    middle = replace(detector.teacher.preprocessing, resize=64, crop=32)
    detector.teacher = replace(detector.teacher, preprocessing=middle)
    upper = load(restrict(folder, rectangle(0, 0.5, 0, 1), detector=detector)).calibration.patches.region_map
    assert upper[: len(upper) // 2].all() and not upper[len(upper) // 2 :].any()
    with pytest.raises(UserError, match="outside of what the teacher sees"):  # which begins at a quarter
        restrict(folder, rectangle(0, 0.2, 0, 1), detector=detector)


def test_what_is_outside_of_the_region_never_scores(folder, load):
    after = load(restrict(folder, rectangle(0, 0.5, 0, 1), detector=load(folder)))
    image = torch.from_numpy(patterns.normals("dots", 1, 5))
    spoilt = image.clone()
    spoilt[:, :, 26:] = 255
    seen, spoilt_seen = after.predict(image), after.predict(spoilt)
    assert spoilt_seen.heatmap[0, -4:].max() == 0
    inside = image.clone()
    inside[:, :, :8, :8] = 255
    assert after.predict(inside).score[0] - seen.score[0] > 10 * abs(spoilt_seen.score[0] - seen.score[0])


def test_normals_are_calibrated_anew_in_the_region(folder, load):
    before = load(folder)
    after = load(restrict(folder, rectangle(0, 0.5, 0, 1), detector=before))
    assert len(after.calibration) == len(before.calibration)
    assert not np.allclose(after.calibration_scores, before.calibration_scores)
    again = load(restrict(folder, torch.ones(5, 7, dtype=torch.bool), detector=before))
    np.testing.assert_allclose(again.calibration_scores, before.calibration_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sides", [(0.5, 0.5, 0, 1), (0, 1, 0.6, 0.2), (-0.1, 1, 0, 1), (0, 1.1, 0, 1)])
def test_a_rectangle_that_is_none_is_refused(sides):
    with pytest.raises(UserError, match="rectangle"):
        rectangle(*sides)


def test_a_region_of_less_than_a_patch_is_refused(folder, load):
    with pytest.raises(UserError, match="smaller than one patch"):
        restrict(folder, rectangle(0, 0.01, 0, 0.01), detector=load(folder))


def test_a_student_that_remembers_no_normals_is_refused(student_folder, vgg_teacher, stripes):
    with pytest.raises(UserError, match="train it again"):
        correct(student_folder, [stripes[:1]], detector=Detector.load(student_folder, teacher=vgg_teacher))


def test_nothing_is_left_of_a_version_that_cannot_be_written(folder, load, stripes, monkeypatch):
    monkeypatch.setattr(storage, "save_card", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        correct(folder, [stripes[:1]], detector=load(folder))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["dots"]


def test_figures_say_how_many_test_images_were_learned(folder, load, capsys):
    task = TinyTask()
    task.score = LOCAL_DISTANCE
    made = correct(folder, [task.test.images[0], task.test.images[1]], detector=load(folder))
    figures = evaluate(task, load(made)).figures
    assert figures["n_learned"] == 2
    assert figures["n_learned_anomalous"] == int(task.test.anomalous[:2].sum())
    print_figures(figures)
    assert "2 of the test images were learned as normal" in capsys.readouterr().out
    assert "n_learned" not in evaluate(task, load(folder)).figures


@pytest.fixture
def commands(folder, vgg_teacher, monkeypatch):
    """The commands' students are of a teacher that only exists here."""
    loaded = Detector.load.__func__
    task = TinyTask()
    task.score = LOCAL_DISTANCE
    monkeypatch.setattr("kdad.data.loading.load_task", lambda *_: task)
    monkeypatch.setattr(
        Detector, "load", classmethod(lambda cls, folder, **_: loaded(cls, folder, teacher=vgg_teacher, device="cpu"))
    )
    return folder


@pytest.mark.slow
def test_commands_make_versions_and_say_what_they_cost(commands, stripes, tmp_path, capsys):
    file = tmp_path / "stripes.png"
    Image.fromarray(stripes[0].permute(1, 2, 0).numpy()).save(file)
    assert main(["correct", str(commands), str(file)]) == 0
    said = capsys.readouterr().out
    assert "dots-v2" in said and "now:    Of 126 defects drawn" in said and "auroc" in said
    mask = np.zeros((20, 20), np.uint8)
    mask[:10] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert main(["region", str(commands), "--mask", str(tmp_path / "mask.png")]) == 0
    assert main(["region", str(commands), "--box", "0", "0.5", "0", "1"]) == 0
    masked, boxed = (commands.with_name(name) for name in ("dots-v3", "dots-v4"))
    of_mask, of_box = (json.loads((made / "config.json").read_text())["ancestry"] for made in (masked, boxed))
    assert [change["region"] for change in of_mask] == [change["region"] for change in of_box]
    assert main(["region", str(commands), "--box", "1", "0.5", "0", "1"]) == 2
