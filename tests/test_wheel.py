"""The wheel: built from what git tracks, installed in a folder of its own, and used from elsewhere."""

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from helpers.miniatures import ROOT, eventually

from benchmarks.browser import free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def tracked_files() -> list[str]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git to say what belongs to the project")
    return [name for name in listed.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed package, as `pip install kdad` leaves it."""
    work = tmp_path_factory.mktemp("wheel")
    for name in tracked_files():
        place = work / "source" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(work / "dist"), str(work / "source")]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (work / "dist").glob("*.whl")
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--target", str(work / "site"), str(wheel)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    return work / "site"


@pytest.fixture
def environment(site):
    return {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}


def run(*arguments: str, cwd: Path, env: dict) -> str:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, check=True, capture_output=True, text=True
    ).stdout


def test_commands_and_python_names_work_with_the_shipped_teachers(site, environment, tmp_path):
    where = run("-c", "import kdad; print(kdad.__file__)", cwd=tmp_path, env=environment)
    assert Path(where.strip()).is_relative_to(site)
    assert "vgg-cifar10" in run("-m", "kdad", "list", cwd=tmp_path, env=environment)
    for name in ("detection/report.html", "data/photographs/brick.png", "data/photographs/SOURCES.txt"):
        assert (site / "kdad" / name).is_file()
    student = site / "kdad" / "_app" / "trained_students" / "patterns-defects" / "vgg-cifar10" / "bricks"
    code = (
        "import kdad, torch\n"
        f"detector = kdad.Detector.load({str(student)!r}, device='cpu')\n"
        "print(detector.predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).is_anomaly[0])"
    )
    assert run("-c", code, cwd=tmp_path, env=environment).strip() == "True"


def test_the_app_starts_from_it_with_the_shipped_students(site, environment, tmp_path):
    port, before = free_port(), sorted(site.rglob("*"))
    command = [sys.executable, "-m", "kdad", "app", "--headless", "--port", str(port)]
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: answers(port) or server.poll() is not None, seconds=120)
        assert server.poll() is None, server.stdout.read()
        found = "from ui.shared.student_index import find; print(len(find()[0]), find()[1])"
        app = site / "kdad" / "_app"
        shown = run("-c", found, cwd=app, env={**environment, "PYTHONPATH": f"{site}{os.pathsep}{app}"})
        shipped = [name for name in tracked_files() if name.startswith("trained_students/") and "model.saf" in name]
        assert shown.split() == [str(len(shipped)), "[]"]
    finally:
        server.terminate()
        server.wait()
    assert sorted(site.rglob("*")) == before, "an installed package is read-only"


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
