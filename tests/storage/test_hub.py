"""Students to and from a Hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.hub import READING_TOKEN, TOKEN
from helpers.miniatures import reseal
from PIL import Image
from safetensors.torch import load_file, save_file

from kdad import cli
from kdad.detection.detector import Detector
from kdad.storage import hub as students_hub
from kdad.storage import layout
from kdad.storage import student_folder as store

CIFAR10 = "uoft-cs/cifar10"


@pytest.fixture
def copied(student_folder, tmp_path):
    """A complete student of its own, free to be damaged."""
    return Path(shutil.copytree(student_folder, tmp_path / "copied"))


def change_config(folder: Path, **changes) -> None:
    reseal(folder / layout.CONFIG, **changes)


@pytest.fixture
def original(student_folder, tiny_task):
    """What the student on disk says of the test images."""
    return Detector.load(student_folder, device="cpu").predict(tiny_task.test.images)


def assert_same_verdicts(folder_or_repo, original, tiny_task, teacher):
    prediction = Detector.load(folder_or_repo, teacher=teacher, device="cpu").predict(tiny_task.test.images)
    assert np.array_equal(prediction.score, original.score)
    assert np.array_equal(prediction.p_value, original.p_value)
    assert np.array_equal(prediction.heatmap, original.heatmap)


def test_a_student_on_the_hub_judges_as_the_one_on_disk(
    hub, student_folder, original, tiny_task, tmp_path, vgg_teacher
):
    hub.add_folder("someone/dots", student_folder)
    assert_same_verdicts("someone/dots", original, tiny_task, vgg_teacher)
    folder = students_hub.pull("someone/dots", tmp_path / "out")
    config = store.load_config(student_folder)
    assert folder == store.folder_of(tmp_path / "out", config)
    assert store.load_config(folder) == config
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert_same_verdicts(folder, original, tiny_task, vgg_teacher)


def test_pull_takes_a_students_own_files_only(hub, student_folder, tmp_path):
    hub.add_folder("someone/dots", student_folder)
    hub.add("someone/dots", {"notes.txt": b"hello", "deep/config.json": b"{}", "photo.jpg": b"0"})
    folder = students_hub.pull("someone/dots", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} <= {*layout.SHARED_FILES, layout.LOCAL}


@pytest.mark.parametrize("name", ["run.py", "deep/last.ckpt", "weights.PKL", "pytorch_model.bin"])
def test_a_repository_with_what_may_run_is_refused_by_name(name, hub, student_folder, tmp_path, refusal):
    hub.add_folder("someone/dots", student_folder)
    hub.add("someone/dots", {name: b"0"})
    for fetch in (students_hub.resolve, lambda repo: students_hub.pull(repo, tmp_path / "out")):
        assert f"holds {name}, which can run code" in refusal(fetch, "someone/dots")
    assert not (tmp_path / "out").exists()


def test_what_was_fetched_once_needs_no_network(hub, student_folder):
    hub.add_folder("someone/dots", student_folder)
    fetched = students_hub.resolve("someone/dots")
    hub.shutdown()
    hub.server_close()
    assert students_hub.resolve("someone/dots") == fetched


def test_a_revision_is_pinned_and_recorded(hub, student_folder, tmp_path, refusal, capsys):
    repository = hub.add_folder("someone/dots", student_folder)
    commit = store.load_local(students_hub.pull("someone/dots", tmp_path / "main"))["from"].split("@")[1]
    pulled = students_hub.pull("someone/dots", tmp_path / "pinned", commit)
    assert store.load_local(pulled) == {"from": f"someone/dots@{commit}"}
    assert cli.main(["list", "--out", str(tmp_path / "pinned")]) == 0
    assert f"from someone/dots@{commit}" in capsys.readouterr().out
    (repository / "photo.jpg").write_bytes(b"0")  # another commit
    assert "no revision 'v2'" in refusal(students_hub.pull, "someone/dots", tmp_path / "v2", "v2")


@pytest.mark.parametrize("present", [layout.WEIGHTS, "last.ckpt"])
def test_pull_does_not_replace_what_is_there(present, hub, student_folder, tmp_path, refusal):
    hub.add_folder("someone/dots", student_folder)
    place = store.folder_of(tmp_path / "out", store.load_config(student_folder))
    place.mkdir(parents=True)
    (place / present).write_text("mine")
    assert f"{place} is not empty" in refusal(students_hub.pull, "someone/dots", tmp_path / "out")
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [(present, "mine")]
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize(
    ("field", "place"),
    [("dataset", "../elsewhere"), ("dataset", "{0}/elsewhere"), ("normal_class", "../../../elsewhere"),
     ("normal_class", "{0}/elsewhere")],
)  # fmt: skip
def test_pull_writes_nothing_outside_its_folder(field, place, hub, copied, tmp_path, refusal):
    change_config(copied, **{field: place.format(tmp_path)})
    hub.add_folder("someone/hostile", copied)
    before = {path for path in tmp_path.iterdir() if path.name != "cache"}
    assert "outside" in refusal(students_hub.pull, "someone/hostile", tmp_path / "out")
    assert {path for path in tmp_path.iterdir() if path.name != "cache"} == before


@pytest.mark.parametrize("damage", ["no such repository", "no weights", "other weights", "cut off"])
def test_pull_of_a_damaged_student_leaves_nothing(damage, hub, copied, tmp_path, refusal):
    if damage == "no weights":
        (copied / layout.WEIGHTS).unlink()
    if damage == "other weights":
        save_file(load_file(copied / layout.CALIBRATION), copied / layout.WEIGHTS)
    if damage == "cut off":
        hub.cut_off.add(layout.WEIGHTS)
    if damage != "no such repository":
        hub.add_folder("someone/dots", copied)
    refusal(students_hub.pull, "someone/dots", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pull_and_load_without_a_network(no_network, tmp_path, refusal):
    assert "network" in refusal(students_hub.pull, "someone/dots", tmp_path / "out")
    assert "network" in refusal(Detector.load, "someone/dots")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gone", "./gone", "/gone/away", "a/b/c", "../gone"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name, hub, refusal):
    assert "no such student folder" in refusal(students_hub.resolve, name)
    assert not hub.requests


def test_push_uploads_what_pull_fetches(hub, copied, original, tiny_task, tmp_path, monkeypatch, vgg_teacher):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (copied / "last.ckpt").write_bytes(b"not to be shared")
    assert students_hub.push(copied, "me/dots") == f"{hub.endpoint}/me/dots"
    pushed = {path.name: path.read_bytes() for path in (hub.root / "models/me/dots").iterdir()}
    assert pushed == {name: (copied / name).read_bytes() for name in layout.SHARED_FILES if (copied / name).is_file()}
    assert_same_verdicts(students_hub.pull("me/dots", tmp_path / "out"), original, tiny_task, vgg_teacher)


def test_a_new_repository_is_private_unless_asked_otherwise(hub, copied, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    students_hub.push(copied, "me/mine")
    students_hub.push(copied, "me/yours", public=True)
    assert hub.private == {"me/mine": True, "me/yours": False}


def test_no_path_of_this_machine_leaves_it(hub, copied, tmp_path, monkeypatch, refusal, vgg_folder):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    students_hub.push(copied, "me/dots")
    pushed = b"".join(path.read_bytes() for path in (hub.root / "models/me/dots").iterdir())
    assert str(vgg_folder.parent).encode() not in pushed
    unknown_then = ("format", "images_sha256", "calibration")
    reseal(copied / layout.CONFIG, without=unknown_then, dataset="folder:/home/me/bottle")
    assert "a path on this machine" in refusal(students_hub.push, copied, "me/old")


def test_push_refuses_figures_of_other_weights(hub, copied, monkeypatch, refusal):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (copied / layout.EVALUATION).write_text(json.dumps({"auroc": 0.9, "weights_sha256": "0" * 64}))
    assert "other weights" in refusal(students_hub.push, copied, "me/dots")
    assert not hub.requests


def test_push_again_replaces_what_changed(hub, copied, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    students_hub.push(copied, "me/dots")
    (copied / layout.CARD).write_text("# Better words\n")
    students_hub.push(copied, "me/dots")
    assert (hub.root / "models/me/dots" / layout.CARD).read_text() == "# Better words\n"


def test_push_again_removes_what_is_no_more(hub, copied, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    point = copied / layout.OPERATING_POINT
    point.write_text("{}")
    students_hub.push(copied, "me/dots")
    there = hub.root / "models/me/dots"
    assert (there / layout.OPERATING_POINT).is_file()
    (there / "of-others.txt").touch()
    point.unlink()
    students_hub.push(copied, "me/dots")
    assert not (there / layout.OPERATING_POINT).exists()
    assert (there / layout.WEIGHTS).is_file() and (there / "of-others.txt").is_file()


def test_push_under_a_bare_name_goes_to_ones_own_account(hub, copied, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert students_hub.push(copied, "dots") == f"{hub.endpoint}/me/dots"
    assert (hub.root / "models/me/dots" / layout.WEIGHTS).is_file()


def test_push_without_login_says_how_to_log_in(hub, copied, refusal):
    assert "hf auth login" in refusal(students_hub.push, copied, "me/dots")
    assert not (hub.root / "models/me").exists()


def test_push_with_a_token_that_may_only_read_says_so(hub, copied, monkeypatch, refusal):
    monkeypatch.setenv("HF_TOKEN", READING_TOKEN)
    assert "may not write there" in refusal(students_hub.push, copied, "others/dots")


def test_push_without_a_network(no_network, copied, refusal):
    assert "could not push to me/dots" in refusal(students_hub.push, copied, "me/dots")


def test_push_sends_no_damaged_student(hub, copied, monkeypatch, refusal):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (copied / layout.WEIGHTS).write_bytes(b"")
    assert "damaged" in refusal(students_hub.push, copied, "me/dots")
    assert "no student folder" in refusal(students_hub.push, copied.parent, "me/dots")
    assert not hub.requests


# The commands


def run_kdad(*arguments, endpoint: str, home: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "KDAD_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "kdad", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_score_takes_a_student_straight_from_the_hub(hub, student_folder, tmp_path, vgg_folder):
    hub.add_folder("someone/dots", student_folder)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    command = ["score", "someone/dots", tmp_path / "image.png", "--json", "--device", "cpu", "--teacher", vgg_folder]
    done = run_kdad(*command, endpoint=hub.endpoint, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    expected = Detector.load(student_folder, device="cpu").predict([pixels])
    assert json.loads(done.stdout)[0]["score"] == pytest.approx(float(expected.score[0]), rel=1e-6)


def test_training_on_cifar10_without_data_or_network_ends_with_one_line(no_network, vgg_folder, tmp_path, capfd):
    out = tmp_path / "students"
    command = ["train", "--dataset", "cifar10", "--teacher", vgg_folder, "--normal-class", "cat", "--out", out]
    assert cli.main([str(part) for part in command]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert CIFAR10 in said.err
    assert "$KDAD_DATA/cifar10/" in said.err
    assert not out.exists()


def test_detectors_come_and_go_by_the_names_that_users_of_the_hub_know(hub, student_folder, vgg_teacher, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    detector = Detector.load(student_folder, teacher=vgg_teacher, device="cpu")
    assert "me/dots" in detector.push_to_hub("me/dots", commit_message="First")
    assert hub.private["me/dots"]
    monkeypatch.setattr("kdad.detection.detector._load_teacher", lambda *_: vgg_teacher)
    fetched = Detector.from_pretrained("me/dots", device="cpu")
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert fetched.predict(images).score == detector.predict(images).score


def test_a_detector_without_a_folder_cannot_be_shared(student_folder, vgg_teacher, refusal):
    loaded = Detector.load(student_folder, teacher=vgg_teacher, device="cpu")
    made = Detector(loaded.config, loaded.student, vgg_teacher, loaded.calibration)
    assert "not loaded has no folder" in refusal(made.push_to_hub, "me/dots")
