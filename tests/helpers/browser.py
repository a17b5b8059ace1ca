"""What the tests in a real browser share: a running server, Chromium, and a visit that must end without complaint."""

import os
import re
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest

from benchmarks.browser import CHROMIUM, FLAGS, ROOT, served

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}

if CHROMIUM is None:
    pytest.skip("no Chromium on this machine (apt-get install chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
P_VALUE = re.compile("^p-value")  # what every image shown in detail has
PATIENCE = 60_000  # milliseconds
expect.set_options(timeout=PATIENCE)


@contextmanager
def serving_app(**environment: str):
    """The address of a running server with these environment variables; at its end, it has printed no traceback."""
    address, command = served()
    server = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        _wait_until_healthy(f"{address}/_stcore/health", server)
        yield address
    finally:
        server.terminate()
        output = server.communicate(timeout=20)[0]
    assert "Traceback" not in output, output


def _wait_until_healthy(health: str, server: subprocess.Popen, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(health, timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


@contextmanager
def running_browser():
    """Chromium, driven by Playwright; its pages share what they fetch, as those of one visitor do."""
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = chromium.new_context()
        context.set_default_timeout(PATIENCE)
        yield context
        chromium.close()


@contextmanager
def visiting(browser, address: str, path: str, size: dict = DESKTOP, scheme: str = "light"):
    """A page opened cold; at its end, nothing has complained or left the machine."""
    page = browser.new_page()
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=scheme)
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(error))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address + path)
    yield page
    assert not [_said(complaint) for complaint in complaints if not _is_streamlit_s_search_for_its_root(complaint)]
    assert not [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    page.close()


def _said(complaint) -> str:
    """What a message of the console or an uncaught error says, and where."""
    return f"{getattr(complaint, 'text', complaint)} ({getattr(complaint, 'location', '')})"


def _is_streamlit_s_search_for_its_root(complaint) -> bool:
    """A page opened by its own address first asks for /Page/_stcore/…, is told 404, and then asks at the root."""
    return hasattr(complaint, "location") and "/_stcore/" in complaint.location["url"]


def settled(page) -> None:
    """Wait until the script has run to its end."""
    page.wait_for_function("document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'")


def assert_nothing_is_wider(page, size: dict = DESKTOP) -> None:
    """On a screen of this size, which is changed to it first, the page need not be moved sideways."""
    page.set_viewport_size(size)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    settled(page)
    main = page.get_by_test_id("stMain").element_handle()
    page.wait_for_function("main => main.scrollWidth <= main.clientWidth", arg=main, timeout=10_000)
    assert page.locator("img:not([alt])").count() == 0


def marks(page):
    """The drawings of the charts: the image, the heatmap, then the evidence."""
    return page.locator("[data-testid=stVegaLiteChart] .marks")
