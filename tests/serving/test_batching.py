"""Answers to questions that come at the same time."""

import threading

import numpy as np
import pytest
import torch

from kdad.detection.detector import Detector
from kdad.errors import UserError
from kdad.serving.batching import Batcher


@pytest.fixture(scope="module")
def detector(student_folder, vgg_teacher):
    return Detector.load(student_folder, teacher=vgg_teacher, device="cpu")


def images(count: int, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(side)).byte()


@pytest.fixture
def batcher():
    sizes = []
    batcher = Batcher(sizes.append)
    batcher.sizes = sizes
    yield batcher
    batcher.close()


@pytest.fixture
def held(detector, monkeypatch):
    """An event that the first judgement waits for, so that questions gather."""
    go, predict = threading.Event(), detector.predict

    def waiting(batch, fpr=None):
        go.wait(30)
        return predict(batch, fpr=fpr)

    monkeypatch.setattr(detector, "predict", waiting)
    return go


def test_questions_that_come_together_are_judged_together_each_as_alone(batcher, detector, held):
    small, large = images(5), images(2, 48)
    answers = [batcher.ask(detector, image, 0.1) for image in (*small, *large)]
    held.set()
    said = [answer.result(30) for answer in answers]
    assert sum(batcher.sizes) == 7
    assert len(batcher.sizes) < 7
    for image, each in zip((*small, *large), said, strict=True):
        alone = detector.predict(image, fpr=0.1)
        assert len(each) == 1
        np.testing.assert_allclose(each.score, alone.score, atol=1e-4)
        np.testing.assert_allclose(each.p_value, alone.p_value)
        np.testing.assert_allclose(each.heatmap, alone.heatmap, atol=1e-3)
        assert [layer.shape for layer in each.measurement.patch_maps] == [
            layer.shape for layer in alone.measurement.patch_maps
        ]


def test_one_who_asks_for_the_impossible_spoils_it_for_nobody(batcher, detector, held):
    impossible, fine = batcher.ask(detector, images(1)[0], 1e-9), batcher.ask(detector, images(1)[0], None)
    held.set()
    with pytest.raises(UserError, match="false-positive"):
        impossible.result(30)
    assert len(fine.result(30)) == 1


def test_an_answer_that_nobody_waits_for_is_not_worked_out(batcher, detector, held):
    first, second = batcher.ask(detector, images(1)[0], None), batcher.ask(detector, images(1, 48)[0], None)
    assert second.cancel()
    held.set()
    first.result(30)
    batcher.close()
    assert batcher.sizes == [1]


def test_closing_answers_what_was_asked(detector):
    batcher = Batcher()
    answers = [batcher.ask(detector, image, None) for image in images(3)]
    batcher.close()
    assert all(answer.done() for answer in answers)
