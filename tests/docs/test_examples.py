"""Each script of `examples/` is short and runs as it is; `without_torch.py` does in `tests/detection`."""

import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from helpers.miniatures import ROOT, eventually

from benchmarks.browser import free_port

EXAMPLES = ROOT / "examples"
STUDENT = ROOT / "trained_students" / "cifar10" / "vgg-cifar10" / "cat"


def run(*command: str, place) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1", "http_proxy": ""}
    done = subprocess.run([sys.executable, *command], cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_are_under_forty_lines():
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert [script.name for script in scripts] == ["ask_the_server.py", "train_and_judge.py", "without_torch.py"]
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) < 40, script.name


@pytest.mark.slow
def test_train_and_judge(tmp_path):
    said = run(str(EXAMPLES / "train_and_judge.py"), str(tmp_path / "students"), place=tmp_path)
    assert "called anomalous at 5 %:" in said
    assert float(said.split("AUROC ")[1].split(";")[0]) > 0.8
    assert (tmp_path / "students" / "patterns-defects" / "vgg-cifar10" / "bricks" / "model.safetensors").is_file()


@pytest.mark.slow
def test_ask_the_server(tmp_path):
    pytest.importorskip("uvicorn")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "kdad", "serve", str(STUDENT), "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: server.poll() is not None or answers(address), seconds=120)
        said = run(str(EXAMPLES / "ask_the_server.py"), address, place=tmp_path)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    assert "'is_anomaly': " in said
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")


def answers(address: str) -> bool:
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(f"{address}/health", timeout=5).status == 200
    except OSError:
        return False
