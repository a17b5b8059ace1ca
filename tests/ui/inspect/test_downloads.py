"""What the inspect page offers to download."""

import csv
import io
from dataclasses import replace

import pytest

from ui.inspect import detectors, downloads
from ui.inspect.view_controls import PATCH, SCORE, View
from ui.shared import student_index
from ui.shared.samples import of_pattern


@pytest.fixture
def cached(monkeypatch, students_root):
    monkeypatch.setenv("KDAD_STUDENTS", str(students_root))
    return detectors.cached_detector(student_index.find()[0]["patterns/tiny-vgg/dots"])


def test_the_report_has_all_pictures_and_no_tags_from_their_names(cached):
    named = [replace(picture, name=f"<b>{picture.name}") for picture in of_pattern("dots", 0)]
    text = downloads._report(named, cached, View(0.1, SCORE, None, 0.5, False, False))
    assert text.count("<figcaption>") == len(named)
    assert "&lt;b&gt;normal 1" in text and "<b>normal 1" not in text
    assert "10 %" in text


def test_an_uploaded_name_is_no_formula_in_the_scores(cached):
    named = replace(of_pattern("dots", 0)[0], name="=HYPERLINK(1).png")
    text = downloads._csv([named], [cached], View(0.05, PATCH, None, 50, False, False))
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["image"] == "'=HYPERLINK(1).png"
    assert float(row["score"]) == pytest.approx(float(cached.predict(named).score[0]))
