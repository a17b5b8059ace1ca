"""Cost over the number of images and students and over image size: `python benchmarks/growth.py [TABLE …]`.

The tables are those of `TABLES`. Every measurement runs in its own process. Memory is its peak without code and
memory-mapped files, which the system can reclaim.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from kdad.devices import hardware
from kdad.errors import UserError, one_of
from kdad.files import read_json_if_there, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "growth.json"
PHOTOGRAPHED = ROOT / "trained_students" / "photo-textures" / "lite0-imagenet" / "brick"  # reads 256 px
BRICKS = ROOT / "trained_students" / "patterns-defects" / "lite0-imagenet" / "bricks"
DIFFERENT = 200  # distinct photographs; the rest of a folder shows the same in other files, or they would count once
SIZES = ((320, 240), (1000, 750), (2000, 1500), (4000, 3000))
PICTURES = 4
KDAD = (sys.executable, "-m", "kdad")
JUDGE = """
import sys, torch
from pathlib import Path
from kdad.detection.detector import Detector
folders, images = sorted(Path(sys.argv[1]).iterdir())[: int(sys.argv[2])], torch.randint(0, 256, (2000, 3, 32, 32))
first = Detector.load(folders[0], device="cpu")
detectors = [Detector.load(folder, teacher=first.teacher, device="cpu") for folder in folders]
for batch in images.byte().split(100):
    features = first.teacher_features(batch)
    for detector in detectors:
        detector.predict_with_features(batch, features)
"""


def measured(arguments: Sequence[str]) -> dict:
    """Run a command and measure its seconds and peak memory in MiB.

    Raises:
        UserError: the command failed.
    """
    started, most, ended = time.perf_counter(), 0, threading.Event()
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.1):
            most = max(most, _held(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, stderr = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        raise UserError(f"{' '.join(arguments)}: {stderr.decode(errors='replace')[-500:]}")
    return {"seconds": round(time.perf_counter() - started, 1), "mib": round(most / 2**20)}


def _held(pid: int) -> int:
    """Resident bytes of a process that are not mapped from files."""
    try:
        memory = psutil.Process(pid).memory_info()
        return int(memory.rss - memory.shared)
    except psutil.Error:
        return 0


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Synthetic photograph: smooth, with some detail."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def folder_of(photographs: int, folder: Path) -> Path:
    """Create a folder of this many photographs."""
    folder.mkdir(parents=True)
    for index in range(photographs):
        file = folder / f"{index:06d}.jpg"
        if index < DIFFERENT:
            photograph(320, 240, index).save(file, quality=90)
        else:
            file.write_bytes((folder / f"{index % DIFFERENT:06d}.jpg").read_bytes() + index.to_bytes(4))
    return folder


def images(work: Path, counts: Sequence[int]) -> dict[str, dict]:
    """Training a student of the default teacher for one epoch, from files to calibrated student."""
    rows = {}
    for count in counts:
        data = f"folder:{folder_of(count, work / str(count))}"
        options = ("--teacher", "lite0-imagenet", "--epochs", "1", "--device", "cpu", "--out", str(work / "out"))
        rows[f"{count:,}"] = measured([*KDAD, "train", "--dataset", data, *options])
    return rows


def students(work: Path, counts: Sequence[int]) -> dict[str, dict]:
    """2,000 images of 32 px judged by several students of one teacher, which is asked once."""
    folder = ROOT / "trained_students" / "cifar10" / "vgg-cifar10"
    return {str(count): measured([sys.executable, "-c", JUDGE, str(folder), str(count)]) for count in counts}


def sizes(work: Path, counts: Sequence[int]) -> dict[str, dict]:
    """`score` of four photographs of one size, with heatmaps."""
    rows = {}
    for width, height in SIZES:
        folder = work / f"{width}"
        folder.mkdir()
        for index in range(PICTURES):
            photograph(width, height, index).save(folder / f"{index}.jpg", quality=90)
        command = [*KDAD, "score", str(BRICKS), str(folder), "--heatmaps", str(work / "maps"), "--device", "cpu"]
        rows[f"{width} × {height}"] = measured(command)
    return rows


def scored(work: Path, counts: Sequence[int]) -> dict[str, dict]:
    """`score --parquet` of photographs of 320 × 240, by a student of the default teacher at 256 px."""
    rows = {}
    for count in counts:
        folder, table = folder_of(count, work / str(count)), work / f"scores-{count}"
        command = [*KDAD, "score", str(PHOTOGRAPHED), str(folder), "--parquet", str(table), "--device", "cpu"]
        rows[f"{count:,}"] = measured(command)
    return rows


TABLES: dict[str, tuple[Callable[[Path, Sequence[int]], dict[str, dict]], tuple[int, ...]]] = {
    "images": (images, (1_000, 10_000, 50_000)),
    "students": (students, (1, 2, 5, 10)),
    "sizes": (sizes, ()),
    "scored": (scored, (1_000,)),
}


def main(argv: list[str] | None = None) -> None:
    """Measure, merge into the results for `benchmarks/tables.py`, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"any of {', '.join(TABLES)}; default: all")
    parser.add_argument(
        "--counts", type=int, nargs="+", help="numbers of images or students (default: as in docs/speed.md)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    try:
        known = read_json_if_there(args.results)
        for name in [one_of("table", table, TABLES) for table in args.tables or TABLES]:
            measure, counts = TABLES[name]
            with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
                rows = measure(Path(work), args.counts or counts)
            what = (measure.__doc__ or "").strip()
            known[name] = {"what": what, "rows": rows, "hardware": hardware("cpu")}
            write_json(args.results, known)
            print(name, known[name], flush=True)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
