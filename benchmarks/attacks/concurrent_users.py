"""Many simultaneous visitors, each with their own images and student, while a student trains on the same machine."""

import asyncio
import io
import random
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.browser import FLAGS, app_server, chromium_path
from kdad.data.decoding import read_image
from kdad.detection.detector import Detector
from kdad.jobs import manager

ROOT = Path(__file__).resolve().parent.parent.parent
STUDENTS = ("patterns-defects/vgg-cifar10/bricks", "patterns-defects/vit-cifar10/bricks")
TRAINING = (
    "train", "--dataset", "patterns", "--normal-class", "dots", "--teacher", "vgg-cifar10", "--epochs", "1000",
    "--device", "cpu",
)  # fmt: skip
ROUNDED = 0.0011  # tolerance for scores shown with three decimals; the last one depends on the number of threads
PATIENCE = 300_000  # milliseconds
ALL_SHOWN = "images => [...document.querySelectorAll('img')].map(image => image.alt)"


@dataclass
class ConcurrentUsers:
    """Results of the attack: seconds from each upload to its verdict, and descriptions of failures."""

    seconds: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)  # of the server: before, with all visitors, and after

    def row(self) -> dict[str, Any]:
        """Row of the results file."""
        return {
            "uploads": len(self.seconds),
            "broken": self.broken,
            "p50": round(float(np.percentile(self.seconds, 50)), 2),
            "p95": round(float(np.percentile(self.seconds, 95)), 2),
            "mib": [round(value) for value in self.mib],
        }


def attack(work: Path, people: int, uploads: int, seed: int = 0) -> ConcurrentUsers:
    """Let `people` visitors open the inspect page at once and upload `uploads` images each, one by one.

    Every verdict must be the student's verdict on exactly this image, and nobody may see another visitor's.
    """
    students, outcome = work / "students", ConcurrentUsers()
    for name in STUDENTS:
        shutil.copytree(ROOT / "trained_students" / name, students / name)
    with app_server(KDAD_STUDENTS=str(students)) as server:
        out = work / "out"
        job = manager.start(students / ".jobs", [*TRAINING, "--out", str(out)], out / "patterns/vgg-cifar10/dots")
        try:
            asyncio.run(_all(server.address, psutil.Process(server.pid), outcome, people, uploads, seed))
            if manager.find(job.folder).state != "running":
                outcome.broken.append(f"the training is {manager.find(job.folder).state}")
        finally:
            manager.stop(job)
    return outcome


async def _all(
    address: str, server: psutil.Process, outcome: ConcurrentUsers, people: int, uploads: int, seed: int
) -> None:
    from playwright.async_api import async_playwright

    detectors = {name: Detector.load(ROOT / "trained_students" / name, device="cpu") for name in STUDENTS}
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        first = await _arrived(browser, address, STUDENTS[0])
        outcome.mib.append(_mib(server))
        pages = await asyncio.gather(
            *(_arrived(browser, address, STUDENTS[person % len(STUDENTS)]) for person in range(people))
        )
        outcome.mib.append(_mib(server))
        await asyncio.gather(
            *(
                _person(page, person, detectors[STUDENTS[person % len(STUDENTS)]], outcome, uploads, seed)
                for person, page in enumerate(pages)
            )
        )
        outcome.mib.append(_mib(server))
        await first.close()
        await browser.close()


async def _arrived(browser: Any, address: str, student: str) -> Any:
    """Page of a new visitor, ready for uploads."""
    context = await browser.new_context()
    page = await context.new_page()
    page.set_default_timeout(PATIENCE)
    for _ in range(600):
        try:
            await page.goto(f"{address}/Inspect?student={student}", wait_until="commit")
            break
        except Exception:  # browsers differ in how they report a server that is not up yet
            await asyncio.sleep(0.1)
    await page.get_by_text("Upload", exact=True).click()
    await page.get_by_text("Drop one or more images").wait_for()
    return page


def _scores(name: str, shown: Sequence[str]) -> list[float]:
    """Scores that a page shows for an image of this name."""
    words = [re.match(rf"{re.escape(name)} with its heatmap, score (-?[\d.]+):", alt) for alt in shown]
    return [float(found[1]) for found in words if found]


async def _person(
    page: Any, person: int, detector: Detector, outcome: ConcurrentUsers, uploads: int, seed: int
) -> None:
    """Upload images one by one, and check every verdict."""
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    moments = random.Random(seed * 1000 + person)
    try:
        for upload in range(uploads):
            await asyncio.sleep(moments.uniform(0, 2))  # time to read the page
            name, content = f"p{person}-{upload}.png", _image(seed, person, upload)
            score = float(detector.predict(read_image(io.BytesIO(content), name)).score[0])
            started = time.perf_counter()
            file = {"name": name, "mimeType": "image/png", "buffer": content}
            await page.locator("input[type=file]").first.set_input_files(file)
            await page.get_by_alt_text(f"{name} with its heatmap, score ").wait_for()
            outcome.seconds.append(time.perf_counter() - started)
            shown = [alt for alt in await page.evaluate(ALL_SHOWN) if " with its heatmap, score " in alt]
            if not any(abs(score - said) < ROUNDED for said in _scores(name, shown)):
                outcome.broken.append(f"{name}: its score is {score:.3f}, shown is {shown}")
            outcome.broken += [f"p{person} sees {alt}" for alt in shown if not alt.startswith(f"p{person}-")]
            if await page.get_by_test_id("stException").count():
                outcome.broken.append(f"{name}: the page shows an exception")
    except Exception as error:  # the other visitors continue
        outcome.broken.append(f"p{person}: {type(error).__name__}: {error}"[:300])
    outcome.broken += [f"p{person}: {complaint}"[:300] for complaint in complaints]


def _image(seed: int, person: int, upload: int) -> bytes:
    """An image unique to this visitor and upload."""
    pixels = np.random.default_rng([seed, person, upload]).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _mib(server: psutil.Process) -> float:
    return sum(process.memory_info().rss for process in [server, *server.children(recursive=True)]) / 2**20
