"""Figures in words."""

import pytest

from kdad.networks.teachers.provenance import OVERLAP_IN_WORDS
from ui.shared.words import OVERLAP_COLOURS, auroc, percent, plain, unusualness


@pytest.mark.parametrize(
    ("share", "sentence"),
    [
        (0.986, "More unusual than 98.6 % of 500 normal cat images."),
        (1, "More unusual than all 500 normal cat images."),
        (0, "Less unusual than all 500 normal cat images."),
    ],
)
def test_unusualness(share, sentence):
    assert unusualness(share, 500, "cat") == sentence


@pytest.mark.parametrize(("share", "text"), [(0.05, "5 %"), (1 / 501, "0.2 %"), (0.0135, "1.35 %"), (1, "100 %")])
def test_percent(share, text):
    assert percent(share) == text


def test_a_very_good_auroc_is_not_called_perfect():
    assert auroc(0.99968) == "99.97 %"


@pytest.mark.parametrize("text", ["**bold**", "[a](http://b)", "<b>", "`code`", ":red[x]", "$x$", "# head", "~~x~~"])
def test_no_markdown_survives(text):
    escaped = plain(text)
    assert escaped.replace("\\", "") == text
    for mark in "*[]()<>`:$#~":
        assert escaped.count(mark) == escaped.count(f"\\{mark}")


def test_a_name_stays_on_its_line():
    assert plain("a\n\n# b") == r"a \# b"


def test_every_provenance_has_a_colour():
    assert OVERLAP_COLOURS.keys() == OVERLAP_IN_WORDS.keys()
