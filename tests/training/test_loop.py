"""Epochs, resume, history and loggers; most tests train a student of the tiny task, which is `fit` at work."""

import copy
import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from helpers.miniatures import SMALL_KDAD, Crash, SmallDefectsTask, TinyTask, crash, eventually
from torch.utils.data import TensorDataset

from kdad import cli
from kdad.errors import UserError, WorkFailed
from kdad.networks.recipes import Recipe
from kdad.networks.students import preset
from kdad.storage import layout
from kdad.storage import student_folder as store
from kdad.storage.history import read_history
from kdad.training import distillation, loop
from kdad.training.distillation import Distillation, train_student
from kdad.training.loop import EpochBatches

RECIPE = Recipe(epochs=3, batch_size=7, learning_rate=3e-3, schedule="one-cycle", flip=True)


def before_step(monkeypatch, epoch: int, batch: int, action):
    """Call `action` when the student is about to take this training step; both count from 0."""
    step = Distillation.training_step

    def watched(module, data, index):
        if (module.current_epoch, index) == (epoch, batch):
            action()
        return step(module, data, index)

    monkeypatch.setattr(Distillation, "training_step", watched)


def history_without_seconds(folder) -> list[dict]:
    return [{**row, "seconds": None} for row in read_history(folder)]


def assert_same_student(folder, other):
    for name in (layout.WEIGHTS, layout.CALIBRATION):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert history_without_seconds(folder) == history_without_seconds(other)
    assert not (folder / loop.CHECKPOINT).exists()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, vgg_teacher):
    return train_student(TinyTask(), vgg_teacher, tmp_path_factory.mktemp("unbroken"), recipe=RECIPE, device="cpu")


def test_batches_cover_every_index_once_in_an_order_of_seed_and_epoch():
    batches = EpochBatches(20, 6, seed=1)
    first = torch.cat(list(batches))
    assert sorted(first.tolist()) == list(range(20))
    assert torch.equal(first, torch.cat(list(EpochBatches(20, 6, seed=1))))
    assert not torch.equal(first, torch.cat(list(EpochBatches(20, 6, seed=2))))
    batches.set_epoch(1)
    assert not torch.equal(first, torch.cat(list(batches)))


def test_an_iterator_made_before_the_epoch_was_set_follows_the_epoch():
    early, late = EpochBatches(20, 6, seed=1), EpochBatches(20, 6, seed=1)
    iterator = iter(early)
    early.set_epoch(3)
    late.set_epoch(3)
    assert torch.equal(torch.cat(list(iterator)), torch.cat(list(late)))


@pytest.mark.parametrize(("n", "sizes"), [(12, [6, 6]), (13, [6, 6]), (14, [6, 6, 2]), (1, [1]), (4, [4])])
def test_only_a_lone_last_image_is_left_out_of_an_epoch(n, sizes):
    batches = EpochBatches(n, 6, seed=0)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


def test_making_an_iterator_leaves_the_global_random_state_alone():
    loader = loop.shuffled(TensorDataset(torch.arange(10)), 4, seed=0)
    before = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_in_order_keeps_the_order():
    (batches,) = zip(*loop.in_order(TensorDataset(torch.arange(10)), 4), strict=True)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_run_interrupted_twice_ends_as_an_unbroken_one(tmp_path, monkeypatch, tiny_task, vgg_teacher, unbroken):
    for epoch, batch in ((0, 1), (2, 3)):
        with monkeypatch.context() as patched, pytest.raises(Crash):
            before_step(patched, epoch, batch, crash)
            train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    folder = train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    assert_same_student(folder, unbroken)


def fail_second_checkpoint(monkeypatch):
    save, calls = pl.Trainer.save_checkpoint, []

    def flaky(trainer, path):
        calls.append(path)
        save(trainer, path)
        if len(calls) == 2:
            raise Crash

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", flaky)


def fail_calibrating(monkeypatch):
    monkeypatch.setattr(distillation, "calibrate", crash)


def fail_saving_the_weights(monkeypatch):
    monkeypatch.setattr(store, "save_student", crash)


@pytest.mark.parametrize("fail", [fail_second_checkpoint, fail_calibrating, fail_saving_the_weights])
def test_a_run_killed_between_two_files_ends_as_an_unbroken_one(
    tmp_path, monkeypatch, tiny_task, vgg_teacher, unbroken, fail
):
    with monkeypatch.context() as patched, pytest.raises(Crash):
        fail(patched)
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    assert not list(tmp_path.rglob("*.part"))
    assert not store.find_students(tmp_path)
    folder = train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    assert_same_student(folder, unbroken)


def test_a_vit_student_with_dropout_and_random_crop_resumes_identically(tmp_path, monkeypatch, tiny_task, vit_teacher):
    teacher = replace(vit_teacher, preprocessing=replace(vit_teacher.preprocessing, resize=40))
    architecture, _ = preset(teacher)
    monkeypatch.setattr(distillation, "preset", lambda _: ({**architecture, "dropout": 0.2}, None))
    recipe = Recipe(epochs=3, batch_size=7, optimizer="adamw", schedule="step", flip=True, random_crop=True)
    whole = train_student(tiny_task, teacher, tmp_path / "whole", recipe=recipe, device="cpu")
    with monkeypatch.context() as patched, pytest.raises(Crash):
        before_step(patched, 1, 1, crash)
        train_student(tiny_task, teacher, tmp_path / "broken", recipe=recipe, device="cpu")
    assert_same_student(train_student(tiny_task, teacher, tmp_path / "broken", recipe=recipe, device="cpu"), whole)


def test_seeds_give_different_students(tmp_path, tiny_task, vgg_teacher, student_folder):
    recipe = store.load_config(student_folder).recipe
    folder = train_student(tiny_task, vgg_teacher, tmp_path, recipe=recipe, seed=1, device="cpu")
    assert folder.name == "dots-seed1"
    assert (folder / layout.WEIGHTS).read_bytes() != (student_folder / layout.WEIGHTS).read_bytes()


def train_arguments(out, dataset: str, teacher, epochs: int, batch_size: int) -> list[str]:
    request = f"train --dataset {dataset} --normal-class dots --epochs {epochs} --batch-size {batch_size}"
    places = ["--teacher", str(teacher), "--out", str(out)]
    return [*request.split(), "--learning-rate", "3e-3", "--device", "cpu", *places]


def kill_after_first_epoch(arguments: list[str], folder) -> int:
    """Start the command, send SIGKILL as soon as the history holds an epoch, and return the exit status."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", SMALL_KDAD, *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not read_history(folder):
        time.sleep(0.02)
    process.kill()
    return process.wait()


@pytest.mark.slow
def test_a_process_killed_for_real_and_started_again_ends_as_an_unbroken_one(tmp_path, monkeypatch, vit_folder):
    monkeypatch.setattr("kdad.data.loading.load_task", lambda _, normal_class, *sizes: SmallDefectsTask(normal_class))
    broken, whole = (
        train_arguments(tmp_path / name, "patterns-defects", vit_folder, epochs=15, batch_size=8)
        for name in ("broken", "whole")
    )
    folder, other = (tmp_path / name / "patterns-defects" / vit_folder.name / "dots" for name in ("broken", "whole"))
    assert kill_after_first_epoch(broken, folder) == -signal.SIGKILL
    assert not store.is_complete(folder)
    assert cli.main(broken) == 0
    assert cli.main(whole) == 0
    assert_same_student(folder, other)
    assert (folder / layout.EVALUATION).read_bytes() == (other / layout.EVALUATION).read_bytes()


@pytest.fixture
def heard():
    """Ctrl-C reaches us, as it does not where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_a_signal_ends_the_command_with_one_line_and_the_run_continues(
    tmp_path, monkeypatch, capsys, tiny_task, vgg_folder, unbroken
):
    monkeypatch.setattr("kdad.data.loading.load_task", lambda *_: tiny_task)
    arguments = train_arguments(tmp_path, "patterns", vgg_folder, RECIPE.epochs, RECIPE.batch_size)
    for sent, epoch in ((signal.SIGINT, 1), (signal.SIGTERM, 2)):
        handler = signal.getsignal(sent)
        with monkeypatch.context() as patched:
            before_step(patched, epoch, 2, partial(signal.raise_signal, sent))
            assert cli.main(arguments) == cli.INTERRUPTED
        said = capsys.readouterr().err.splitlines()
        assert said[-1] == "kdad: interrupted; the same command continues where it stopped"
        assert signal.getsignal(sent) is handler
    assert cli.main(arguments) == 0
    assert_same_student(tmp_path / "patterns" / vgg_folder.name / "dots", unbroken)


def test_the_bar_shows_loss_auroc_and_time_left(tmp_path, capfd, tiny_task, vgg_teacher):
    train_student(tiny_task, vgg_teacher, tmp_path, recipe=replace(RECIPE, epochs=1), device="cpu")
    shown = capfd.readouterr().err.replace("\r", "\n").strip().splitlines()
    training = [line for line in shown if line.startswith("training")][-1]
    for said in ("epoch=1/1", "loss=", "left="):
        assert said in training
    assert shown[-1].startswith("calibrating: 100%")


def test_history_has_a_row_per_epoch_and_split(unbroken):
    with open(unbroken / layout.HISTORY) as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["epoch", "split", "loss", "auroc", "seconds"]
    assert [(row["epoch"], row["split"]) for row in rows] == [
        (str(epoch), split) for epoch in (1, 2, 3) for split in ("train", "validation")
    ]
    for row in rows:
        assert float(row["loss"]) > 0
        assert float(row["seconds"]) >= 0
        assert (row["auroc"] == "") == (row["split"] == "train")
        assert row["auroc"] == "" or 0 <= float(row["auroc"]) <= 1


def nan_loss_from_epoch_2(monkeypatch):
    step = Distillation.training_step

    def broken(module, data, index):
        return step(module, data, index) * (float("nan") if module.current_epoch else 1)

    monkeypatch.setattr(Distillation, "training_step", broken)


def nan_weights_after_the_last_step_of_epoch_2(monkeypatch):
    step = Distillation.validation_step

    def broken(module, data, index):
        if module.current_epoch == 1:
            next(module.student.parameters()).fill_(float("nan"))
        step(module, data, index)

    monkeypatch.setattr(Distillation, "validation_step", broken)


@pytest.mark.parametrize("broken", [nan_loss_from_epoch_2, nan_weights_after_the_last_step_of_epoch_2])
def test_nan_stops_the_run_and_keeps_the_last_good_epoch(tmp_path, monkeypatch, tiny_task, vgg_teacher, broken):
    broken(monkeypatch)
    with pytest.raises(WorkFailed, match=r"NaN or infinite in epoch 2; epoch 1 is kept"):
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    (checkpoint,) = tmp_path.rglob(loop.CHECKPOINT)
    kept = torch.load(checkpoint, weights_only=True)
    assert kept["epoch"] == 0
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())
    assert {row["epoch"] for row in read_history(checkpoint.parent)} == {1}
    assert not store.find_students(tmp_path)


def test_nan_in_the_first_epoch_says_that_nothing_is_kept(tmp_path, monkeypatch, tiny_task, vgg_teacher):
    monkeypatch.setattr(distillation, "distillation_loss", lambda errors, _: errors.sum() * float("inf"))
    with pytest.raises(WorkFailed, match="in epoch 1; no epoch was finished"):
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")
    assert not list(tmp_path.rglob(loop.CHECKPOINT))


def test_out_of_memory_says_what_to_do(tmp_path, monkeypatch, tiny_task, vgg_teacher):
    def exhausted():
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    before_step(monkeypatch, 0, 0, exhausted)
    with pytest.raises(WorkFailed, match="smaller --batch-size"):
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu")


def test_tensorboard_gets_the_curves(tmp_path, tiny_task, vgg_teacher):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = replace(RECIPE, epochs=2)
    folder = train_student(tiny_task, vgg_teacher, tmp_path, recipe=recipe, device="cpu", logger="tensorboard")
    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    logged = [round(point.value, 6) for point in events.Scalars("val_auroc")]
    kept = [row["auroc"] for row in read_history(folder) if row["split"] == "validation"]
    assert logged == pytest.approx(kept, abs=1e-6)
    assert len(events.Scalars("train_loss")) == 2


@pytest.mark.slow
def test_wandb_writes_its_run_offline(tmp_path, monkeypatch, tiny_task, vgg_teacher):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    folder = train_student(
        tiny_task, vgg_teacher, tmp_path, recipe=replace(RECIPE, epochs=1), device="cpu", logger="wandb"
    )
    wandb.finish()
    (run,) = (folder / "logs" / "wandb").glob("offline-run-*/*.wandb")
    eventually(lambda: b"val_auroc" in run.read_bytes())  # wandb's own process writes the file


@pytest.mark.parametrize(
    ("logger", "said"),
    [("wandb", r"--logger wandb needs an extra package: pip install 'kdad\[wandb\]'"), ("mlflow", "unknown logger")],
)
def test_a_logger_that_cannot_be_had_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, tiny_task, vgg_teacher, logger, said
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=said):
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=RECIPE, device="cpu", logger=logger)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("threads", "processors", "says"), [(2, 1.0, True), (2, 1.9, False), (1, 0.1, False)])
def test_who_trains_beside_other_programs_is_told_so_once(threads, processors, says, tmp_path, monkeypatch, capsys):
    now = iter(range(10**6))
    monkeypatch.setattr(loop.torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(loop.time, "process_time", lambda: processors * next(copy.copy(now)))
    crowd, module = loop.ContentionWarning(), pl.LightningModule()
    crowd.on_train_start(None, module)
    for step in range(20):
        crowd.on_train_batch_end(None, module, {}, None, step)
    assert capsys.readouterr().err.count("--threads 1 would be faster") == says
