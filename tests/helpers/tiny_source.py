"""Sixty images that compact teachers learn from in a second."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from helpers.miniatures import NARROW_BLOCKS, Crash

from kdad.networks.vgg import CompactVGG
from kdad.training.pretraining.pretrain import BACKBONES, train_teacher


def narrow_vgg(classes, _):
    return CompactVGG(classes, NARROW_BLOCKS)


class TinySource:
    """Sixty training and twenty test images of noise, every one different; it remembers what it was asked for."""

    name = "patterns"
    classes = ("even", "odd")
    counts = {"train": 60, "test": 20}

    def __init__(self):
        self.asked: list[tuple[str, set[int]]] = []

    def labels(self, part):
        return torch.arange(self.counts[part]) % 2

    def images(self, part, indices):
        self.asked.append((part, set(indices.tolist())))
        generator = torch.Generator().manual_seed(len(part))
        drawn = torch.randint(0, 256, (self.counts[part], 3, 32, 32), dtype=torch.uint8, generator=generator)
        return drawn[indices]

    def fingerprint(self, part):
        return part


def taught(backbone, out, **options):
    """Teach a backbone, a VGG with few channels; returns its card."""
    with patch.dict(BACKBONES, vgg=replace(BACKBONES["vgg"], build=narrow_vgg)):
        return train_teacher(backbone, "patterns", out, **{"epochs": 1, "device": "cpu", **options})


def interrupted_and_whole(monkeypatch, module, work, backbone, **options) -> tuple[dict, dict]:
    """The files of two runs of two epochs: one that crashed in its second and was called again, and an unbroken one.

    `module` is the Lightning module whose step crashes.
    """
    step = module.training_step

    def interrupted(self, batch, index):
        if (self.current_epoch, index) == (1, 1):
            raise Crash
        return step(self, batch, index)

    taught(backbone, work / "whole", epochs=2, **options)
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(module, "training_step", interrupted)
        taught(backbone, work / "broken", epochs=2, **options)
    taught(backbone, work / "broken", epochs=2, **options)
    broken, whole = contents(work / "broken"), contents(work / "whole")
    return tuple({file.name: content for file, content in run.items()} for run in (broken, whole))


def contents(folder) -> dict:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
