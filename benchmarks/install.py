"""Size and seconds of an installation in a fresh virtual environment: `python benchmarks/install.py NAME [--torch …]`.

The wheel is built from this checkout, installed with all it needs, and then scores one image with a shipped student.
`--torch` is what pip is asked for first, with its own options: the build of torch without CUDA, for example.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kdad.errors import UserError
from kdad.files import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "install.json"
JUDGE = """
import kdad, numpy, torch
from pathlib import Path
student = Path(kdad.__file__).parent / "_app" / "trained_students" / "cifar10" / "vgg-cifar10" / "cat"
prediction = kdad.Detector.load(student, device="cpu").predict(numpy.zeros((32, 32, 3), "uint8"))
assert prediction.score.shape == (1,)
print(torch.__version__)
"""


def installed(torch: str, work: Path) -> dict:
    """Install the wheel in an environment of its own, judge an image there, and return what it took.

    Raises:
        UserError: a command failed.
    """
    source = work / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "build", "site"))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(work), str(source), cwd=work)
    run(sys.executable, "-m", "venv", str(work / "venv"), cwd=work)
    python, (wheel,) = work / "venv" / "bin" / "python", work.glob("kdad-*.whl")
    started, before = time.perf_counter(), megabytes(work / "venv")
    for wanted in ([shlex.split(torch)] if torch else []) + [[str(wheel)]]:
        run(str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir", *wanted, cwd=work)
    seconds = round(time.perf_counter() - started)
    size = megabytes(work / "venv") - before
    version = run(str(python), "-c", JUDGE, cwd=work).strip()
    return {
        "python": platform.python_version(),
        "torch": version,
        "seconds": seconds,
        "megabytes": size,
        "system": f"{platform.system()}, {platform.machine()}",
    }


def run(*command: str, cwd: Path) -> str:
    """Run a command without this checkout on Python's path, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    if done.returncode:
        raise UserError(f"{shlex.join(command)}: {done.stderr[-500:]}")
    return done.stdout


def megabytes(folder: Path) -> int:
    """Size of the files of a folder, in MB; links count nothing."""
    return round(sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6)


def main(argv: list[str] | None = None) -> None:
    """Measure one installation and keep it under its name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="what this installation is called: plain, cpu")
    parser.add_argument("--torch", default="", help="arguments of a `pip install` that comes first")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        try:
            row = installed(args.torch, Path(work))
        except UserError as error:
            parser.error(str(error))
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    write_json(RESULTS, rows | {args.name: row})
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
