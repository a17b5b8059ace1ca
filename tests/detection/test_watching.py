"""Watched folders: whatever arrives has one row, also after a restart, a crash or a change."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.miniatures import ROOT, TinyTask, eventually
from PIL import Image

from kdad.cli import main
from kdad.detection.detector import Detector
from kdad.detection.watching import COLUMNS, Arrivals, ScoreTable, Watcher


@pytest.fixture(scope="module")
def detector(student_folder):
    return Detector.load(student_folder, device="cpu")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "arriving").mkdir()
    return tmp_path / "arriving"


@pytest.fixture
def table(tmp_path):
    return tmp_path / "scores.csv"


def put(place: Path, index: int = 0) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(TinyTask().test.images[index].permute(1, 2, 0).numpy()).save(place)
    return place


def looks(detector, folder, table, times: int = 2, heatmaps: Path | None = None) -> list[dict]:
    """What so many looks of a new run find."""
    watcher = Watcher(detector, [folder], ScoreTable(table, detector, 0.05), 0.05, heatmaps, "patch")
    left = iter([False] * times)
    return list(watcher.run(lambda: next(left, True), interval=1e-9))


def rows(table: Path) -> list[dict]:
    with open(table, newline="") as lines:
        return list(csv.DictReader(lines))


def test_what_arrives_is_judged_once_also_by_a_later_run(detector, folder, table):
    place = put(folder / "deep" / "a.png", 20)
    put(folder / "=b.png", 1)
    found = looks(detector, folder, table, times=8)
    assert len(found) == 2
    assert not looks(detector, folder, table, times=8)
    put(folder / "c.png", 2)
    assert [Path(row["image"]).name for row in looks(detector, folder, table, times=8)] == ["c.png"]
    assert len(rows(table)) == 3
    (row,) = [row for row in rows(table) if row["image"] == str(place)]
    assert float(row["score"]) == pytest.approx(float(detector.predict(place).score[0]), abs=1e-4)
    assert (row["is_anomaly"], row["error"]) == (str(bool(detector.predict(place).is_anomaly[0])), "")


def test_a_file_is_judged_once_it_no_longer_grows_and_again_once_it_has_changed(detector, folder, table, tmp_path):
    whole = put(tmp_path / "whole.png").read_bytes()
    arrivals, place = Arrivals([folder]), folder / "a.png"
    for size in (0, 10, len(whole) // 2, len(whole)):
        place.write_bytes(whole[:size])
        assert not arrivals.settled()
    assert [image.name for image in arrivals.settled()] == [str(place)]
    assert len(looks(detector, folder, table, 4)) == 1
    put(place, 5)
    os.utime(place, (1, 1))
    assert len(looks(detector, folder, table, 4)) == 1
    assert len({row["score"] for row in rows(table)}) == 2


def test_a_file_that_is_no_image_is_recorded_once_and_judged_when_it_is_one(detector, folder, table):
    (folder / "a.png").write_text("not yet")
    put(folder / "b.png")
    assert len(looks(detector, folder, table, 8)) == 2
    assert not looks(detector, folder, table, 4)
    broken, good = sorted(rows(table), key=lambda row: row["image"])
    assert "not an image" in broken["error"] and broken["score"] == "" and good["error"] == ""
    put(folder / "a.png")
    assert len(looks(detector, folder, table, 4)) == 1


def test_hidden_files_masks_and_others_are_left_out(detector, folder, table, capsys):
    for name in ("a.png", "a_mask.png", ".b.png"):
        put(folder / name)
    (folder / "notes.xyz").write_text("x")
    assert len(looks(detector, folder, table, 6)) == 1
    said = capsys.readouterr().err
    assert said.count("a_mask.png") == said.count("notes.xyz") == 1


def test_a_folder_that_is_gone_for_a_while_ends_nothing(detector, folder, table, capsys):
    watcher = Watcher(detector, [folder], ScoreTable(table, detector, 0.05), 0.05, None, "patch")
    put(folder / "a.png")
    shutil.move(folder, folder.with_name("away"))
    left = iter([False] * 3)
    assert not list(watcher.run(lambda: next(left, True), 1e-9))
    assert capsys.readouterr().err.count("cannot be accessed") == 1
    shutil.move(folder.with_name("away"), folder)
    left = iter([False] * 6)
    assert len(list(watcher.run(lambda: next(left, True), 1e-9))) == 1


def test_a_row_that_was_cut_off_is_written_anew(detector, folder, table):
    put(folder / "a.png")
    put(folder / "b.png", 1)
    looks(detector, folder, table, 4)
    whole = table.read_bytes()
    for end in (len(whole) - 1, len(whole) - 30, len(",".join(COLUMNS)) - 3, 0):
        table.write_bytes(whole[:end])
        looks(detector, folder, table, 4)
        assert sorted(row["image"] for row in rows(table)) == [str(folder / "a.png"), str(folder / "b.png")]


def test_other_tables_are_kept(detector, folder, table, refusal, tmp_path):
    put(folder / "a.png")
    looks(detector, folder, table, 4)
    assert "another student or --fpr" in refusal(ScoreTable, table, detector, 0.1)
    for content in ("image,score\na,1\n", "hello", "image,sc"):
        table.write_text(content)
        if content != "image,sc":  # the beginning of a header of ours
            assert "was not written by --watch" in refusal(ScoreTable, table, detector, 0.05)
        assert table.read_text() == content


def test_a_table_of_watching_is_not_replaced_by_other_scores(detector, student_folder, folder, table, capsys):
    image = put(folder / "a.png")
    looks(detector, folder, table, 4)
    written = table.read_bytes()
    assert main(["score", str(student_folder), str(image), "--csv", str(table), "--device", "cpu"]) == 2
    assert "is a table of --watch, and is kept" in capsys.readouterr().err
    assert table.read_bytes() == written


def test_heatmaps_are_numbered_on_and_named(detector, folder, table, tmp_path):
    for index in range(3):
        put(folder / f"{index}.png", index)
        looks(detector, folder, table, 4, tmp_path / "maps")
    assert [row["heatmap"] for row in rows(table)] == [str(tmp_path / "maps" / f"000{i}-{i}.png") for i in range(3)]
    assert len(list((tmp_path / "maps").iterdir())) == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--watch"], "give --csv FILE"),
        (["--watch", "--csv", "s.csv", "--interval", "0"], "positive number"),
        (["--interval", "3"], "give --watch"),
        (["--watch", "--csv", "s.csv", "--fpr", "0.00001"], "cannot be held"),
        (["--watch", "--csv", "s.csv", "--heatmaps", "arriving/maps"], "would lie among the images"),
        (["--watch", "--parquet", "parts"], "give --csv FILE"),
        (["--interval", "3", "--parquet", "parts"], "give --watch"),
        (["--watch", "--csv", "s.csv", "--heatmaps", "maps", "--method", "lime"], "unknown localisation method"),
        (["--watch", "--csv", "s.csv", "--heatmaps", "maps", "--method", "attention-rollout"], "is for ViT"),
    ],
)
def test_what_cannot_be_watched_is_one_line(student_folder, folder, monkeypatch, capsys, more, said):
    monkeypatch.chdir(folder.parent)
    put(folder / "a.png")
    assert main(["score", str(student_folder), "arriving", "--device", "cpu", *more]) == 2
    assert said in capsys.readouterr().err
    assert not list(folder.parent.glob("*.csv"))


def test_only_directories_are_watched(student_folder, folder, table, capsys):
    command = ["score", str(student_folder), str(put(folder / "a.png")), "--watch", "--csv", str(table)]
    assert main(command) == 2
    assert "is no directory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_ends_it_cleanly_and_another_run_waits_for_nothing(student_folder, folder, table):
    command = [sys.executable, "-m", "kdad", "score", str(student_folder), str(folder), "--watch", "--csv", str(table)]
    command += ["--interval", "0.1", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for index, number in enumerate((signal.SIGINT, signal.SIGTERM)):
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        put(folder / f"{index}.png", index)
        eventually(lambda wanted=index + 1: table.exists() and len(rows(table)) == wanted, seconds=120)
        if index == 0:
            refused = subprocess.run(command, capture_output=True, text=True, env=environment)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert "another run writes to" in refused.stderr
        run.send_signal(number)
        out, said = run.communicate(timeout=60)
        assert run.returncode == 0, said
        assert len(out.splitlines()) == 1
        assert "1 judged, 0 unreadable" in said
    assert {file.name for file in table.parent.iterdir()} == {"arriving", "scores.csv"}
