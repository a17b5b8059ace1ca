"""Which students the app finds, from JSON alone."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.miniatures import reseal

from kdad.storage import student_folder as store
from ui.shared import student_index

DOTS = "patterns/tiny-vgg/dots"


@pytest.fixture
def root(monkeypatch, students_root, tmp_path):
    shutil.copytree(students_root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("KDAD_STUDENTS", str(tmp_path))
    return tmp_path


def test_the_app_finds_what_the_command_line_finds(root):
    found, damaged = student_index.find()
    assert [student.folder for student in found.values()] == store.find_students(root)
    assert list(found) == [DOTS, "patterns/tiny-vgg/stripes"]
    assert not damaged


def test_a_student_is_what_its_config_says(root):
    student = student_index.find()[0][DOTS]
    config = store.load_config(student.folder)
    for name in ("dataset", "normal_class", "label_overlap", "seed", "calibration"):
        assert getattr(student, name) == getattr(config, name)
    assert student.teacher == store.load_local(student.folder)["teacher"]
    assert student.teacher_name == "tiny-vgg"
    assert student.evaluation["auroc"] == 0.9


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '"text"', '{"dataset": 1}', "\udce4"])
def test_a_damaged_config_is_listed_as_such(root, text):
    (root / DOTS / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    found, damaged = student_index.find()
    assert damaged == [DOTS]
    assert len(found) == 1


@pytest.mark.parametrize("figures", ["{}", '{"auroc": null}', '{"auroc": "high"}', "[]"])
def test_a_damaged_evaluation_is_listed_as_such(root, figures):
    (root / DOTS / "evaluation.json").write_text(figures)
    assert student_index.find()[1] == [DOTS]


def test_an_unfinished_run_is_no_student(root):
    (root / DOTS / "model.safetensors").unlink()
    assert list(student_index.find()[0]) == ["patterns/tiny-vgg/stripes"]


def test_a_family_shares_teacher_data_set_and_seed(root):
    other = root / "patterns" / "tiny-vgg" / "dots-seed1"
    shutil.copytree(root / DOTS, other)
    reseal(other / "config.json", seed=1)
    found, _ = student_index.find()
    family = student_index.same_family(found[DOTS], found)
    assert [student.normal_class for student in family] == ["dots", "stripes"]
    reseal(root / "patterns/tiny-vgg/stripes" / "config.json", layers=["blocks.1"])
    found, _ = student_index.find()
    assert student_index.same_family(found[DOTS], found) == [found[DOTS]]


def test_the_key_of_a_folder_is_its_path_below_the_root(root, tmp_path_factory):
    assert student_index.key_of(root / DOTS) == DOTS
    assert student_index.key_of(tmp_path_factory.mktemp("elsewhere") / DOTS) is None


def test_a_command_can_be_copied_whatever_the_folder_is_called():
    assert student_index.evaluate_command(Path("my parts")) == "python -m kdad evaluate 'my parts'"


def test_of_several_roots_the_first_is_written_to_and_goes_before(root, monkeypatch, tmp_path_factory):
    own = tmp_path_factory.mktemp("own")
    shutil.copytree(root / DOTS, own / DOTS)
    monkeypatch.setenv("KDAD_STUDENTS", os.pathsep.join(map(str, (own, root, own / "nowhere"))))
    found, _ = student_index.find()
    assert list(found) == [DOTS, "patterns/tiny-vgg/stripes"]
    assert found[DOTS].folder == own / DOTS
    assert student_index.root() == own


def test_a_root_that_is_not_there_holds_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("KDAD_STUDENTS", str(tmp_path / "none"))
    assert student_index.find() == ({}, [])


def test_without_a_variable_students_are_beside_the_app(monkeypatch):
    monkeypatch.delenv("KDAD_STUDENTS", raising=False)
    assert student_index.root().name == "trained_students"
    assert "--out" not in student_index.train_command()


@pytest.mark.parametrize(
    ("name", "seed", "variant"),
    [("dots", 0, ""), ("dots-seed3", 3, "seed 3"), ("dots-v2", 0, "v2"), ("dots-seed3-v12", 3, "seed 3, v12")],
)
def test_seeds_and_versions_are_told_apart(students_root, monkeypatch, tmp_path, name, seed, variant):
    folder = tmp_path / "patterns" / "tiny-vgg" / name
    shutil.copytree(students_root / "patterns" / "tiny-vgg" / "dots", folder)
    reseal(folder / "config.json", seed=seed)
    monkeypatch.setenv("KDAD_STUDENTS", str(tmp_path))
    (student,) = student_index.find()[0].values()
    assert student.variant == variant
