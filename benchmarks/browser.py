"""The app in a real browser, for what is measured there."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdad.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-quic"]


@dataclass(frozen=True)
class Server:
    """A running server of a Streamlit app."""

    address: str
    pid: int


def chromium_path() -> str:
    """Where Chromium is.

    Raises:
        UserError: it, or Playwright, which drives it, is not here.
    """
    if CHROMIUM is None or find_spec("playwright") is None:
        raise UserError(
            "pages of the app need Chromium (apt-get install chromium) and Playwright (pip install playwright)"
        )
    return CHROMIUM


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, driven by Playwright."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def app_server(app: Path = ROOT / "app.py", **environment: str) -> Iterator[Server]:
    """The server of a Streamlit app, from the moment that it is started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--server.port={port}", "--server.headless=true"]
    command = [sys.executable, "-m", "streamlit", "run", str(app), *options]
    server = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield Server(f"http://127.0.0.1:{port}", server.pid)
    finally:
        server.terminate()
        server.wait()


def arrive(page: Any, address: str) -> None:
    """Open a page as soon as its server answers."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(Exception):  # whatever a browser calls a server that is not there yet
            page.goto(address, wait_until="commit")
            return
        time.sleep(0.05)
    raise UserError(f"no answer from {address}")
