"""What `import kdad` offers: every name is there, documented, and on the page that says so."""

import inspect

import pytest

import kdad
from docs.make_api import PAGE, page


def test_every_public_name_is_there_and_documented():
    for name in kdad.__all__:
        assert inspect.getdoc(getattr(kdad, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = kdad.nothing


def test_the_page_of_names_is_that_of_the_docstrings():
    assert PAGE.read_text() == page(), "run `python -m docs.make_api`"
