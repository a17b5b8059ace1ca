"""Response times of the app's pages in a real browser: rows of `benchmarks/speed.py`."""

import io
import itertools
import re
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.browser import ROOT, app_server, arrive, chromium
from benchmarks.growth import photograph
from benchmarks.timing import Prepared, Seconds, timed, wanted

COUNT_RUNS = """() => {
    const app = document.querySelector('[data-testid=stApp]')
    window.runs = 0
    new MutationObserver(() => { window.runs += app.dataset.testScriptState == 'notRunning' })
        .observe(app, { attributeFilter: ['data-test-script-state'] })
}"""
SCRIPT_STATE = "document.querySelector('[data-testid=stApp]').dataset.testScriptState"
JUDGED = re.compile("^p-value")
HOME = "See what does not belong, and where"
TWO = "Inspect?student=patterns-defects/vgg-cifar10/bricks&compare=patterns-defects/vit-cifar10/bricks"


def home_page(device: str) -> Prepared:
    """Time from a server's start to a usable home page, against an empty Streamlit page."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        empty = Path(folder) / "empty.py"
        empty.write_text("import streamlit\nstreamlit.title('Empty', anchor=False)\n")

        def opened(app: Path, heading: str) -> Seconds:
            def run() -> float:
                page, started = browser.new_page(), time.perf_counter()
                with app_server(app) as server:
                    arrive(page, server.address)
                    page.get_by_role("heading", name=heading).wait_for()
                    seconds = time.perf_counter() - started
                page.close()
                return seconds

            return run

        yield opened(empty, "Empty"), opened(ROOT / "app.py", HOME)


def cold_link(device: str) -> Prepared:
    """Time from the first request to a new server until a page comparing two students is complete."""
    with chromium() as browser:

        def opened() -> float:
            page = browser.new_page()
            with app_server() as server:
                arrive(page, f"{server.address}/_stcore/health")
                started = time.perf_counter()
                page.goto(f"{server.address}/{TWO}")
                page.get_by_text("Take it with you", exact=True).wait_for()
                _complete(page)
                seconds = time.perf_counter() - started
            page.close()
            return seconds

        yield wanted(5, 5)(device), opened


def first_sample(device: str) -> Prepared:
    """Time from the command until the first sample is judged on the inspect page."""
    with chromium() as browser:

        def opened() -> float:
            page, started = browser.new_page(), time.perf_counter()
            with app_server() as server:
                arrive(page, f"{server.address}/Inspect")
                page.get_by_text(JUDGED).first.wait_for()
                seconds = time.perf_counter() - started
            page.close()
            return seconds

        yield wanted(5, 5)(device), opened


def hundred_uploads(device: str) -> Prepared:
    """Time until 100 uploaded photographs of a megapixel, in a zip file, are judged and sorted."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser, app_server() as server:
        page = browser.new_page()
        rounds = itertools.count()

        def uploaded() -> float:
            file = Path(folder) / "hundred.zip"
            with zipfile.ZipFile(file, "w") as archive:  # others each time, or their verdicts would be known
                first = 100 * next(rounds)
                for index in range(first, first + 100):
                    content = io.BytesIO()
                    photograph(1024, 1024, index).save(content, "JPEG", quality=90)
                    archive.writestr(f"{index}.jpg", content.getvalue())
            page.goto(f"{server.address}/Inspect?source=Upload")
            page.get_by_text("Drop one or more images").wait_for()
            _complete(page)
            started = time.perf_counter()
            page.locator("input[type=file]").first.set_input_files(file)
            page.get_by_text(JUDGED).first.wait_for()
            _complete(page)
            return time.perf_counter() - started

        yield wanted(25, 25)(device), uploaded


def page_switch(device: str) -> Prepared:
    """Time from a click on a page's link until that page is complete, after a first visit."""
    with chromium() as browser, app_server() as server:
        page = browser.new_page()
        arrive(page, server.address)

        def go(link: str, heading: str) -> None:
            page.get_by_test_id("stSidebar").get_by_role("link", name=link, exact=True).click()
            page.get_by_role("heading", name=heading, exact=True).wait_for()
            _complete(page)

        def there_and_back() -> float:
            go("Home", HOME)
            return timed(lambda: go("Curves and results", "Curves and results"))()

        yield wanted(0.5, 0.5)(device), there_and_back


def step_of(slider: str, place: str, limit: float) -> Callable[[str], Prepared]:
    """Time from a key press on a slider of the inspect page, with two students, until the page is updated."""

    def prepare(device: str) -> Prepared:
        with chromium() as browser, app_server() as server:
            page = browser.new_page()
            arrive(page, f"{server.address}/{place}")
            thumb = page.get_by_role("slider", name=slider)
            thumb.wait_for()
            _complete(page)
            page.evaluate(COUNT_RUNS)

            def step() -> float:
                page.wait_for_timeout(500)  # let the previous step finish drawing
                started, runs = time.perf_counter(), page.evaluate("window.runs")
                thumb.press("ArrowRight")
                page.wait_for_function(f"window.runs > {runs}")
                return time.perf_counter() - started

            yield wanted(limit, limit)(device), step

    return prepare


def _complete(page: Any) -> None:
    """Wait until a page's script has finished."""
    page.wait_for_function(f"{SCRIPT_STATE} == 'notRunning'")
