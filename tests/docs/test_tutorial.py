"""The tutorial does what it says: its blocks run in their order as they are printed, in an empty folder."""

import os
import re
import subprocess
import sys
from itertools import groupby

import pytest
from helpers.miniatures import ROOT
from PIL import Image

BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """The language and the code of each; those of one language that follow one another are one program."""
    found = BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    together = groupby(found, lambda block: block[0])
    return [(language, "".join(code for _, code in several)) for language, several in together]


def run(language: str, code: str, place, env) -> str:
    shell = ["bash", "-ec", f'kdad() {{ "{sys.executable}" -m kdad "$@"; }}\n{code}']
    command = shell if language == "sh" else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_every_block_runs_as_it_is_printed(tmp_path):
    env, said = {**os.environ, "PYTHONPATH": str(ROOT)}, []
    for language, code in blocks():
        if language == "text":  # what the block before it ends with; … stands for anything
            for line in code.splitlines():
                assert re.search(re.escape(line).replace("…", ".*"), said[-1]), said[-1]
        else:
            said.append(run(language, code, tmp_path, env))
    judged = re.search(r"(\d+) of 100 defects found, (\d+) false alarms", "".join(said))
    assert int(judged[1]) > 50
    assert int(judged[2]) < 20
    with Image.open(tmp_path / "heatmap.png") as picture:
        assert picture.size == (256, 256)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 5
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
