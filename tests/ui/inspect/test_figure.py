"""The figure for slides: its formats, and that it shows what the page does."""

import io

import numpy as np
import pytest
from PIL import Image

from kdad.detection.detector import Detector
from ui.inspect.detectors import CachedDetector
from ui.inspect.figure import figure
from ui.inspect.view_controls import SCORE, View
from ui.shared import student_index
from ui.shared.figures import FORMATS
from ui.shared.pictures import Picture

VIEW = View(fpr=0.1, method=SCORE, layer=None, opacity=0.5, own_contrast=False, outlines=False)
STARTS = {"PNG": b"\x89PNG", "SVG": b"<?xml", "PDF": b"%PDF"}


@pytest.fixture
def cached(students_root, vgg_teacher, monkeypatch):
    monkeypatch.setenv("KDAD_STUDENTS", str(students_root))
    student = student_index.find()[0]["patterns/tiny-vgg/dots"]
    return CachedDetector(student, Detector.load(student.folder, teacher=vgg_teacher, device="cpu"), "stamp")


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Picture.of("a $name_ that is no formula$", pixels)


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_format_is_one(cached, picture, kind):
    assert figure(picture, [cached], VIEW, kind).startswith(STARTS[kind])


def test_names_verdicts_and_scales_are_text_in_a_vector_graphic(cached, picture):
    drawn = figure(picture, [cached, cached], VIEW, "SVG").decode()
    prediction = cached.predict(picture)
    assert picture.name in drawn
    assert drawn.count("patterns/tiny-vgg/dots") == 2
    assert f"p {prediction.p_value[0]:.4f}" in drawn
    assert "at 10 % false positives" in drawn
    assert "above a typical normal" in drawn


def test_one_more_student_makes_it_wider(cached, picture):
    one, two = (
        Image.open(io.BytesIO(figure(picture, shown, VIEW, "PNG"))).size for shown in ([cached], [cached, cached])
    )
    assert one[1] == two[1]
    assert one[0] < two[0]
