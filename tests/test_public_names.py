"""What `import kdad` offers: every name is there, documented, and on the page that says so."""

import inspect
import re

import pytest
from helpers.miniatures import ROOT

import kdad


def test_every_public_name_is_there_and_documented():
    for name in kdad.__all__:
        assert inspect.getdoc(getattr(kdad, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = kdad.nothing


def test_the_page_of_names_has_all_of_them_from_where_they_are():
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    things = [getattr(kdad, name) for name in kdad.__all__]
    assert named == [f"{thing.__module__}.{thing.__name__}" for thing in things]
