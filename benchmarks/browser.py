"""The app in a real browser, for measurements."""

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
FLAGS = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]


@dataclass(frozen=True)
class Server:
    """A running server of a Streamlit app."""

    address: str
    pid: int


def chromium_path() -> str:
    """Path of Chromium.

    Raises:
        UserError: Chromium or Playwright, which drives it, is not installed.
    """
    if CHROMIUM is None or find_spec("playwright") is None:
        raise UserError(
            "measuring the app needs Chromium (apt-get install chromium) and Playwright (pip install playwright)"
        )
    return CHROMIUM


@contextmanager
def chromium() -> Iterator[Any]:
    """Browser driven by Playwright."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def free_port() -> int:
    """Return an unused port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def served(app: Path = ROOT / "app.py") -> tuple[str, list[str]]:
    """Address for an app, and the command that serves it there."""
    port = free_port()
    options = [f"--server.port={port}", "--server.headless=true"]
    return f"http://127.0.0.1:{port}", [sys.executable, "-m", "streamlit", "run", str(app), *options]


@contextmanager
def app_server(app: Path = ROOT / "app.py", **environment: str) -> Iterator[Server]:
    """Start the server of a Streamlit app; it may not respond yet."""
    address, command = served(app)
    server = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield Server(address, server.pid)
    finally:
        server.terminate()
        server.wait()


def arrive(page: Any, address: str) -> None:
    """Open a page as soon as its server responds."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(Exception):  # browsers differ in how they report a server that is not up yet
            page.goto(address, wait_until="commit")
            return
        time.sleep(0.05)
    raise UserError(f"no answer from {address}")
