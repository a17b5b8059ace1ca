"""From a task and a teacher to a complete student folder."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.miniatures import Crash, SmallDefectsTask, crash, evaluated

from kdad.detection.calibration import FittedStudent, calibrate
from kdad.detection.detector import Detector
from kdad.errors import UserError
from kdad.networks.recipes import Recipe
from kdad.scores import LAST_LAYER
from kdad.storage import layout
from kdad.storage import student_folder as store
from kdad.storage.history import read_history
from kdad.training import distillation, loop
from kdad.training.distillation import Distillation, train_student

RECIPE = Recipe(epochs=1, batch_size=8)


def state_of(teacher) -> tuple:
    """Weights, modes and gradient flags of a teacher."""
    network = teacher.network
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return weights, [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]


def assert_frozen(teacher, before: tuple):
    weights, modes, gradients = state_of(teacher)
    assert all(torch.equal(weights[name], before[0][name]) for name in before[0])
    assert not any(modes)
    assert not any(gradients)
    assert all(p.grad is None for p in teacher.network.parameters())


@pytest.mark.parametrize("name", ["vgg_teacher", "vit_teacher"])
def test_the_teacher_never_changes_through_fit_validate_save_load_and_predict(tmp_path, request, tiny_task, name):
    teacher = request.getfixturevalue(name)
    before = state_of(teacher)
    folder = train_student(tiny_task, teacher, tmp_path, recipe=RECIPE, device="cpu")
    assert_frozen(teacher, before)
    evaluated(folder, tiny_task, Detector.load(folder, teacher=teacher, device="cpu"))
    assert_frozen(teacher, before)


def test_no_mode_switch_of_the_module_reaches_the_teacher(vgg_teacher, tiny_task):
    student = torch.nn.Linear(1, 1)
    module = Distillation(student, vgg_teacher, tiny_task, RECIPE, seed=0)
    module.train().requires_grad_(True)
    assert student.training
    assert not any(m.training for m in vgg_teacher.network.modules())
    assert not any(p.requires_grad for p in vgg_teacher.network.parameters())


def test_only_the_student_reaches_optimiser_and_checkpoint(tmp_path, monkeypatch, tiny_task, vgg_teacher):
    modules = []

    def seen(module, *_):
        modules.append(module)
        raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(distillation, "calibrate", crash)
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    (checkpoint,) = tmp_path.rglob(loop.CHECKPOINT)
    kept = torch.load(checkpoint, weights_only=True)
    monkeypatch.setattr(Distillation, "training_step", seen)
    with pytest.raises(Crash):
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, seed=1, device="cpu")
    (module,) = modules
    optimised = {id(p) for group in module.optimizers().param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.student.parameters()}
    assert set(kept["state_dict"]) == {f"student.{name}" for name in module.student.state_dict()}
    assert len(kept["optimizer_states"][0]["state"]) == len(list(module.student.parameters()))


def test_calibration_sees_exactly_the_held_out_normals(student_folder, tiny_task, vgg_teacher):
    detector = Detector.load(student_folder, teacher=vgg_teacher, device="cpu")
    kept = detector.calibration.layer_errors

    def errors_of(images):
        fitted = FittedStudent(detector.student, None)
        return calibrate(fitted, vgg_teacher, [(fitted, images)], tiny_task.train, LAST_LAYER, 0).layer_errors

    assert torch.allclose(kept, errors_of(tiny_task.calibration), atol=1e-6)
    for others in (tiny_task.train, tiny_task.test.images):
        # No image outside the calibration part has any row of the table.
        assert torch.cdist(kept.flatten(1), errors_of(others).flatten(1)).min() > 1e-5


def test_training_never_asks_for_the_test_part(tmp_path, tiny_task, vgg_teacher):
    del tiny_task.test
    folder = train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    assert store.is_complete(folder)


def test_the_student_learns(tmp_path, tiny_task, vgg_teacher):
    folder = train_student(tiny_task, vgg_teacher, tmp_path, recipe=replace(RECIPE, epochs=4), device="cpu")
    losses = [row["loss"] for row in read_history(folder) if row["split"] == "train"]
    assert losses == sorted(losses, reverse=True)


def test_the_student_learns_as_well_in_half_precision(tmp_path, monkeypatch, tiny_task, vit_teacher):
    losses = {}
    for half in (False, True):
        monkeypatch.setattr(loop, "half_precision", lambda _, half=half: half)
        recipe = Recipe(epochs=2, batch_size=8)
        folder = train_student(tiny_task, vit_teacher, tmp_path / str(half), recipe=recipe, device="cpu")
        losses[half] = [row["loss"] for row in read_history(folder)]
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.03)


def test_a_finished_folder_is_complete(student_folder, vgg_teacher):
    names = {file.name for file in student_folder.iterdir()}
    assert names >= {layout.CONFIG, layout.WEIGHTS, layout.CALIBRATION, layout.HISTORY, layout.CARD}
    assert loop.CHECKPOINT not in names
    config = json.loads((student_folder / layout.CONFIG).read_text())
    assert config["teacher_sha256"] == vgg_teacher.sha256
    assert config["recipe"] == RECIPE.as_dict()
    assert (config["dataset"], config["normal_class"], config["seed"]) == ("patterns", "dots", 0)


def test_without_labelled_anomalies_history_has_a_loss_and_no_auroc(tmp_path, vgg_teacher):
    folder = train_student(SmallDefectsTask("dots"), vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    _, validation = read_history(folder)
    assert validation["split"] == "validation"
    assert validation["loss"] > 0
    assert validation["auroc"] == ""


def interrupted(task, teacher, out, monkeypatch, **settings):
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(distillation, "calibrate", crash)
        train_student(task, teacher, out, **{"recipe": RECIPE, "device": "cpu", **settings})


def contents(out) -> dict:
    return {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_an_unfinished_run_of_other_settings_is_refused(tmp_path, monkeypatch, tiny_task, vgg_teacher):
    interrupted(tiny_task, vgg_teacher, tmp_path, monkeypatch)
    before = contents(tmp_path)
    other = replace(RECIPE, epochs=2)
    with pytest.raises(UserError, match=r"unfinished run with different settings.*--overwrite"):
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=other, device="cpu")
    assert contents(tmp_path) == before
    folder = train_student(tiny_task, vgg_teacher, tmp_path, recipe=other, device="cpu", overwrite=True)
    assert {row["epoch"] for row in read_history(folder)} == {1, 2}
    assert store.load_config(folder).recipe == other


@pytest.fixture
def trained(student_folder, tmp_path):
    """A student as training with `RECIPE` leaves it below `tmp_path`."""
    shutil.copytree(student_folder.parents[2], tmp_path, dirs_exist_ok=True)
    return tmp_path / student_folder.relative_to(student_folder.parents[2])


def test_a_complete_folder_is_refused_without_overwrite(tmp_path, tiny_task, vgg_teacher, trained):
    (trained / layout.EVALUATION).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"complete student.*--overwrite"):
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    assert contents(tmp_path) == before
    train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu", overwrite=True)
    assert (trained / layout.WEIGHTS).read_bytes() == before[trained / layout.WEIGHTS]
    assert not (trained / layout.EVALUATION).exists()


def test_an_interrupted_overwrite_continues_when_repeated(tmp_path, monkeypatch, tiny_task, vgg_teacher, trained):
    interrupted(tiny_task, vgg_teacher, tmp_path, monkeypatch, overwrite=True)
    monkeypatch.setattr(Distillation, "training_step", crash)  # all epochs are done: no step is taken again
    folder = train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu", overwrite=True)
    assert store.is_complete(folder)


def test_a_damaged_unfinished_run_can_be_overwritten(tmp_path, monkeypatch, tiny_task, vgg_teacher):
    interrupted(tiny_task, vgg_teacher, tmp_path, monkeypatch)
    (config,) = tmp_path.rglob(layout.CONFIG)
    config.write_text("{")
    with pytest.raises(UserError, match="--overwrite"):
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    assert train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu", overwrite=True)


def test_two_processes_do_not_train_one_student(tmp_path, monkeypatch, tiny_task, vgg_teacher):
    said, step = [], Distillation.training_step

    def train_again(module, batch, index):
        monkeypatch.setattr(Distillation, "training_step", step)
        with pytest.raises(UserError) as refusal:
            train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu", overwrite=True)
        said.append(str(refusal.value))
        return step(module, batch, index)

    monkeypatch.setattr(Distillation, "training_step", train_again)
    folder = train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    assert said == [f"another run trains in {folder}; wait for it, or use another --out"]
    assert store.is_complete(folder)
    assert not list(tmp_path.rglob("*.lock"))


def test_a_run_killed_before_its_evaluation_is_not_trained_again(tiny_task, vgg_teacher, tmp_path, trained):
    weights = trained / layout.WEIGHTS
    written = weights.stat().st_mtime_ns
    assert train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu") == trained
    assert weights.stat().st_mtime_ns == written
    (trained / layout.EVALUATION).write_text("{}")
    with pytest.raises(UserError, match="complete student"):
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
