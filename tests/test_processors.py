"""How many threads a run computes with, beside other programs and after a break."""

import os
from types import SimpleNamespace

import pytest
import torch
from helpers.miniatures import Crash
from pytorch_lightning import Callback

from kdad import processors
from kdad.networks.recipes import Recipe
from kdad.processors import Load, choose_threads
from kdad.storage.student_folder import load_config
from kdad.training.distillation import train_student


@pytest.fixture
def threads(monkeypatch):
    """Let a test set torch's threads, and put them back after it."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield torch
    torch.set_num_threads(before)


class Machine:
    """Four processors, of which so many are busy with this program and with others, ten seconds after a look."""

    def __init__(self, monkeypatch, own: float, others: float):
        self.seconds, self.own, self.others = 0.0, own, others
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
        monkeypatch.setattr(processors.psutil, "cpu_times", lambda percpu: [self.times()] * 4)
        monkeypatch.setattr(processors.time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(processors.time, "process_time", lambda: self.seconds * own)

    def times(self) -> SimpleNamespace:
        busy = self.seconds * (self.own + self.others) / 4
        return SimpleNamespace(
            _asdict=lambda: {"user": busy * 0.75, "system": busy * 0.25, "idle": 10 - busy, "guest": 7}
        )


@pytest.mark.parametrize(
    ("own", "others", "free"), [(1, 0, 4), (1, 0.3, 4), (1, 1, 3), (2, 1.9, 2), (0.5, 3.5, 1), (0.1, 3.9, 1)]
)
def test_what_other_programs_use_is_not_free(monkeypatch, own, others, free):
    machine = Machine(monkeypatch, own, others)
    load = Load()
    machine.seconds = 10.0
    assert load.elsewhere() == pytest.approx(others)
    assert load.free() == free


def test_a_real_look_sees_no_more_processors_than_there_are():
    load = Load()
    sum(range(10**6))
    assert 1 <= load.free() <= (os.cpu_count() or 1)


def test_threads_are_those_asked_for_or_those_that_are_free(threads, monkeypatch):
    threads.set_num_threads(4)
    busy = SimpleNamespace(free=lambda: 2)
    choose_threads(3, busy)
    assert threads.get_num_threads() == 3
    choose_threads(None, busy)
    assert threads.get_num_threads() == 2
    choose_threads(None, SimpleNamespace(free=lambda: 9))
    assert threads.get_num_threads() == 2  # torch knows why it has no more
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    choose_threads(None, SimpleNamespace(free=lambda: 1))
    assert threads.get_num_threads() == 2


class CrashAfterFirstEpoch(Callback):
    def on_train_epoch_end(self, trainer, module) -> None:
        raise Crash


def test_a_run_goes_on_with_the_threads_that_it_began_with(threads, tiny_task, vgg_teacher, tmp_path):
    recipe = Recipe(epochs=2, batch_size=8, min_steps=2)
    threads.set_num_threads(1)
    with pytest.raises(Crash):
        train_student(tiny_task, vgg_teacher, tmp_path, recipe=recipe, device="cpu", callbacks=[CrashAfterFirstEpoch()])
    threads.set_num_threads(2)
    folder = train_student(tiny_task, vgg_teacher, tmp_path, recipe=recipe, device="cpu")
    assert threads.get_num_threads() == 1
    assert load_config(folder).hardware.endswith("1 threads")
