"""The figure for slides: its formats, and that it shows what the page does."""

import io

import numpy as np
import pytest
from PIL import Image

from kdad.detection.detector import Detector
from ui.inspect.figure import figure
from ui.inspect.judges import Judge
from ui.inspect.view_controls import EXPLANATION, View
from ui.shared import student_index
from ui.shared.figures import FORMATS
from ui.shared.pictures import Picture

VIEW = View(fpr=0.1, method=EXPLANATION, layer=None, opacity=0.5, own_contrast=False, outlines=False)
STARTS = {"PNG": b"\x89PNG", "SVG": b"<?xml", "PDF": b"%PDF"}


@pytest.fixture
def judge(students_root, vgg_teacher, monkeypatch):
    monkeypatch.setenv("KDAD_STUDENTS", str(students_root))
    student = student_index.find()[0]["patterns/tiny-vgg/dots"]
    return Judge(student, Detector.load(student.folder, teacher=vgg_teacher, device="cpu"), "stamp")


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Picture("a $name_ that is no formula$", pixels)


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_format_is_one(judge, picture, kind):
    assert figure(picture, [judge], VIEW, kind).startswith(STARTS[kind])


def test_names_verdicts_and_scales_are_text_in_a_vector_graphic(judge, picture):
    drawn = figure(picture, [judge, judge], VIEW, "SVG").decode()
    said = judge(picture)
    assert picture.name in drawn
    assert drawn.count("patterns/tiny-vgg/dots") == 2
    assert f"p {said.p_value[0]:.4f}" in drawn
    assert "at 10 % false positives" in drawn
    assert "share of the" in drawn


def test_one_more_student_makes_it_wider(judge, picture):
    one, two = (
        Image.open(io.BytesIO(figure(picture, judges, VIEW, "PNG"))).size for judges in ([judge], [judge, judge])
    )
    assert one[1] == two[1]
    assert one[0] < two[0]
