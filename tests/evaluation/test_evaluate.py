"""The figures of a finished student, and what evaluating leaves on disk."""

import shutil

import numpy as np
import pandas
import pytest
from helpers.miniatures import SmallDefectsTask, evaluated
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, roc_auc_score

from kdad.detection.detector import Detector
from kdad.errors import UserError
from kdad.evaluation import metrics
from kdad.evaluation.evaluate import evaluate, shrunk_mask
from kdad.files import sha256_of
from kdad.networks.recipes import Recipe
from kdad.storage import layout
from kdad.storage import student_folder as store
from kdad.training.distillation import train_student


@pytest.fixture
def folder(tmp_path, student_folder):
    """A copy of the finished student, free to be written to."""
    return shutil.copytree(student_folder, tmp_path / "student")


@pytest.fixture
def detector(folder, vgg_teacher):
    return Detector.load(folder, teacher=vgg_teacher, device="cpu")


def contents(folder) -> dict:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_figures_follow_from_the_saved_scores(folder, detector, tiny_task):
    figures = evaluated(folder, tiny_task, detector)
    table = pandas.read_parquet(folder / layout.SCORES_TABLE)
    assert table["index"].tolist() == list(range(40))
    assert table["label"].tolist() == tiny_task.test.labels.tolist()
    errors = table.filter(like="layer").astype("float64")
    published = sum(errors[f"layer{i}_cosine"] + 0.01 * errors[f"layer{i}_mse"] for i in (2, 3, 4))
    assert figures["auroc"] == pytest.approx(roc_auc_score(table["anomalous"], table["score"]), abs=1e-6)
    assert figures["auroc_mkd"] == pytest.approx(roc_auc_score(table["anomalous"], table["score_mkd"]), abs=1e-6)
    exact = detector.predict(tiny_task.test.images)
    last_layer = roc_auc_score(table["anomalous"], exact.measurement.layer_errors[:, -1, 0])
    assert figures["auroc_last_layer"] == pytest.approx(last_layer, abs=1e-6)
    peak = roc_auc_score(table["anomalous"], exact.measurement.peak)
    assert figures["auroc_peak"] == pytest.approx(peak, abs=1e-6)
    half = 2**-10  # what scores are read from is kept in half precision
    product = errors["layer4_cosine"] * table["distance"].astype("float64")
    np.testing.assert_allclose(table["score"], np.log(product), atol=2 * half)
    np.testing.assert_allclose(table["score_mkd"], published, rtol=half)
    np.testing.assert_array_equal(table["score"], exact.score)


def test_figures_come_first_and_say_where_they_come_from(folder, detector, tiny_task, vgg_teacher):
    figures = evaluated(folder, tiny_task, detector)
    assert list(figures)[:4] == ["auroc", "auroc_mkd", "auroc_peak", "auroc_last_layer"]
    stated = {name: figures[name] for name in list(figures)[4:]}
    assert stated == {
        "score": "distant-error",
        "split": "test",
        "dataset": "patterns",
        "normal_class": "dots",
        "kinds": list(tiny_task.kinds),
        "seed": 0,
        "teacher": "tiny-vgg",
        "label_overlap": "none",
        "weights_sha256": detector.config.weights_sha256,
        "test_images_sha256": tiny_task.fingerprint("test"),
        "calibration": "held-out",
        "n_normal": 20,
        "n_anomalous": 20,
        "n_calibration": 20,
    }
    saved = store.load_evaluation(folder)
    assert saved.pop("files_sha256") == {"scores.parquet": sha256_of([folder / "scores.parquet"])}
    assert saved == figures
    assert f"{figures['auroc']:.4f}" in (folder / layout.CARD).read_text()


def test_evaluating_twice_gives_the_same_files(folder, detector, tiny_task, vgg_teacher):
    evaluated(folder, tiny_task, detector)
    before = contents(folder)
    evaluated(folder, tiny_task, Detector.load(folder, teacher=vgg_teacher, device="cpu"))
    assert contents(folder) == before


def test_masks_give_pixel_figures(tmp_path, vgg_teacher):
    task = SmallDefectsTask("dots")
    folder = train_student(task, vgg_teacher, tmp_path, recipe=Recipe(epochs=1, batch_size=8), device="cpu")
    detector = Detector.load(folder, teacher=vgg_teacher, device="cpu")
    figures = evaluated(folder, task, detector)
    assert list(figures)[:5] == ["auroc", "auroc_mkd", "pixel_auroc", "pro", "pixel_ap"]
    heatmap, masks = detector.predict(task.test.images).heatmap, np.stack(task.test.masks)
    assert figures["pixel_auroc"] == pytest.approx(roc_auc_score(masks.ravel(), heatmap.ravel()), abs=1e-6)
    assert figures["pro"] == pytest.approx(metrics.pro(heatmap, masks), abs=1e-6)
    assert figures["pixel_ap"] == pytest.approx(average_precision_score(masks.ravel(), heatmap.ravel()), abs=1e-6)
    defects = heatmap[12:], masks[12:]
    assert figures["pixel_auroc_without_good"] == pytest.approx(metrics.pixel_ranking(*defects)[0], abs=1e-6)
    assert figures["pro_without_good"] == pytest.approx(metrics.pro(*defects), abs=1e-6)
    curves = pandas.read_csv(folder / layout.PIXEL_CURVES)
    area = np.trapezoid(curves["found"], curves["false_alarms"])
    assert area == pytest.approx(figures["pixel_auroc"], abs=5e-3)
    assert (figures["n_normal"], figures["n_anomalous"]) == (12, 16)


def test_another_data_set_leaves_the_students_own_evaluation_alone(folder, detector, tiny_task):
    evaluated(folder, tiny_task, detector)
    before = contents(folder)
    evaluation = evaluate(SmallDefectsTask("dots"), detector)
    assert evaluation.figures["dataset"] == "patterns-defects"
    with pytest.raises(UserError, match="do not belong"):
        evaluation.save(folder)
    assert contents(folder) == before


def test_evaluating_changes_neither_detector_nor_files(folder, tiny_task, vgg_teacher):
    (folder / layout.CALIBRATION).unlink()
    detector, before = Detector.load(folder, teacher=vgg_teacher, device="cpu"), contents(folder)
    evaluate(tiny_task, detector)
    assert detector.calibration is None
    assert contents(folder) == before


def test_other_images_of_the_same_name_are_not_the_students_own(folder, detector, tiny_task, monkeypatch):
    monkeypatch.setattr(tiny_task, "fingerprint", lambda part: "0" * 64)
    assert not evaluate(tiny_task, detector).own


def test_a_student_that_was_never_calibrated_is_calibrated_first(folder, tiny_task, vgg_teacher):
    calibration = (folder / layout.CALIBRATION).read_bytes()
    (folder / layout.CALIBRATION).unlink()
    figures = evaluated(folder, tiny_task, Detector.load(folder, teacher=vgg_teacher, device="cpu"))
    assert figures["n_calibration"] == 20
    assert (folder / layout.CALIBRATION).read_bytes() == calibration


def test_another_data_set_never_calibrates_the_student(folder, vgg_teacher):
    (folder / layout.CALIBRATION).unlink()
    figures = evaluated(folder, SmallDefectsTask("dots"), Detector.load(folder, teacher=vgg_teacher, device="cpu"))
    assert figures["n_calibration"] == 0
    assert not (folder / layout.CALIBRATION).exists()


def test_small_regions_outlive_larger_ones_in_a_smaller_mask():
    mask = np.zeros((1024, 1024), bool)
    mask[100:400, 100:400] = mask[700:703, 700:703] = mask[900, 500:560] = True
    smaller = shrunk_mask(mask, 256, 256)
    _, count = label(smaller)
    assert count == 3
    assert smaller[25:100, 25:100].all() and smaller.sum() < 75**2 + 20


def test_a_single_pixel_of_a_large_mask_is_one_of_a_small_one():
    mask = np.zeros((4000, 6000), bool)
    assert not shrunk_mask(mask, 171, 256).any()
    mask[3999, 5999] = True
    assert np.argwhere(shrunk_mask(mask, 171, 256)).tolist() == [[170, 255]]
