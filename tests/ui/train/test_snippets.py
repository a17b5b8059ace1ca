"""What the app gives to copy, run exactly as it is printed."""

import csv
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.miniatures import ROOT, TinyTask, eventually
from PIL import Image

from benchmarks.browser import free_port
from kdad import cli
from kdad.detection.detector import Detector
from ui.shared.student_index import find
from ui.train import snippets

DOTS = "patterns/tiny-vgg/dots"


@pytest.fixture
def student(students_root, tmp_path, monkeypatch):
    """A tiny student in a folder that a shell would take for two, and whose teacher is a folder, too."""
    root = shutil.copytree(students_root, tmp_path / "my students")
    monkeypatch.setenv("KDAD_STUDENTS", str(root))
    return find()[0][DOTS]


@pytest.fixture
def place(tmp_path):
    """A folder with the images that the snippets name."""
    folder = tmp_path / "elsewhere"
    (folder / snippets.PHOTOS).mkdir(parents=True)
    pixels = TinyTask().test.images[-1].permute(1, 2, 0).numpy()
    for name in (snippets.PHOTO, f"{snippets.PHOTOS}/a.jpg"):
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def expected(student, place):
    """The score and the p-value of that image."""
    prediction = Detector.load(student.folder, device="cpu").predict(place / snippets.PHOTO)
    return float(prediction.score[0]), float(prediction.p_value[0])


def environment() -> dict[str, str]:
    """That of a shell in which `python` has kdad."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "no_proxy": "*"}


def shell(code: str, place: Path) -> str:
    command = ["bash", "-e", "-c", code]
    run = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def python(code: str, place: Path) -> str:
    (place / "copied.py").write_text(code)
    return shell("python copied.py", place)


@pytest.mark.slow
def test_score_as_printed(student, place, expected):
    said = shell(snippets.score(student), place)
    assert f"{expected[0]:9.6f}  p {expected[1]:.4f}" in said
    (row,) = csv.DictReader((place / "scores.csv").read_text().splitlines())
    (heatmap,) = (place / "heatmaps").iterdir()
    assert row["image"] == "photos/a.jpg"
    assert row["heatmap"] == f"heatmaps/{heatmap.name}"


@pytest.mark.slow
def test_report_as_printed(student, place, expected):
    shell(snippets.report(student), place)
    assert f"p {expected[1]:.4f}" in (place / "report.html").read_text()


@pytest.mark.slow
def test_watch_as_printed(student, place, expected):
    with running(snippets.watch(student), place):
        eventually(lambda: (place / "arrived.csv").exists(), seconds=120)
    (row,) = csv.DictReader((place / "arrived.csv").read_text().splitlines())
    assert float(row["score"]) == pytest.approx(expected[0], abs=1e-4)


@contextmanager
def running(code: str, place: Path):
    """A command that goes on until the end of the block; yields its process."""
    process = subprocess.Popen(["bash", "-c", code], cwd=place, env=environment(), start_new_session=True)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.mark.slow
def test_serve_and_its_requests_as_printed(student, place, expected):
    pytest.importorskip("uvicorn")
    port = free_port()
    with running(snippets.serve(student, port), place) as server:
        eventually(lambda: server.poll() is not None or answers(port), seconds=120)
        said = shell(snippets.requests(student, port), place)
        assert float(re.search(r'"score":([-\d.e]+)', said)[1]) == pytest.approx(expected[0], abs=1e-4)
        with Image.open(place / "heatmap.png") as heatmap:
            assert (heatmap.format, heatmap.size) == ("PNG", (32, 32))


def answers(port: int) -> bool:
    with socket.socket() as free:
        if free.connect_ex(("127.0.0.1", port)):
            return False
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(f"http://127.0.0.1:{port}/health", timeout=5).status == 200


@pytest.mark.slow
def test_python_as_printed(student, place, expected):
    code = snippets.python(student)
    assert len(code.splitlines()) == 5
    score, p_value = map(float, python(code, place).split()[:2])
    assert (score, p_value) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_onnx_as_printed(student, place, expected):
    pytest.importorskip("onnxscript")
    shell(snippets.export(student, snippets.onnx_name(student)), place)
    score = float(python(snippets.without_torch(student), place).split()[0])
    assert score == pytest.approx(expected[0], abs=5e-3)


def test_docker_as_printed_finds_its_files_and_the_server_understands_its_arguments(student, tmp_path):
    """All but the wheel and the image is done; programs of the same names record what they were asked for."""
    for name, does in {"python": 'touch "${@: -1}/kdad-0-py3-none-any.whl"', "docker": 'echo "$@" >> asked'}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "docs" / "serving", checkout / "docs" / "serving")
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-e", "-c", snippets.docker(student)], cwd=checkout, env=env, check=True)
    build, run = map(shlex.split, (checkout / "asked").read_text().splitlines())
    assert build == ["build", "--tag", "kdad-serve", "kdad-serve"]
    assert run[:3] == ["run", "--publish", "127.0.0.1:8000:8000"]
    assert f"{student.teacher}:{student.teacher}:ro" in run  # where local.json says that it is
    dockerfile = (checkout / "kdad-serve" / "Dockerfile").read_text()
    for copied in re.findall(r"^COPY (\S+) ", dockerfile, re.M):
        assert list((checkout / "kdad-serve").glob(copied)), copied
    assert (checkout / "kdad-serve" / "student" / "model.safetensors").is_file()
    served = eval(re.search(r"^CMD (.+)$", dockerfile, re.M)[1])
    assert (served[0], cli.build_parser().parse_args(served[1:]).port) == ("kdad", 8000)


def test_a_container_is_given_the_teacher_that_is_not_in_the_package(student):
    def volumes(teacher: str) -> str:
        return snippets.docker(replace(student, teacher=teacher)).splitlines()[-1].partition(":8000:8000")[2]

    assert volumes("vgg-cifar10") == volumes("lite0-imagenet") == " kdad-serve"
    assert volumes("timm:resnet18@/data/w.safetensors") == (
        " --volume /data/w.safetensors:/data/w.safetensors:ro kdad-serve"
    )
    assert volumes("owner/model").endswith(":/home/user/.cache/huggingface/hub:ro kdad-serve")


def test_names_from_files_are_quoted(student):
    odd = replace(student, folder=Path('/data/$(touch x)/"y"'), normal_class="a b;c")
    (command,) = {tuple(shlex.split(line)[4:5]) for line in snippets.score(odd).splitlines()}
    assert command == (str(odd.folder),)
    assert "/a%20b%3Bc/predict" in snippets.requests(odd)
    compile(snippets.python(odd), "copied", "exec")
