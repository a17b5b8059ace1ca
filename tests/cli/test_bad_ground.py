"""Commands where files cannot be written: full disks, read-only folders, files in the place of folders."""

import os
import resource
from pathlib import Path

import pytest
from helpers.miniatures import TinyTask

from benchmarks.attacks.kills import check_whole
from kdad.cli import main
from kdad.detection.calibration import load_calibration, save_calibration
from kdad.storage import layout
from kdad.storage import student_folder as store

KIB = 1024


@pytest.fixture(autouse=True)
def tiny_patterns(monkeypatch):
    """Every task is the tiny one."""
    monkeypatch.setattr("kdad.data.loading.load_task", lambda _, normal_class, *sizes: TinyTask(normal_class))


@pytest.fixture
def train(vgg_folder, capsys):
    """A function that trains below a folder; returns the status and the last line of what was said."""
    request = ["train", "--dataset", "patterns", "--normal-class", "dots", "--teacher", str(vgg_folder)]

    def trained(out: Path) -> tuple[int, str]:
        capsys.readouterr()
        status = main([*request, "--epochs", "2", "--batch-size", "8", "--device", "cpu", "--out", str(out)])
        return status, capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]

    return trained


@pytest.fixture
def disk():
    """A function that says how many bytes a file may have, as on a disk that is nearly full; None for any."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def holds(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield holds
    holds(None)


def test_a_run_on_a_full_disk_leaves_nothing_half_written_and_is_resumed(train, tmp_path, disk):
    """Started again and again, each time with a little more room."""
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for size in (0, 100, 2 * KIB, 20 * KIB, 80 * KIB, 400 * KIB):
        disk(size)
        status, said = train(broken)
        disk(None)
        assert status == 1
        assert said.startswith("kdad: ")
        check_whole(broken)
        assert not list(broken.rglob("*.part"))
        assert not list(broken.rglob("*.lock"))
    assert train(broken)[0] == train(whole)[0] == 0
    (folder,), (expected,) = store.find_students(broken), store.find_students(whole)
    for name in (layout.WEIGHTS, layout.CALIBRATION, layout.EVALUATION):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_disk_that_fills_up_after_the_last_epoch_is_an_error_of_the_system(tmp_path, disk, student_folder):
    calibration = load_calibration(student_folder, store.load_config(student_folder))
    disk(KIB)
    with pytest.raises(OSError):
        save_calibration(tmp_path, calibration)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["", "patterns", "patterns/tiny-vgg", "patterns/tiny-vgg/dots"])
def test_a_file_in_the_place_of_a_folder_is_named_before_any_work(train, tmp_path, monkeypatch, where):
    monkeypatch.setattr("kdad.training.distillation.cache_features", None)
    out = tmp_path / "out"
    (out / where).parent.mkdir(parents=True, exist_ok=True)
    (out / where).write_text("a file")
    status, said = train(out)
    assert status == 2
    assert said.startswith("kdad: ")
    assert (out / where).read_text() == "a file"


@pytest.mark.skipif(not os.geteuid(), reason="root may write anywhere")
def test_a_read_only_folder_is_named_before_any_work(train, tmp_path, monkeypatch):
    monkeypatch.setattr("kdad.training.distillation.cache_features", None)
    tmp_path.chmod(0o500)
    status, said = train(tmp_path / "out")
    tmp_path.chmod(0o700)
    assert status == 2
    assert "Permission denied" in said
