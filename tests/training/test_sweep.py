"""A results table over classes and seeds, from students that are kept, resumed or trained."""

import copy
import shutil
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from helpers.miniatures import TinyTask, evaluated, reseal

from kdad.data import patterns
from kdad.data.task import Labelled
from kdad.detection.detector import Detector
from kdad.errors import UserError
from kdad.scores import DISTANT_ERROR
from kdad.storage import layout
from kdad.storage import student_folder as store
from kdad.storage.history import read_history
from kdad.training import sweep
from kdad.training.sweep import Plan, complete_here, render, run_sweep


def sweep_in(out, teacher, normal_class="all", seeds=1, epochs=1, learning_rate=None) -> dict:
    overrides = {"epochs": epochs, "batch_size": 8, "learning_rate": learning_rate}
    plan = Plan(str(teacher), "patterns", out, "cpu", overrides)
    return run_sweep(plan, normal_class, seeds=seeds, complete=complete_here)


def with_two_classes(patched: pytest.MonkeyPatch) -> None:
    """`patterns` in miniature, with two classes."""
    patched.setattr(sweep, "class_names", lambda _: ("dots", "rings"))
    patched.setattr(sweep, "load_task", lambda _, normal_class, *sizes: TinyTask(normal_class))


@pytest.fixture
def sweep_of(vgg_folder, tmp_path, monkeypatch):
    """A function that sweeps below an empty folder."""
    with_two_classes(monkeypatch)
    return partial(sweep_in, tmp_path, vgg_folder)


@pytest.fixture(scope="module")
def swept(vgg_folder, tmp_path_factory):
    """Where two classes over two seeds were swept, and the figures; read-only."""
    out = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patched:
        with_two_classes(patched)
        return out, sweep_in(out, vgg_folder, seeds=2)


@pytest.fixture
def sweep_again(swept, sweep_of, tmp_path):
    """A function that sweeps below a copy of `swept`."""
    shutil.copytree(swept[0], tmp_path, dirs_exist_ok=True)
    return sweep_of


def without_seconds(results: dict) -> dict:
    return {name: value for name, value in results.items() if name != "seconds_per_student"}


def test_all_classes_over_seeds(swept, vgg_teacher):
    out, results = swept[0], copy.deepcopy(swept[1])
    students = store.find_students(out)
    assert {folder.name for folder in students} == {"dots", "dots-seed1", "rings", "rings-seed1"}
    assert list(results["classes"]) == ["dots", "rings"]
    for name, figures in results["classes"].items():
        runs = [out / "patterns" / "tiny-vgg" / folder for folder in (name, f"{name}-seed1")]
        for score in ("auroc", "auroc_mkd"):
            values = [store.load_evaluation(folder)[score] for folder in runs]
            assert figures[score]["values"] == values
            assert figures[score]["mean"] == pytest.approx(sum(values) / 2)
            assert figures[score]["deviation"] == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
    assert results["mean"]["auroc"] == pytest.approx(
        np.mean([figures["auroc"]["mean"] for figures in results["classes"].values()])
    )
    assert render(results).startswith(
        "| class | AUROC, default score | AUROC, last layer alone | AUROC, published score |"
    )
    by_seed = np.mean([figures["auroc"]["values"] for figures in results["classes"].values()], 0)
    assert results["mean_deviation"]["auroc"] == pytest.approx(np.std(by_seed, ddof=1))
    del results["classes"], results["mean"], results["mean_deviation"]
    trained_for = [sum(row["seconds"] for row in read_history(f) if row["split"] == "train") for f in students]
    assert results.pop("seconds_per_student") == pytest.approx(np.mean(trained_for), abs=0.05 + 1e-9)  # in tenths
    assert results.pop("hardware") == [store.load_config(students[0]).hardware]
    assert results.pop("teacher") == "tiny-vgg"
    assert results == {
        "dataset": "patterns",
        "image_format": None,
        "family": "vgg",
        "score": DISTANT_ERROR,
        "teacher_sha256": vgg_teacher.sha256,
        "label_overlap": "none",
        "split": "test",
        "seeds": 2,
    }


class SharedTask(TinyTask):
    """One-vs-rest in miniature: both classes validate and test on the same dots and rings."""

    def _labelled(self, seed):
        images = torch.cat([TinyTask("dots")._normals(20, seed), TinyTask("rings")._normals(20, seed)])
        labels = torch.tensor([patterns.CLASSES.index("dots")] * 20 + [patterns.CLASSES.index("rings")] * 20)
        return Labelled(images, labels, labels != self.normal_index)


def test_the_teacher_sees_what_all_students_are_judged_on_once(sweep_of, tmp_path, monkeypatch, vgg_teacher):
    seen = Counter()

    class Watched(type(vgg_teacher.network)):
        def forward(self, pixels):
            seen.update(image.numpy().tobytes() for image in pixels)
            return super().forward(pixels)

    monkeypatch.setattr(sweep, "load_task", lambda _, normal_class, *sizes: SharedTask(normal_class))
    monkeypatch.setattr(vgg_teacher.network, "__class__", Watched)
    monkeypatch.setattr(sweep, "load_teacher", lambda *_, **__: vgg_teacher)
    sweep_of()
    tested = vgg_teacher.preprocessing(SharedTask("dots").test.images)
    assert {seen[image.numpy().tobytes()] for image in tested[1:]} == {1}  # the first one also shows what fits

    for folder in store.find_students(tmp_path):
        task, remembered = SharedTask(folder.name), store.load_evaluation(folder)
        alone = evaluated(folder, task, Detector.load(folder, teacher=vgg_teacher, device="cpu"))
        figures = ("auroc", "auroc_mkd")
        assert [alone[name] for name in figures] == pytest.approx([remembered[name] for name in figures])


def test_a_sweep_over_judged_students_reads_their_figures(sweep_again, swept, monkeypatch):
    for name in ("train_student", "evaluate"):
        monkeypatch.setattr(sweep, name, None)
    assert sweep_again(seeds=2) == swept[1]


def test_figures_of_another_teacher_are_not_taken_over(sweep_again, tmp_path, refusal):
    config = tmp_path / "patterns" / "tiny-vgg" / "rings" / layout.CONFIG
    reseal(config, teacher_sha256="0" * 64)
    assert "another run (teacher_sha256" in refusal(sweep_again)


def test_figures_of_other_settings_are_not_taken_over(sweep_again, swept, refusal):
    message = refusal(sweep_again, epochs=999, learning_rate=9.0)
    assert "another run (epochs 1 instead of 999, learning_rate 0.003 instead of 9.0)" in message
    assert sweep_again(seeds=2) == swept[1]


def test_figures_of_other_images_are_not_taken_over(sweep_again, monkeypatch, refusal):
    monkeypatch.setattr(TinyTask, "fingerprint", lambda task, part: "0" * 64)
    assert "another run (other images)" in refusal(sweep_again)


def test_figures_of_other_test_images_are_measured_again(sweep_again, swept, tmp_path, monkeypatch):
    """One whose test images changed since is evaluated on those that are there, and not trained."""
    reseal(tmp_path / "patterns" / "tiny-vgg" / "rings" / layout.EVALUATION, test_images_sha256="0" * 64, auroc=0.123)
    evaluate, judged = sweep.evaluate, []

    def watched(task, detector):
        judged.append(task.normal_class)
        return evaluate(task, detector)

    monkeypatch.setattr(sweep, "train_student", None)
    monkeypatch.setattr(sweep, "evaluate", watched)
    assert sweep_again(seeds=2) == swept[1]
    assert judged == ["rings"]


def test_figures_of_other_weights_are_not_taken_over(sweep_again, tmp_path, refusal):
    file = tmp_path / "patterns" / "tiny-vgg" / "rings" / layout.EVALUATION
    reseal(file, weights_sha256="0" * 64)
    assert "figures of other weights" in refusal(sweep_again)


def test_an_interrupted_sweep_trains_only_what_is_missing(sweep_again, swept, tmp_path, monkeypatch):
    kept, lost = (tmp_path / "patterns" / "tiny-vgg" / name for name in ("dots", "rings"))
    (lost / layout.WEIGHTS).unlink()
    train, trained = sweep.train_student, []

    def watched(task, *rest, **options):
        trained.append(task.normal_class)
        return train(task, *rest, **options)

    monkeypatch.setattr(sweep, "train_student", watched)
    written = (kept / layout.WEIGHTS).stat().st_mtime_ns
    assert without_seconds(sweep_again(seeds=2)) == without_seconds(swept[1])
    assert trained == ["rings"]
    assert (kept / layout.WEIGHTS).stat().st_mtime_ns == written


def test_one_class_over_one_seed_has_no_deviation(sweep_again):
    results = sweep_again("rings")
    assert list(results["classes"]) == ["rings"]
    assert results["classes"]["rings"]["auroc"]["deviation"] is None
    assert results["mean"]["auroc"] == results["classes"]["rings"]["auroc"]["mean"]
    assert results["mean_deviation"]["auroc"] is None


def test_an_unknown_class_is_refused_before_anything_is_written(sweep_of, tmp_path):
    with pytest.raises(UserError, match="unknown class of patterns 'tartan'; choose one of: dots, rings"):
        sweep_of("tartan")
    assert not list(tmp_path.iterdir())


def test_the_table_is_in_per_cent_with_its_provenance():
    def figures(mean, deviation):
        return {score: {"mean": mean, "deviation": deviation, "values": []} for score in ("auroc", "auroc_mkd")}

    results = {
        "dataset": "cifar10",
        "teacher": "vgg-cifar10",
        "label_overlap": "same",
        "split": "test",
        "seeds": 3,
        "classes": {"cat": figures(0.91234, 0.0051), "dog": figures(0.5, None)},
        "mean": {"auroc": 0.70617, "auroc_mkd": 0.70617},
        "mean_deviation": {"auroc": 0.0012, "auroc_mkd": None},
    }
    assert render(results).splitlines() == [
        "| class | AUROC, default score | AUROC, published score |",
        "|---|---|---|",
        "| cat | 91.23 ± 0.51 | 91.23 ± 0.51 |",
        "| dog | 50.00 | 50.00 |",
        "| **mean** | 70.62 ± 0.12 | 70.62 |",
        "",
        "cifar10, test split, 3 seed(s), teacher vgg-cifar10, label overlap: same",
    ]
