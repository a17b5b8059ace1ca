import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.miniatures import PREPROCESSING, evaluated
from torch import nn

from kdad.cli import main
from kdad.data.preprocessing import Preprocessing
from kdad.data.task import Labelled
from kdad.detection.calibration import load_calibration
from kdad.detection.detector import Detector
from kdad.networks.recipes import PAPER
from kdad.networks.teachers.loading import Teacher
from kdad.networks.teachers.registry import TEACHERS
from kdad.networks.vgg import imagenet_vgg16
from kdad.storage import student_folder as store
from kdad.storage.original_code import import_cloner_file

# The original network, one number a layer: convolution (width), batch norm, ReLU, pool.
ORIGINAL = [
    16, "B", "R", 16, "R", "M", 16, "B", "R", 128, "R", "M", 16, "B", "R", 16, "B", "R", 256, "R", "M",
    16, "B", "R", 16, "B", "R", 512, "R", "M", 16, "B", "R", 16, "B", "R", 512, "R", "M",
]  # fmt: skip
POOLS = [index for index, layer in enumerate(ORIGINAL) if layer == "M"]


def original_network() -> nn.Sequential:
    """The original code's student as a plain stack, its batch norms as after training, its weights half precision."""
    torch.manual_seed(0)
    layers, width = [], 3
    for layer in ORIGINAL:
        if isinstance(layer, int):
            layers.append(nn.Conv2d(width, layer, 3, padding=1, bias=False))
            width = layer
        else:
            layers.append({"B": nn.BatchNorm2d(width), "R": nn.ReLU(), "M": nn.MaxPool2d(2)}[layer])
    network = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for norm in (layer for layer in network if isinstance(layer, nn.BatchNorm2d)):
            for tensor, low, high in ((norm.weight, 0.5, 2), (norm.bias, -1, 1), (norm.running_mean, -1, 1)):
                tensor.uniform_(low, high)
            norm.running_var.uniform_(0.5, 2)
            norm.num_batches_tracked.fill_(6000)
    return network.half().float()


def original_state() -> dict:
    return nn.ModuleDict({"features": original_network()}).state_dict()


@pytest.fixture
def cloner_file(tmp_path):
    torch.save(original_state(), tmp_path / "Cloner_dots_epoch_199.pth")
    return tmp_path / "Cloner_dots_epoch_199.pth"


@pytest.fixture
def tiny_vgg16():
    """A VGG-16 with random weights and torchvision's hash, at 32 pixels to be quick."""
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(1)
    network = imagenet_vgg16(make_layers(cfgs["D"]))
    return Teacher("vgg16-imagenet", "397923af" + "0" * 56, ("imagenet-1k",), PREPROCESSING, network)


class Bomb:
    """Unpickled by a careless reader, it leaves a folder behind."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_the_original_has_thirteen_convolutions_and_eight_batch_norms():
    state = original_state()
    assert sum(tensor.ndim == 4 for tensor in state.values()) == 13
    assert sum(name.endswith("running_mean") for name in state) == 8
    assert not any(f"features.{index}.bias" in state for index in (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36))


@pytest.mark.parametrize("zipped", [True, False], ids=["new format", "old format"])
def test_an_imported_student_computes_what_the_original_did(zipped, tmp_path):
    file = tmp_path / "Cloner_cat_epoch_199.pth"
    torch.save(original_state(), file, _use_new_zipfile_serialization=zipped)
    folder = import_cloner_file(file, "cifar10", "cat", tmp_path / "out")
    student = store.load_student(folder, store.load_config(folder))
    pixels = torch.randn(2, 3, 64, 64)
    expected, x = [], pixels
    with torch.no_grad():
        for index, layer in enumerate(original_network()):
            x = layer(x)
            if index in POOLS[1:]:
                expected.append(x.flatten(2).transpose(1, 2))
        for read, activation in zip(student(pixels), expected, strict=True):
            torch.testing.assert_close(read, activation)


def test_an_imported_student_knows_where_it_comes_from(cloner_file, tmp_path):
    folder = import_cloner_file(cloner_file, "cifar10", "cat", tmp_path / "out")
    config = store.load_config(folder)
    assert folder == tmp_path / "out" / "cifar10" / "vgg16-imagenet" / "cat"
    assert (config.teacher, config.teacher_sha256) == ("vgg16-imagenet", "397923af")
    assert (config.recipe, config.preprocessing, config.label_overlap) == (
        PAPER,
        Preprocessing(**TEACHERS["vgg16-imagenet"].pixels),
        "related",
    )


def test_an_imported_student_has_p_values_only_once_evaluated(
    cloner_file, tiny_vgg16, tiny_task, tmp_path, monkeypatch
):
    small = replace(TEACHERS["vgg16-imagenet"], pixels=PREPROCESSING.as_dict())  # 32 pixels, to be quick
    monkeypatch.setitem(TEACHERS, "vgg16-imagenet", small)
    folder = import_cloner_file(cloner_file, "patterns", "dots", tmp_path / "out")
    assert load_calibration(folder, store.load_config(folder)) is None
    detector = Detector.load(folder, teacher=tiny_vgg16, device="cpu")
    normal, other = tiny_task.test.images[:3], tiny_task.test.images[-3:]
    before = detector.predict(normal)
    assert np.isnan(before.p_value).all()
    assert not before.is_anomaly.any()

    labels = torch.tensor([tiny_task.normal_index] * 3 + [0] * 3)
    tiny_task.test = Labelled(torch.cat([normal, other]), labels, torch.tensor([False] * 3 + [True] * 3))
    assert evaluated(folder, tiny_task, detector)["n_calibration"] == 20
    after = Detector.load(folder, teacher=tiny_vgg16, device="cpu").predict(normal)
    assert ((after.p_value > 0) & (after.p_value <= 1)).all()
    assert after.score.dtype == np.float32


def test_the_command_says_that_the_student_is_not_calibrated(cloner_file, tmp_path, capsys):
    command = ["import-cloner", str(cloner_file), "--normal-class", "cat", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "not calibrated" in capsys.readouterr().out
    assert main(command) == 2
    assert "is not empty" in capsys.readouterr().err


def damaged(kind: str, tmp_path: Path):
    """What `torch.save` shall write instead of the original's state dict."""
    state, first = original_state(), "features.0.weight"
    return {
        "another shape": {**state, first: torch.zeros(32, 3, 3, 3)},
        "a missing key": {name: tensor for name, tensor in state.items() if name != first},
        "an extra key": {**state, "classifier.weight": torch.zeros(2, 2)},
        "another student": nn.Linear(3, 3).state_dict(),
        "a checkpoint around it": {"state_dict": state, "epoch": 199},
        "numbers for tensors": {**state, first: 3},
        "numbers for names": {0: torch.zeros(3)},
        "a list": list(state.values()),
        "a tensor": torch.zeros(3),
        "NaN": {**state, first: torch.full((16, 3, 3, 3), torch.nan)},
        "too large for half": {**state, "features.1.running_var": torch.full((16,), 1e6)},
        "a whole module": original_network(),
        "a bomb": {**state, first: Bomb(tmp_path / "trace")},
        "a bomb alone": Bomb(tmp_path / "trace"),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["another shape", "a missing key", "an extra key", "another student", "a checkpoint around it",
     "numbers for tensors", "numbers for names", "a list", "a tensor", "NaN", "too large for half", "a whole module",
     "a bomb", "a bomb alone"],
)  # fmt: skip
def test_a_file_of_anything_else_is_refused(kind, tmp_path, refusal):
    torch.save(damaged(kind, tmp_path), tmp_path / "file.pth")
    assert str(tmp_path / "file.pth") in refusal(
        import_cloner_file, tmp_path / "file.pth", "cifar10", "cat", tmp_path / "out"
    )
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file.pth"], "nothing written, nothing run"


@pytest.mark.parametrize("content", [None, b"", b"not a state dict", b"\x80\x04.", 0.5])
def test_a_file_that_cannot_be_read_is_refused(content, cloner_file, tmp_path, refusal):
    if content is None:
        cloner_file.unlink()
    else:
        whole = cloner_file.read_bytes()
        cloner_file.write_bytes(whole[: len(whole) // 2] if content == 0.5 else content)
    assert str(cloner_file) in refusal(import_cloner_file, cloner_file, "cifar10", "cat", tmp_path / "out")
    assert str(tmp_path) in refusal(import_cloner_file, tmp_path, "cifar10", "cat", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dataset", "normal_class", "known"), [("cifar10", "unicorn", "airplane"), ("cifar11", "cat", "cifar10")]
)
def test_an_unknown_class_or_data_set_lists_the_known_ones(
    dataset, normal_class, known, cloner_file, tmp_path, refusal
):
    message = refusal(import_cloner_file, cloner_file, dataset, normal_class, tmp_path / "out")
    assert known in message
    assert not (tmp_path / "out").exists()


def test_an_import_does_not_replace_what_is_there(cloner_file, tmp_path, refusal):
    place = tmp_path / "out" / "cifar10" / "vgg16-imagenet" / "cat"
    place.mkdir(parents=True)
    (place / "last.ckpt").write_text("an unfinished run")
    assert f"{place} is not empty" in refusal(import_cloner_file, cloner_file, "cifar10", "cat", tmp_path / "out")
    assert list(place.iterdir()) == [place / "last.ckpt"]
