"""The attacks of `benchmarks/hardening.py`, each with fewer attempts than there."""

import sys

import pytest
import torch
from helpers.miniatures import ROOT, SMALL_KDAD

from benchmarks import browser
from benchmarks.attacks import concurrent_users, kills, malformed, tampered
from benchmarks.attacks.tally import Tally
from kdad.detection.detector import Detector
from kdad.errors import UserError
from kdad.storage import sealing, student_config
from kdad.storage.sealing import SEAL

BRICKS = ROOT / "trained_students" / "patterns-defects" / "vgg-cifar10" / "bricks"
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


def raising(error):
    def act():
        raise error

    return act


def test_a_tally_tells_refusals_from_what_is_broken():
    tally = Tally()
    for act in (lambda: True, lambda: False, raising(UserError("one line")), raising(UserError("two\nlines"))):
        tally.attempt("this", act)
    tally.attempt("that", raising(IndexError("3")))
    assert (tally.refused, tally.unharmed) == (1, 1)
    assert tally.broken == [
        "this: accepted, but wrong", "this: the message has several lines", "that: IndexError: 3",
    ]  # fmt: skip


def test_tampered_students_are_refused_or_score_as_before(tmp_path):
    for name, tally in tampered.attack(BRICKS, IMAGES, tmp_path, tries=24).items():
        assert tally.broken == [], name
        assert tally.refused > 18


def test_the_attack_notices_a_student_that_scores_otherwise(tmp_path, monkeypatch):
    def opened_unseen(values):
        return {name: value for name, value in values.items() if name != SEAL}

    monkeypatch.setattr(student_config, "opened", opened_unseen)
    monkeypatch.setattr(sealing, "opened", opened_unseen)
    assert any(tally.broken for tally in tampered.attack(BRICKS, IMAGES, tmp_path, tries=9).values())
    assert not list(tmp_path.iterdir())


def test_malformed_files_are_refused_or_are_images_after_all(tmp_path):
    detector = Detector.load(BRICKS, device="cpu")
    tallies = malformed.images(detector, tmp_path, tries=40)
    tallies |= {"zip": malformed.zips(tmp_path, tries=60), "parquet": malformed.parquets(tmp_path, tries=60)}
    for name, tally in tallies.items():
        assert tally.broken == [], name
        assert tally.refused > len(tally.seconds) / 5, name


@pytest.mark.slow
@pytest.mark.parametrize("attack", [kills.train, kills.background_job])
def test_a_killed_run_resumes_to_the_same_student(attack, tmp_path, monkeypatch, vgg_folder):
    small = tmp_path / "small.py"
    small.write_text(SMALL_KDAD)
    monkeypatch.setattr(kills, "KDAD", (sys.executable, str(small)))
    monkeypatch.setattr(kills, "ARGUMENTS", (
        "--dataset", "patterns-defects", "--normal-class", "dots", "--teacher", str(vgg_folder), "--device", "cpu",
    ))  # fmt: skip
    tally = attack(tmp_path, 1, epochs=4)
    assert (tally.unharmed, tally.broken) == (1, [])


@pytest.mark.slow
def test_among_many_users_everybody_sees_the_verdicts_of_own_images(tmp_path):
    if browser.CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    outcome = concurrent_users.attack(tmp_path, people=3, uploads=2)
    assert outcome.broken == []
    assert len(outcome.seconds) == 6
