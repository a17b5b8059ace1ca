"""Tiny tasks and teachers, a crash, and patience."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from kdad.data import patterns
from kdad.data.pattern_defects import PatternDefectsTask
from kdad.data.preprocessing import Preprocessing
from kdad.data.task import Labelled, Task
from kdad.evaluation.evaluate import evaluate
from kdad.networks.compact_vit import CompactViT
from kdad.networks.features import CompactClassifier, FeatureNetwork
from kdad.networks.students import build_student
from kdad.networks.vgg import CompactVGG
from kdad.scores import DISTANT_ERROR
from kdad.storage.sealing import sealed

ROOT = Path(__file__).parent.parent.parent
PREPROCESSING = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
NARROW_BLOCKS = ((16, 32), (64, 64), (64, 128), (64, 128))  # of a VGG that computes a fifth of the shipped ones'


# `python -m kdad` on a handful of images.
SMALL_KDAD = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from helpers.miniatures import SmallDefectsTask
import kdad.data.loading
kdad.data.loading.load_task = lambda dataset, normal_class, *sizes: SmallDefectsTask(normal_class)
from kdad.storage import layout
from kdad.cli import main
sys.exit(main())
"""


class OfEachInstance:
    """An attribute that an instance must set, and has no longer once it is deleted."""

    def __get__(self, instance, owner):
        raise AttributeError("not set")


class TinyTask(Task):
    """A handful of images in every part: `patterns` in miniature."""

    dataset, classes, kinds, same_images, score = "patterns", patterns.CLASSES, patterns.CLASSES, True, DISTANT_ERROR
    normal_class = train = calibration = validation = test = OfEachInstance()

    def __init__(self, normal_class: str = "dots"):
        self.normal_class = normal_class
        self.normal_index = self.classes.index(normal_class)
        self.train, self.calibration = self._normals(24, seed=10), self._normals(20, seed=11)
        self.validation, self.test = self._labelled(seed=11), self._labelled(seed=12)

    def fingerprint(self, part: str) -> str:
        return patterns.fingerprint(f"tiny {part}")

    def _normals(self, n: int, seed: int) -> torch.Tensor:
        return torch.from_numpy(patterns.normals(self.normal_class, n, seed))

    def _labelled(self, seed: int) -> Labelled:
        other = torch.from_numpy(patterns.normals("stripes", 20, seed))
        labels = torch.tensor([self.normal_index] * 20 + [patterns.CLASSES.index("stripes")] * 20)
        return Labelled(torch.cat([self._normals(20, seed), other]), labels, labels != self.normal_index)


class SmallDefectsTask(PatternDefectsTask):
    """`patterns-defects` in miniature."""

    counts = {"train": 24, "calibration": 20, "test": 12, "defects": 4}


class Crash(Exception):
    """What stops a run in the tests of resuming."""


def crash(*_, **__):
    raise Crash


def eventually(condition, seconds: float = 30) -> None:
    """Wait for what another process does."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def save_vgg_teacher(folder, seed: int = 0):
    """A narrow compact VGG teacher with random weights in `folder`."""
    torch.manual_seed(seed)
    return _save_teacher(CompactVGG(10, NARROW_BLOCKS), folder)


def narrow_student() -> FeatureNetwork:
    """An untrained student of that teacher."""
    torch.manual_seed(0)
    channels = [last for _, last in NARROW_BLOCKS]
    return build_student({"kind": "compact-vgg", "inner": 4, "channels": channels}).eval()


def save_vit_teacher(folder):
    """A compact ViT teacher with random weights in `folder`, which is read without transformers."""
    torch.manual_seed(0)
    return _save_teacher(CompactViT(2), folder, backbone="vit")


def _save_teacher(network: CompactClassifier, folder, **card: str):
    folder.mkdir(parents=True, exist_ok=True)
    network.save(folder, PREPROCESSING)
    known = {"trained_on": ["cifar10"], "preprocessing": PREPROCESSING.as_dict()}
    (folder / "teacher.json").write_text(json.dumps(known | card))
    return folder


def save_timm_weights(file, name: str, seed: int = 0):
    """Random weights of timm's model `name` in `file`."""
    import timm  # not above: programs that tests start import this file, too

    torch.manual_seed(seed)
    state = timm.create_model(name).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
    return file


def reseal(file: Path, without: Sequence[str] = (), **changes) -> None:
    """Change a sealed JSON file as if it had been written so."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(sealed({name: value for name, value in values.items() if name not in without})))


def evaluated(folder, task, detector) -> dict:
    """The figures of a student, saved in its folder if they are of its own task, as the command does."""
    evaluation = evaluate(task, detector)
    if evaluation.own:
        evaluation.save(folder)
    return evaluation.figures
