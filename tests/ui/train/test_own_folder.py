"""Uploaded images: a zip file has one folder, and what nobody uses goes."""

import json
import os
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from threading import Event

import pytest
from PIL import Image

from kdad.data import archives
from kdad.jobs import status
from kdad.networks.recipes import Recipe
from ui.train import form
from ui.train.own_folder import ZIP_RECORD, forget_unused, place_for, unpacked_once


def zip_of(*names: str) -> BytesIO:
    """A zip file of images, and of what is none by its name."""
    content, encoded = BytesIO(), BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "PNG")
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, encoded.getvalue())
    return content


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("KDAD_STUDENTS", str(tmp_path))
    return tmp_path / ".uploads"


def test_the_same_zip_file_is_the_same_folder_and_another_of_its_name_is_a_second(uploads):
    first = place_for("mugs", "a" * 64)
    assert first == uploads / "mugs"
    first.mkdir(parents=True)
    (first / ZIP_RECORD).write_text(json.dumps({"sha256": "a" * 64, "said": []}))
    assert place_for("mugs", "a" * 64) == first
    assert place_for("mugs", "b" * 64) == uploads / "mugs-2"


def test_a_zip_file_is_unpacked_once_though_the_page_starts_anew_meanwhile(uploads, monkeypatch):
    unpack, begun, may_end = archives.unpack_images, Event(), Event()

    def slowly(file, folder):
        begun.set()
        assert may_end.wait(10)
        return unpack(file, folder)

    monkeypatch.setattr(archives, "unpack_images", slowly)
    with ThreadPoolExecutor(2) as runs:
        first = runs.submit(unpacked_once, "mugs", "a" * 64, zip_of("one.png", "notes.txt"))
        assert begun.wait(10)
        second = runs.submit(unpacked_once, "mugs", "a" * 64, zip_of("one.png", "notes.txt"))
        may_end.set()
        assert first.result() == second.result() == uploads / "mugs"
    assert [folder.name for folder in uploads.iterdir()] == ["mugs"]
    assert unpacked_once("mugs", "b" * 64, zip_of("two.png")) == uploads / "mugs-2"


def test_images_of_which_nobody_made_use_for_a_day_are_deleted(uploads, tmp_path):
    used, unused, new = (uploads / name for name in ("used", "unused", "new"))
    for folder in (used, unused, new):
        folder.mkdir(parents=True)
    for folder in (used, unused):
        os.utime(folder, (0, 0))
    request = {"arguments": ["train", f"--dataset=folder:{used.resolve()}"], "student": "", "created": time.time()}
    job = tmp_path / ".jobs" / "one"
    job.mkdir(parents=True)
    (job / status.REQUEST).write_text(json.dumps(request))
    forget_unused(uploads / "another")
    assert sorted(folder.name for folder in uploads.iterdir()) == ["new", "used"]


PRESET = Recipe(epochs=2, min_steps=200)


@pytest.mark.parametrize(
    ("epochs", "fitting", "words"),
    [
        (2, None, "More with few images: at least 200 steps in all."),
        (2, PRESET, "2 epochs will run."),
        (2, PRESET.with_enough_steps(40), "200 epochs will run: the images are few, and a student needs 200 steps."),
        (1, PRESET.with_enough_steps(40), "1 epoch will run, as you ask."),
    ],
)
def test_it_is_said_how_many_epochs_will_run_and_why(epochs, fitting, words):
    assert form.epochs_in_words(PRESET, epochs, fitting) == words
