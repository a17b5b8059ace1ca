"""Concurrent requests to `kdad serve` from many clients: `python -m benchmarks.serving [--requests N] [--clients N]`.

Every request sends a different image, and every score is compared with `Detector.predict` on that image alone.
"""

import argparse
import io
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.browser import ROOT, free_port
from kdad.detection.detector import Detector
from kdad.devices import hardware
from kdad.errors import UserError
from kdad.files import write_json
from kdad.storage import student_folder

RESULTS = ROOT / "benchmarks" / "results" / "serving.json"
SHIPPED = [ROOT / "trained_students" / "cifar10" / teacher / "cat" for teacher in ("vgg-cifar10", "vit-cifar10")]
SECONDS_TO_START = 120.0
TOLERANCE = 1e-4


@contextmanager
def serving(students: Sequence[Path], *options: str) -> Iterator[str]:
    """Run `kdad serve`; yields its address."""
    port = free_port()
    command = [sys.executable, "-m", "kdad", "serve", *map(str, students), "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        _await(address, server)
        yield address
    finally:
        server.terminate()
        server.wait()


def _await(address: str, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until and server.poll() is None:
        try:
            httpx.get(f"{address}/health").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise UserError(f"kdad serve did not respond at {address}")


def image(seed: int) -> Image.Image:
    """Noise image of 32×32 pixels; brightness varies with the seed."""
    rng = np.random.default_rng(seed)
    return Image.fromarray((rng.random((32, 32, 3)) * rng.uniform(20, 255)).astype(np.uint8))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def measured(students: Sequence[Path], requests: int, clients: int) -> dict[str, Any]:
    """Send this many requests, to the students in turn; returns statuses, errors and timings."""
    detectors = {
        str(student_folder.folder_of(Path(), student_folder.load_config(folder))): folder for folder in students
    }
    names = list(detectors)
    asked = [(names[index % len(names)], index) for index in range(requests)]
    with serving(students) as address, httpx.Client(base_url=address, timeout=60) as client:

        def ask(request: tuple[str, int]) -> tuple[int, float, float | None]:
            name, seed = request
            body, started = _png(image(seed)), time.perf_counter()
            answer = client.post(f"/students/{name}/predict", content=body)
            score = answer.json()["score"] if answer.status_code == 200 else None
            return answer.status_code, time.perf_counter() - started, score

        for name in names:
            ask((name, 0))  # warm-up
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(ask, asked))
        wall = time.perf_counter() - started
    loaded = {name: Detector.load(folder, device="cpu") for name, folder in detectors.items()}
    expected = [float(loaded[name].predict(image(seed)).score[0]) for name, seed in asked]
    off = [abs(score - right) for (_, _, score), right in zip(answers, expected, strict=True) if score is not None]
    seconds = [taken for _, taken, _ in answers]
    return {
        "students": names,
        "requests": requests,
        "clients": clients,
        "statuses": {str(status): count for status, count in Counter(status for status, *_ in answers).items()},
        "wrong": sum(difference > TOLERANCE for difference in off),
        "largest_difference": max(off, default=0.0),
        "p50": float(np.quantile(seconds, 0.5)),
        "p95": float(np.quantile(seconds, 0.95)),
        "per_second": requests / wall,
        "hardware": hardware("cpu"),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, write the results for `benchmarks/tables.py`, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("students", nargs="*", type=Path, default=SHIPPED, help="their folders (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    row = measured(args.students, args.requests, args.clients)
    write_json(args.results, row)
    print(row)


if __name__ == "__main__":
    main()
