"""Jobs that were started together: grouped, and on one chart."""

import json
from dataclasses import replace

import pytest

from kdad.jobs import manager, status
from kdad.storage.history import write_history
from kdad.storage.layout import EVALUATION
from ui.train import charts, comparison


@pytest.fixture
def make_job(tmp_path):
    def make(name: str, teacher: str, group: str):
        folder, student = tmp_path / ".jobs" / name, tmp_path / "patterns" / teacher / "dots"
        folder.mkdir(parents=True)
        student.mkdir(parents=True)
        request = {"arguments": ["train"], "student": str(student), "created": float(name), "group": group}
        (folder / status.REQUEST).write_text(json.dumps(request))
        (folder / status.TRACE).write_text("0.5,4.0\n1.0,2.0\n")
        status.write_status(folder, status.Status(state="stopped", epochs=2))
        rows = [{"epoch": 1, "split": "validation", "loss": 0.5, "auroc": 0.9}]
        write_history(student, rows)
        return manager.find(folder)

    return make


def test_only_what_was_started_together_is_a_group(make_job):
    jobs = [make_job("1", "vgg", "a"), make_job("2", "vit", "a"), make_job("3", "cnn", "b"), make_job("4", "timm", "")]
    assert comparison.groups(jobs) == [jobs[:2]]


def test_losses_are_shares_of_the_first_over_the_share_of_the_training(make_job):
    jobs = [make_job("1", "vgg", "a"), make_job("2", "vit", "a")]
    losses = comparison.losses_of(jobs)
    assert losses["teacher"].tolist() == ["vgg", "vgg", "vit", "vit"]
    assert losses["done"].tolist() == [0.25, 0.5] * 2
    assert losses["value"].tolist() == [1.0, 0.5] * 2
    aurocs = comparison.aurocs_of(jobs)
    assert aurocs[["done", "value"]].drop_duplicates().values.tolist() == [[0.5, 0.9]]
    spec = charts.together(losses, ["vgg", "vit"], "loss", ".0%").to_dict()
    assert spec["encoding"]["color"]["scale"]["domain"] == ["vgg", "vit"]


def test_the_arena_is_linked_once_all_students_are_tested(make_job, monkeypatch, tmp_path):
    jobs = [make_job(str(number), name, "a") for number, name in enumerate(("vgg", "vit", "cnn"), 1)]
    jobs = [replace(job, state=status.FINISHED) for job in jobs]
    monkeypatch.setenv("KDAD_STUDENTS", str(tmp_path))
    links = []
    monkeypatch.setattr(comparison.st, "page_link", lambda _, query_params, **__: links.append(query_params))
    for job in jobs:
        comparison.show(jobs)
        assert not links
        (job.student / EVALUATION).write_text("{}")
    comparison.show(jobs)
    keys = [f"patterns/{name}/dots" for name in ("vgg", "vit", "cnn")]
    assert links == [{"show": "Arena", "first": keys[0], "second": keys[1], "third": keys[2]}]
    comparison.show(jobs[:2])
    assert links[1]["third"] == ""  # nor one that was chosen before
