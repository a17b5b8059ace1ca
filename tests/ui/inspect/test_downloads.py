"""What the inspect page offers to download."""

import csv
import io
from dataclasses import replace

import pytest

from ui.inspect import detectors, downloads
from ui.inspect.view_controls import PATCH, View
from ui.shared import student_index
from ui.shared.pictures import samples


def test_an_uploaded_name_is_no_formula_in_the_scores(monkeypatch, students_root):
    monkeypatch.setenv("KDAD_STUDENTS", str(students_root))
    cached = detectors.cached_detector(student_index.find()[0]["patterns/tiny-vgg/dots"])
    named = replace(samples("dots", 0)[0], name="=HYPERLINK(1).png")
    text = downloads._csv([named], [cached], View(0.05, PATCH, None, 50, False, False))
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["image"] == "'=HYPERLINK(1).png"
    assert float(row["score"]) == pytest.approx(float(cached.predict(named).score[0]))
