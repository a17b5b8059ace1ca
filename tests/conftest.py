"""Tiny teachers and tasks, made once; nothing here touches a network or a real data set."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: a second thread would only wait for the first
os.environ.pop("KDAD_DATA", None)

import gc
import json
import shutil
from functools import cache, partial

import numpy as np
import pandas
import pytest
import torch
from helpers.miniatures import ROOT, TinyTask, reseal, save_timm_weights, save_vgg_teacher

from kdad.data.datasets import CIFAR10_CLASSES
from kdad.errors import UserError
from kdad.networks.teachers.loading import load_teacher
from kdad.scores import DISTANT_ERROR, LOCAL_DISTANCE, score_named


def pytest_collection_finish():
    """Spare garbage collections what all imports have made: each training asks for one, of half a second else."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def spare_garbage_collections_what_was_imported_late():
    yield
    gc.freeze()


@pytest.fixture(scope="session")
def vgg_folder(tmp_path_factory):
    return save_vgg_teacher(tmp_path_factory.mktemp("teachers") / "tiny-vgg")


@pytest.fixture(scope="session")
def vgg_teacher(vgg_folder):
    return load_teacher(str(vgg_folder))


@pytest.fixture(scope="session")
def timm_file(tmp_path_factory):
    """Random weights of timm's smallest ResNet."""
    return save_timm_weights(tmp_path_factory.mktemp("timm") / "weights.safetensors", "test_resnet")


@pytest.fixture(scope="session")
def timm_teacher(timm_file):
    """A tiny CNN whose layers differ in width and stride."""
    return load_teacher(f"timm:test_resnet@{timm_file}", image_size=96)


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
    from kdad.networks.recipes import Recipe
    from kdad.training.distillation import train_student

    out = tmp_path_factory.mktemp("students")
    return train_student(TinyTask(), vgg_teacher, out, recipe=Recipe(epochs=1, batch_size=8), device="cpu")


@pytest.fixture(scope="session")
def place_student_folder(tmp_path_factory, vgg_teacher):
    """A complete student whose score reads distances of patches from normals; read-only."""
    from kdad.networks.recipes import Recipe
    from kdad.training.distillation import train_student

    task, out = TinyTask(), tmp_path_factory.mktemp("students")
    task.score = LOCAL_DISTANCE
    return train_student(task, vgg_teacher, out, recipe=Recipe(epochs=1, batch_size=8), device="cpu")


@pytest.fixture(scope="session")
def students_root(tmp_path_factory, student_folder):
    """Two evaluated students of one teacher, `patterns/tiny-vgg/{dots,stripes}`, where the app looks for them."""
    root = tmp_path_factory.mktemp("root")
    for normal_class in ("dots", "stripes"):
        folder = root / "patterns" / "tiny-vgg" / normal_class
        shutil.copytree(student_folder, folder)
        reseal(folder / "config.json", normal_class=normal_class)
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
        reseal(folder / "config.json", seed=seed % 2)
        save_made_up_scores(folder, normal_class, seed)
    unfinished = root / "patterns" / "tiny-vgg" / "rings"
    unfinished.mkdir()
    shutil.copy(folder / "history.csv", unfinished)
    return root


def save_made_up_scores(folder, normal_class: str, seed: int) -> None:
    from kdad.data.datasets import class_names
    from kdad.detection.calibration import load_calibration
    from kdad.storage.student_folder import load_config

    classes = class_names("patterns")
    labels, rng = np.arange(len(classes)).repeat(200), np.random.default_rng(seed)
    anomalous = labels != classes.index(normal_class)
    normals = score_named(DISTANT_ERROR)(load_calibration(folder, load_config(folder)).measurement(0.01))
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
            "auroc_last_layer": spread | {"mean": auroc - 0.01, "values": [auroc - 0.02, auroc - 0.01, auroc]},
            "auroc_mkd": spread | {"mean": auroc - 0.02, "values": [auroc - 0.03, auroc - 0.02, auroc - 0.01]},
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


@pytest.fixture(scope="session")
def components_found_once():
    """Whenever Streamlit starts, it looks for components in the metadata of all installed packages; here, once."""
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        once = cache(manifest_scanner.scan_component_manifests)
        patch.setattr(manifest_scanner, "scan_component_manifests", once)
        yield


@pytest.fixture
def open_page(monkeypatch, students_root, components_found_once):
    """A function that opens a page of the app cold: `open_page("pages/2_Inspect.py", root=…, student=…)`."""
    from streamlit.testing.v1 import AppTest

    def opened(page: str | None = None, root=students_root, **query: str) -> AppTest:
        monkeypatch.setenv("KDAD_STUDENTS", str(root))
        at = AppTest.from_file(ROOT / "app.py", default_timeout=60)
        if page:
            at.switch_page(page)
        for name, value in query.items():
            at.query_params[name] = value
        at.run()
        assert not at.exception
        return at

    return opened


@pytest.fixture(scope="session")
def app_root(tmp_path_factory, evaluated_root):
    """A place for students that the server in `address` may fill; what still trains at the end is stopped."""
    from kdad.jobs import manager

    root = shutil.copytree(evaluated_root, tmp_path_factory.mktemp("app") / "root")
    yield root
    for job in manager.find_all(root / ".jobs"):
        manager.stop(job, grace=1)


@pytest.fixture(scope="session")
def address(app_root):
    """The address of a running server of the app, which all tests in a browser share."""
    from helpers.browser import serving_app

    places = {"KDAD_STUDENTS": str(app_root), "KDAD_RESULTS": str(app_root.parent / "results.json")}
    with serving_app(**places, OMP_WAIT_POLICY="PASSIVE") as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    from helpers.browser import running_browser

    with running_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser, address):
    """A context manager that opens a page cold: `visit(path, size, scheme)`; see `browser.visiting`."""
    from helpers.browser import visiting

    return partial(visiting, browser, address)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running local Hub that this process fetches from and pushes to, with an empty cache and no token."""
    from helpers.hub import point_client_at, serving

    with serving(tmp_path / "hub") as server:
        point_client_at(server.endpoint, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """The Hub's address is that of a port nobody listens at."""
    from helpers.hub import Hub, point_client_at

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
