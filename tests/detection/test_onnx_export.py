"""Detectors as ONNX files: onnxruntime judges as torch does."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.miniatures import ROOT, TinyTask
from PIL import Image

from kdad.detection import onnx_export
from kdad.detection.detector import Detector
from kdad.detection.onnx_export import export
from kdad.errors import WorkFailed
from kdad.networks.recipes import Recipe
from kdad.training.distillation import train_student

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("onnx")]


@pytest.fixture(scope="module")
def detector(place_student_folder, vgg_teacher):
    """A VGG's student, whose score reads distances from normals."""
    return Detector.load(place_student_folder, teacher=vgg_teacher, device="cpu")


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "dots.onnx"
    assert export(detector, file) <= onnx_export.TOLERANCE
    return file


def judged(file: Path, images: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})


def assert_judged_alike(file: Path, detector: Detector, images: torch.Tensor) -> None:
    score, p_value, heatmap = judged(file, images)
    prediction = detector.predict(images)
    np.testing.assert_allclose(score, prediction.score, atol=onnx_export.TOLERANCE)
    np.testing.assert_allclose(heatmap, prediction.heatmap, atol=onnx_export.TOLERANCE)
    normals = detector.calibration_scores
    if normals is None:
        assert np.isnan(p_value).all()
    else:  # a score within the tolerance of a calibration score may be on either side of it
        slack = (np.abs(normals - prediction.score[:, None]) <= onnx_export.TOLERANCE).sum(1) / (len(normals) + 1)
        assert (np.abs(p_value - prediction.p_value) <= slack + 1e-6).all()


def test_any_number_of_images_is_judged_as_torch_does(exported, detector):
    for count in (1, 2, 7):
        assert_judged_alike(exported, detector, TinyTask().test.images[-count:])


def test_the_file_says_what_it_is_and_what_decides(exported, detector):
    facts = onnxruntime.InferenceSession(exported).get_modelmeta().custom_metadata_map
    assert facts["kdad.normal_class"] == "dots"
    assert facts["kdad.weights_sha256"] == detector.config.weights_sha256
    images = TinyTask().test.images
    verdicts = judged(exported, images)[0] > float(facts["kdad.threshold"])
    assert (verdicts == detector.predict(images).is_anomaly).all()


@pytest.mark.parametrize("kind", ["uncalibrated-vit", "timm-in-tiles"])
def test_other_kinds_of_students_are_judged_as_torch_does(kind, vit_teacher, timm_teacher, tmp_path):
    teacher, recipe = {"uncalibrated-vit": vit_teacher, "timm-in-tiles": timm_teacher}[kind], Recipe(1, batch_size=8)
    folder = train_student(TinyTask(), teacher, tmp_path / "out", recipe=recipe, device="cpu")
    loaded = Detector.load(folder, teacher=teacher, device="cpu")
    config = replace(loaded.config, tile_size=32) if kind == "timm-in-tiles" else loaded.config
    calibration = None if kind == "uncalibrated-vit" else loaded.calibration
    detector = Detector(config, loaded.student, teacher, calibration)
    export(detector, tmp_path / "student.onnx", size=(40, 32))
    images = torch.nn.functional.interpolate(TinyTask().test.images[:3].float(), (40, 32)).byte()
    assert_judged_alike(tmp_path / "student.onnx", detector, images)


def test_the_example_needs_no_torch(exported, tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    blocked = "import sys; sys.modules['torch'] = sys.modules['kdad'] = None; "
    example = f"{blocked}sys.argv[0] = 'x'; exec(open({str(ROOT / 'examples' / 'without_torch.py')!r}).read())"
    command = [sys.executable, "-c", example, str(exported), str(tmp_path / "red.png")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.startswith("anomaly: score ")
    Image.new("I;16", (50, 40), 40_000).save(tmp_path / "red.png")
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and "convert it to 8-bit" in refused.stderr.splitlines()[0]


@pytest.mark.parametrize("opset", [1, 17, 24, 10**6])
def test_an_opset_that_is_not_supported_is_refused(detector, tmp_path, refusal, opset):
    assert "choose one of 18 to 23" in refusal(export, detector, tmp_path / "x.onnx", opset=opset)


def test_without_onnx_it_is_said_how_to_get_it(detector, tmp_path, refusal, monkeypatch):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    assert "pip install 'kdad[onnx]'" in refusal(export, detector, tmp_path / "x.onnx")


def test_a_file_that_judges_otherwise_is_not_written(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_exported", lambda *_: b"")
    monkeypatch.setattr(onnx_export, "_difference", lambda *_: float("nan"))
    with pytest.raises(WorkFailed, match="onnxruntime and torch disagree"):
        export(detector, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_known_of_the_student_is_text(detector):
    facts = onnx_export._metadata(detector, 32, 48)
    assert all(isinstance(value, str) for value in facts.values())
    assert json.loads(facts["kdad.height"]) == 32
