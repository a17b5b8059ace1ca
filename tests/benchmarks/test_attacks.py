"""The attacks of `benchmarks/hardening.py`, each with fewer attempts than there."""

import torch
from helpers.miniatures import ROOT

from benchmarks.attacks import tampered
from benchmarks.attacks.tally import Tally
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
        "this: taken for good, and wrong", "this: a message of several lines", "that: IndexError: 3",
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
