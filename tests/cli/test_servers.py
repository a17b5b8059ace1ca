"""`app`: where the app and its students are, and what is started."""

import os
import socket
from pathlib import Path

import pytest
from helpers.miniatures import ROOT

from kdad.cli import main, servers


@pytest.fixture
def started(monkeypatch):
    """What would be started: the command, its environment, and the folder it is started in."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda _, command, environment: calls.append((command, environment, Path.cwd())))
    monkeypatch.setattr(servers, "_check_free", lambda *_: None)
    monkeypatch.delenv("KDAD_STUDENTS", raising=False)
    before = Path.cwd()
    yield calls
    os.chdir(before)


def test_in_a_checkout_it_is_what_streamlit_run_starts(started, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["app", "--port", "8600", "--headless"]) == 0
    command, environment, folder = started[0]
    assert command[1:5] == ["-m", "streamlit", "run", str(ROOT / "app.py")]
    assert command[5:] == ["--server.port=8600", "--server.address=127.0.0.1", "--server.headless=true"]
    assert folder == ROOT
    assert "KDAD_STUDENTS" not in environment


def test_installed_students_are_made_in_the_current_folder_and_shipped_ones_found(started, monkeypatch, tmp_path):
    (tmp_path / "site" / "kdad" / "_app").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(servers, "PACKAGE", tmp_path / "site" / "kdad")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("KDAD_DATA", "data")
    monkeypatch.setenv("KDAD_FOLDERS", f"a{os.pathsep}/b")
    assert main(["app"]) == 0
    _, environment, folder = started[0]
    assert folder == tmp_path / "site" / "kdad" / "_app"
    assert environment["KDAD_STUDENTS"].split(os.pathsep) == [
        str(tmp_path / "work" / "trained_students"), str(folder / "trained_students"),
    ]  # fmt: skip
    assert environment["KDAD_DATA"] == str(tmp_path / "work" / "data")
    assert environment["KDAD_FOLDERS"].split(os.pathsep) == [str(tmp_path / "work" / "a"), "/b"]


def test_students_of_ones_own_are_taken_as_they_are_named_here(started, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDAD_STUDENTS", "mine")
    main(["app"])
    assert started[0][1]["KDAD_STUDENTS"] == str(tmp_path / "mine")


def test_a_port_in_use_and_one_that_is_none_are_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in capsys.readouterr().err
    for odd in ("0", "65536", "x", "-1"):
        assert main(["app", f"--port={odd}"]) == 2
        assert "must be a whole number from 1 to 65535" in capsys.readouterr().err
