"""Tiny teachers and tasks, made once; nothing here touches a network or a real data set."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: a second thread would only wait for the first
os.environ.pop("KDAD_DATA", None)

import json
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from kdad.catalogue import CIFAR10_CLASSES
from kdad.data import DefectsTask, Labelled
from kdad.discrepancy import DISTANT_ERROR, SCORES
from kdad.errors import UserError
from kdad.preprocessing import Preprocessing
from kdad.teachers import load_teacher
from kdad.vgg import CompactVGG

APP = Path(__file__).parent.parent / "app.py"
PREPROCESSING = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class TinyTask:
    """A handful of images in every part: `patterns` in miniature."""

    score, tile, folds, same_images = DISTANT_ERROR, 0, (), True

    def __init__(self, normal_class: str = "dots"):
        from kdad import patterns

        self.dataset, self.normal_class, self.classes = "patterns", normal_class, patterns.CLASSES
        self.kinds = patterns.CLASSES
        self.normal_index = self.classes.index(normal_class)
        self.train, self.calibration = self._normals(24, seed=10), self._normals(20, seed=11)
        self.validation, self.test = self._labelled(seed=11), self._labelled(seed=12)

    def _normals(self, n: int, seed: int) -> torch.Tensor:
        from kdad import patterns

        return torch.from_numpy(patterns.normals(self.normal_class, n, seed))

    def _labelled(self, seed: int) -> Labelled:
        from kdad import patterns

        other = torch.from_numpy(patterns.normals("stripes", 20, seed))
        labels = torch.tensor([self.normal_index] * 20 + [patterns.CLASSES.index("stripes")] * 20)
        return Labelled(torch.cat([self._normals(20, seed), other]), labels, labels != self.normal_index)


class SmallDefectsTask(DefectsTask):
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
    """A compact VGG teacher with random weights in `folder`."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    CompactVGG(10).save(folder, PREPROCESSING)
    card = {"trained_on": ["cifar10"], "preprocessing": PREPROCESSING.as_dict()}
    (folder / "teacher.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="session")
def vgg_folder(tmp_path_factory):
    return save_vgg_teacher(tmp_path_factory.mktemp("teachers") / "tiny-vgg")


@pytest.fixture(scope="session")
def vgg_teacher(vgg_folder):
    return load_teacher(str(vgg_folder))


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory):
    """A tiny random ViT with its image processor's configuration."""
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("teachers") / "tiny-vit"
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    processor = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="session")
def vit_teacher(vit_folder):
    return load_teacher(str(vit_folder))


@pytest.fixture
def tiny_task():
    return TinyTask()


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory, vgg_teacher):
    """A complete student, trained for one epoch on a tiny task; read-only for the tests that share it."""
    from kdad.distillation import train_student
    from kdad.recipes import Recipe

    out = tmp_path_factory.mktemp("students")
    return train_student(TinyTask(), vgg_teacher, out, recipe=Recipe(epochs=1, batch_size=8), device="cpu")


@pytest.fixture(scope="session")
def students_root(tmp_path_factory, student_folder):
    """Two evaluated students of one teacher, `patterns/tiny-vgg/{dots,stripes}`, where the app looks for them."""
    root = tmp_path_factory.mktemp("root")
    for normal_class in ("dots", "stripes"):
        folder = root / "patterns" / "tiny-vgg" / normal_class
        shutil.copytree(student_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"normal_class": normal_class}))
        (folder / "evaluation.json").write_text(json.dumps({"auroc": 0.9, "kinds": []}))
    return root


@pytest.fixture(scope="session")
def evaluated_root(tmp_path_factory, students_root):
    """Students with made-up scores of the whole of `patterns`' test part: dots under two seeds, and stripes.

    Every texture is as anomalous to them as its number says. A fourth run is not finished.
    """
    root = tmp_path_factory.mktemp("evaluated")
    for seed, name in enumerate(("dots", "dots-seed1", "stripes")):
        folder = root / "patterns" / "tiny-vgg" / name
        normal_class = name.removesuffix("-seed1")
        shutil.copytree(students_root / "patterns" / "tiny-vgg" / normal_class, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"seed": seed % 2}))
        save_made_up_scores(folder, normal_class, seed)
    unfinished = root / "patterns" / "tiny-vgg" / "rings"
    unfinished.mkdir()
    shutil.copy(folder / "history.csv", unfinished)
    return root


def save_made_up_scores(folder, normal_class: str, seed: int) -> None:
    from kdad.catalogue import class_names
    from kdad.store import load_calibration, load_config

    classes = class_names("patterns")
    labels, rng = np.arange(len(classes)).repeat(200), np.random.default_rng(seed)
    anomalous = labels != classes.index(normal_class)
    calibration = load_calibration(folder, load_config(folder))
    normals = SCORES[DISTANT_ERROR]({name: tensor.numpy() for name, tensor in calibration.items()}, 0.01)
    score = normals.mean() + normals.std() * rng.normal(0.5 * labels * anomalous)
    table = {"index": np.arange(len(labels)), "label": labels, "anomalous": anomalous, "score": score}
    pandas.DataFrame(table | {"score_mkd": score + normals.std() * rng.normal(size=len(labels))}).to_parquet(
        folder / "scores.parquet"
    )
    figures = {"auroc": 0.9, "score": DISTANT_ERROR, "split": "test", "kinds": classes}
    (folder / "evaluation.json").write_text(json.dumps(figures))


@pytest.fixture
def entry():
    """A function that makes one entry of the results file, with figures around `auroc`, over three seeds."""

    def made(teacher: str = "vgg-cifar10", auroc: float = 0.9, **changes) -> dict:
        family, trained_on = teacher.split("-")
        spread = {"mean": auroc, "deviation": 0.01, "values": [auroc - 0.01, auroc, auroc + 0.01]}
        scores = {
            "auroc": spread,
            "auroc_last_layer": spread | {"mean": auroc - 0.01},
            "auroc_mkd": spread | {"mean": auroc - 0.02},
        }
        return {
            "dataset": "cifar10",
            "image_format": "PNG",
            "teacher": teacher,
            "teacher_sha256": "abc",
            "family": family,
            "label_overlap": "same" if trained_on == "cifar10" else "related",
            "split": "test",
            "score": DISTANT_ERROR,
            "seeds": 3,
            "classes": dict.fromkeys(CIFAR10_CLASSES, scores),
            "mean": {score: figures["mean"] for score, figures in scores.items()},
            "mean_deviation": dict.fromkeys(scores, 0.004),
            "seconds_per_student": 61.4,
            "hardware": ["cpu, x86_64, 2 threads"],
        } | changes

    return made


@pytest.fixture
def open_page(monkeypatch, students_root):
    """A function that opens a page of the app cold: `open_page("pages/2_Inspect.py", root=…, student=…)`."""
    from streamlit.testing.v1 import AppTest

    def opened(page: str | None = None, root=students_root, **query: str) -> AppTest:
        monkeypatch.setenv("KDAD_STUDENTS", str(root))
        at = AppTest.from_file(APP, default_timeout=60)
        if page:
            at.switch_page(page)
        for name, value in query.items():
            at.query_params[name] = value
        at.run()
        assert not at.exception
        return at

    return opened


@pytest.fixture(scope="module")
def app_environment(students_root) -> dict[str, str]:
    """The environment of the server in `address`; a module of browser tests may have its own."""
    return {"KDAD_STUDENTS": str(students_root)}


@pytest.fixture(scope="module")
def address(app_environment):
    """The address of a running server of the app."""
    from browser import serving_app

    with serving_app(**app_environment) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    from browser import running_chromium

    with running_chromium() as chromium:
        yield chromium


@pytest.fixture
def visit(chromium, address):
    """A context manager that opens a page cold: `visit(path, size, scheme)`; see `browser.visiting`."""
    from browser import visiting

    return partial(visiting, chromium, address)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running local Hub that this process fetches from and pushes to, with an empty cache and no token."""
    from hub import point_client_at, serving

    with serving(tmp_path / "hub") as server:
        point_client_at(server.endpoint, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """The Hub's address is that of a port nobody listens at."""
    from hub import Hub, point_client_at

    server = Hub(tmp_path / "hub")
    server.server_close()
    point_client_at(server.endpoint, tmp_path / "cache", monkeypatch)
    return server.endpoint


@pytest.fixture
def refusal():
    """A function that calls its arguments, expects a `UserError` of one line, and returns that line."""

    def refused(call, *args, **kwargs) -> str:
        with pytest.raises(UserError) as caught:
            call(*args, **kwargs)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    return refused
