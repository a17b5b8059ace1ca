"""Files are written whole or not at all."""

import json
import os

import pytest

from kdad.errors import UserError
from kdad.files import (
    check_output,
    check_output_folder,
    read_json_if_there,
    read_json_or_empty,
    write_atomically,
    write_json,
    write_text,
)


def half_written(path):
    path.write_text("half of it")
    raise OSError("disk full")


@pytest.mark.parametrize("before", [None, "the old content"])
def test_a_crash_while_writing_leaves_the_old_state(tmp_path, before):
    file = tmp_path / "file.txt"
    if before is not None:
        file.write_text(before)
    listed = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, half_written)
    assert sorted(tmp_path.iterdir()) == listed
    assert before is None or file.read_text() == before


def test_the_file_appears_only_once_it_is_whole(tmp_path):
    file = tmp_path / "folder" / "file.txt"

    def write(path):
        path.write_text("first half")
        assert not file.exists()
        path.write_text("all of it")

    write_atomically(file, write)
    assert file.read_text() == "all of it"
    assert list(file.parent.iterdir()) == [file]


def test_whoever_may_read_a_new_file_may_read_this_one(tmp_path):
    (tmp_path / "usual").touch()

    def write_for_me_alone(path):
        path.unlink()
        path.touch(mode=0o600)

    write_atomically(tmp_path / "file", write_for_me_alone)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_text_and_json_are_utf8_and_readable_back(tmp_path):
    write_text(tmp_path / "a.txt", "λ = 0.01\n")
    assert (tmp_path / "a.txt").read_bytes() == "λ = 0.01\n".encode()
    write_json(tmp_path / "a.json", {"auroc": 0.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"auroc": 0.5}
    assert read_json_or_empty(tmp_path / "a.json") == {"auroc": 0.5}


def test_results_that_are_added_to_are_read_whole_or_not_at_all(tmp_path):
    file = tmp_path / "rows.json"
    assert read_json_if_there(file) == {}
    file.write_text('{"a": 1}')
    assert read_json_if_there(file) == {"a": 1}
    file.write_text('{"a": 1')
    with pytest.raises(ValueError):
        read_json_if_there(file)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_reads_as_an_empty_one(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_json_or_empty(tmp_path / "a.json") == {}


def test_an_output_may_be_new_or_replace_one_of_its_kind(tmp_path):
    check_output(tmp_path / "new.csv", [".csv"])
    (tmp_path / "old.CSV").touch()
    check_output(tmp_path / "old.CSV", [".csv"])
    check_output_folder(tmp_path / "new")
    check_output_folder(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["old.CSV"]


def test_an_output_replaces_nothing_else(tmp_path, refusal):
    (tmp_path / "image.png").touch()
    os.mkfifo(tmp_path / "pipe.csv")
    assert "image.png is left alone" in refusal(check_output, tmp_path / "image.png", [".csv", ""])
    assert "must end with .csv, .txt" in refusal(check_output, tmp_path / "image", [".csv", ".txt"])
    assert "is a folder" in refusal(check_output, tmp_path, [".csv", ""])
    assert "no regular file" in refusal(check_output, tmp_path / "pipe.csv", [".csv"])
    assert "no such folder" in refusal(check_output, tmp_path / "nowhere" / "a.csv", [".csv"])
    assert "is a file" in refusal(check_output_folder, tmp_path / "image.png")


@pytest.mark.skipif(not os.geteuid(), reason="root may write anywhere")
def test_a_read_only_folder_is_named_before_any_work(tmp_path, refusal):
    tmp_path.chmod(0o500)
    said = refusal(check_output, tmp_path / "a.csv", [".csv"])
    tmp_path.chmod(0o700)
    assert "is read-only" in said


def test_a_read_only_folder_is_refused_before_the_work(tmp_path, monkeypatch):
    check_output_folder(tmp_path / "new" / "deeper")
    monkeypatch.setattr("kdad.files.os.access", lambda place, _: place != tmp_path)
    with pytest.raises(UserError, match="is read-only; name another folder"):
        check_output_folder(tmp_path / "new" / "deeper")
