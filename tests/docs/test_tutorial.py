"""The tutorial does what it says: its blocks run in their order as they are printed, in an empty folder."""

import os
import re
import subprocess
import sys

import pytest
from helpers.miniatures import ROOT
from PIL import Image

BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))


def run(language: str, code: str, session: list[str], place, env) -> str:
    """Run one block; one of Python goes on from those before it, whose output is left out."""
    if language == "sh":
        command = ["bash", "-ec", f'kdad() {{ "{sys.executable}" -m kdad "$@"; }}\n{code}']
    else:
        quiet = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n    exec(before)\n"
        command = [sys.executable, "-c", f"before = {chr(10).join(session)!r}\n{quiet}{code}"]
        session.append(code)
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_every_block_runs_as_it_is_printed(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    said, session = [], []
    for language, code in blocks():
        if language == "text":  # what the block before it ends with; … stands for anything
            for line in code.splitlines():
                assert re.search(re.escape(line).replace("…", ".*"), said[-1]), said[-1]
        else:
            said.append(run(language, code, session, tmp_path, env))
    judged = next(line for line in said if "of 200 called anomalous" in line)
    called, anomalous = map(int, re.findall(r"\d+", judged)[::2])
    assert anomalous == 180
    assert called > 150
    with Image.open(tmp_path / "heatmap.png") as picture:
        assert picture.size == (256, 256)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 5
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
