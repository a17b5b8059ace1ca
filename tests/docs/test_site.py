"""The site builds without a warning, every link has its target, and no page fetches anything from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec

import pytest
from helpers.miniatures import ROOT

import kdad
from docs.make_badges import BADGES, badge, facts

pytestmark = pytest.mark.xdist_group("site")

PLACES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
ELSEWHERE = ("http://", "https://", "//")


class Fetched(HTMLParser):
    """What a browser fetches for a page by itself: scripts, styles, pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.places: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        of_tag = dict(attrs)
        place = of_tag.get("href") if tag == "link" and of_tag.get("rel") != "canonical" else of_tag.get("src")
        if place is not None:
            self.places.append(place)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning is an error in it."""
    if not all(map(find_spec, ("mkdocs", "material", "mkdocstrings"))):
        pytest.skip("the documentation's packages are not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not [place for place in Fetched(text).places if place.startswith(ELSEWHERE)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\"?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_the_page_of_names_is_made_from_the_docstrings(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    assert "Judge images of one size." in text


@pytest.mark.slow
def test_an_example_that_a_page_includes_is_there(site):
    """The formatter of code blocks can spoil the line that includes a file."""
    text = re.sub(r"<[^>]*>", "", (site / "export.html").read_text(encoding="utf-8"))
    assert "onnxruntime.InferenceSession(" in text


@pytest.mark.parametrize("name", PLACES)
def test_links_of_the_front_page_lead_somewhere(name):
    for target, _ in LINK.findall((ROOT / name).read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_front_page_is_short_and_its_table_is_generated():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert "<!-- front: begin" in text


def test_badges_and_citation_say_what_is_so():
    for name, (label, value) in facts().items():
        assert (BADGES / f"{name}.svg").read_text(encoding="utf-8") == badge(label, value), (
            "run `python -m docs.make_badges`"
        )
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {kdad.__version__}\n" in cited
