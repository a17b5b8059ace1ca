"""The attacks of `benchmarks/hardening.py`, each with fewer attempts than there."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.miniatures import ROOT

from benchmarks import browser
from benchmarks.attacks import concurrent_users, kills, malformed, tampered
from benchmarks.attacks.tally import Tally
from kdad.detection.detector import Detector
from kdad.errors import UserError
from kdad.storage import sealing, student_config
from kdad.storage.sealing import SEAL

pytestmark = pytest.mark.slow

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
    tallies = malformed.images(detector, tmp_path, tries=20)
    tallies |= {"zip": malformed.zips(tmp_path, tries=30), "parquet": malformed.parquets(tmp_path, tries=30)}
    for name, tally in tallies.items():
        assert tally.broken == [], name
        assert tally.refused > len(tally.seconds) / 5, name


# It reports as `kdad train` does, and needs no torch: real runs are killed in `tests/training` and `tests/jobs`.
STAND_IN = """
import sys, time
from contextlib import nullcontext
from pathlib import Path
from kdad.files import write_json
from kdad.jobs.reporting import reporting
from kdad.storage.sealing import sealed

def after(option):
    return Path(sys.argv[sys.argv.index(option) + 1])

with reporting(after("--job")) if "--job" in sys.argv else nullcontext():
    file = after("--out") / "student" / "evaluation.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    {beginning}
    time.sleep(0.5)
    write_json(file, sealed({{"auroc": 0.5}}))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function that makes the attacks kill a program that begins with this line."""

    def replace_kdad(beginning: str) -> None:
        program = tmp_path / "stand_in.py"
        program.write_text(STAND_IN.format(beginning=beginning))
        monkeypatch.setattr(kills, "KDAD", (sys.executable, str(program)))

    return replace_kdad


@pytest.mark.parametrize("attack", [kills.train, kills.background_job])
def test_a_program_that_is_killed_is_started_again_and_ends_alike(attack, tmp_path, stand_in):
    stand_in("pass")
    tally = attack(tmp_path, 2)
    assert (tally.unharmed, tally.broken) == (2, [])


@pytest.mark.parametrize("attack", [kills.train, kills.background_job])
def test_the_attack_notices_a_file_that_is_half_written(attack, tmp_path, monkeypatch, stand_in):
    stand_in("file.write_text('{'); time.sleep(60)")
    monkeypatch.setattr(kills, "_unbroken", lambda *_: ({}, 3.0))
    assert attack(tmp_path, 1).broken


def test_among_many_users_everybody_sees_the_verdicts_of_own_images(tmp_path):
    if browser.CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with ThreadPoolExecutor(1) as aside:  # where no other test's browser has an event loop
        outcome = aside.submit(concurrent_users.attack, tmp_path, people=2, uploads=2).result()
    assert outcome.broken == []
    assert len(outcome.seconds) == 4
