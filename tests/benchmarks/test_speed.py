"""What is timed, how it is compared, and where it goes."""

import json
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from benchmarks import growth, reduced_precision, speed
from benchmarks.growth import measured, photograph
from benchmarks.published import published_step
from benchmarks.tables import growth as growth_table
from benchmarks.tables import reduced_precision as precision_table
from benchmarks.tables import speed as table
from kdad.errors import UserError
from kdad.networks.recipes import Recipe
from kdad.training import distillation, feature_cache, loop


def naps(device: str) -> speed.Prepared:
    baseline, ours = iter((9.0, 0.02, 0.02, 0.02)), iter((3.0, 0.008, 0.01, 0.016))  # the first warms up
    yield lambda: next(baseline), lambda: next(ours)


def test_seconds_are_those_that_work_takes():
    assert 0.02 <= speed.timed(lambda: time.sleep(0.02))() < 20


def test_a_row_says_how_many_times_as_fast_ours_is(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "ROWS", {"naps": speed.Row("long ones", "short ones", naps)})
    speed.main(["--rounds", "3", "--device", "cpu", "--results", str(tmp_path / "speed.json")])
    row = json.loads((tmp_path / "speed.json").read_text())["cpu"]["naps"]
    assert (row["lowest"], row["ratio"], row["highest"]) == pytest.approx((1.25, 2, 2.5), abs=0.01)
    assert (row["rounds"], row["baseline_seconds"], row["seconds"]) == (3, 0.02, 0.01)
    shown = table({"cpu": {"naps": row}})
    assert "| naps | long ones | short ones | 0.02 | 0.01 |" in shown
    assert "On a GPU: not measured." in shown


def test_what_a_row_starts_ends_with_it(monkeypatch):
    ended = []

    def started(device: str) -> speed.Prepared:
        yield speed.timed(lambda: None), speed.timed(lambda: None)
        ended.append(True)

    speed.measure(speed.Row("", "", started), rounds=1)
    assert ended


def test_a_row_that_is_not_there_is_one_line_that_lists_all(capsys):
    with pytest.raises(SystemExit):
        speed.main(["nonsense"])
    assert "unknown row 'nonsense'" in capsys.readouterr().err


class OneLayer(torch.nn.Module):
    """A network of one critical layer."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 2, 8, 8)

    def forward(self, pixels):
        return [self.conv(pixels)]


def test_a_published_step_trains_the_student_and_keeps_the_teachers_graph():
    student, teacher = OneLayer(), OneLayer()
    before = student.conv.weight.detach().clone()
    published_step(teacher, student, 0.01, "cpu")()
    assert (student.conv.weight != before).any()
    assert teacher.conv.weight.grad is not None


def test_our_step_trains_the_student_alone(vgg_teacher, monkeypatch):
    built = []
    build = speed.build_student
    monkeypatch.setattr(speed, "build_student", lambda architecture: built.append(build(architecture)) or built[-1])
    step = speed.our_step(vgg_teacher, "cpu")
    before = {name: tensor.clone() for name, tensor in built[0].state_dict().items()}
    step()
    assert any((tensor != before[name]).any() for name, tensor in built[0].state_dict().items())
    assert all(parameter.grad is None for parameter in vgg_teacher.network.parameters())


def test_a_whole_student_is_trained_and_asked_both_ways(vgg_teacher, monkeypatch):
    monkeypatch.setattr(speed, "NORMALS", 12)
    monkeypatch.setattr(speed, "TESTED", 2)
    student, teacher = OneLayer(), OneLayer()
    before = student.conv.weight.detach().clone()
    asked = []
    monkeypatch.setattr(speed, "evaluate", lambda task, detector: asked.append((task.test, detector.calibration)))
    row = speed.Row("", "", speed.whole_student(lambda: (teacher, student), lambda: vgg_teacher))
    measured = speed.measure(row, rounds=1)
    assert measured["rounds"] == 1 and measured["seconds"] > 0
    assert (student.conv.weight != before).any() and not student.training
    ((test, calibration),) = asked
    assert len(test.images) == 4 and calibration is not None


def test_photographs_are_trained_on_alone_and_beside_another_program(monkeypatch):
    seen = []

    def train_on(folder, *_):
        images = len(list(folder.rglob("*.jpg")))
        return speed.timed(lambda: seen.append((images, len(psutil.Process().children()) - before)))

    monkeypatch.setattr(speed, "FEW", 10)
    monkeypatch.setattr(speed, "TESTED", 1)
    monkeypatch.setattr(speed, "photograph", lambda width, height, seed: photograph(64, 64, seed))
    monkeypatch.setattr(speed, "_train_on", train_on)
    before = len(psutil.Process().children())
    speed.measure(speed.Row("", "", speed.beside_a_busy_program), rounds=1)
    assert seen == [(12, 0), (12, 1)]
    assert len(psutil.Process().children()) == before


def test_a_command_that_ends_otherwise_than_expected_is_no_measurement():
    ending = [sys.executable, "-c", "import sys; print('no such luck', file=sys.stderr); sys.exit(3)"]
    assert speed._running(ending, status=3)() > 0
    with pytest.raises(UserError, match="ended with 3: no such luck"):
        speed._running(ending)()


def test_a_command_that_is_watched_has_its_seconds_and_its_memory():
    hungry = "import time; held = bytearray(200 * 2**20); time.sleep(0.5)"
    taken = measured([sys.executable, "-c", hungry])
    assert 0.5 < taken["seconds"] < 20
    assert 200 <= taken["mib"] < 300
    with pytest.raises(UserError, match="no such thing"):
        measured([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_growth_is_merged_table_by_table_and_rendered(tmp_path, monkeypatch):
    def naps(work, counts):
        """Sleeping."""
        return {str(count): {"seconds": count / 10, "mib": 1000 * count} for count in counts}

    monkeypatch.setattr(growth, "TABLES", {"naps": (naps, (1, 2)), "others": (naps, (3,))})
    file = tmp_path / "growth.json"
    growth.main(["naps", "--results", str(file)])
    growth.main(["others", "--counts", "4", "--results", str(file)])
    shown = growth_table(json.loads(file.read_text()))
    assert "Sleeping.\n\n| naps | seconds | MiB at most |" in shown
    assert "| 2 | 0.2 | 2,000 |" in shown and "| 4 | 0.4 | 4,000 |" in shown


def test_each_way_of_computing_is_compared_with_float32(monkeypatch, tiny_task, vgg_teacher):
    """Chance decides what a handful of images give; that all ways ran, and as they say, is in who was asked."""
    asked = []
    monkeypatch.setattr(reduced_precision, "load_teacher", lambda *_, **__: vgg_teacher)
    train = reduced_precision.train_student

    def training(task, teacher, out, **options):
        asked.append((loop.half_precision("cpu"), distillation.cache_features is feature_cache.cache_features))
        return train(task, teacher, out, recipe=Recipe(epochs=1, batch_size=8), **options)

    monkeypatch.setattr(loop, "half_precision", lambda device: True)
    monkeypatch.setattr(reduced_precision, "train_student", training)
    row = reduced_precision.measure(tiny_task, "tiny", seeds=1)
    assert asked == [(False, True), (True, True), (True, False)]
    assert set(row["off_by"]) == {reduced_precision.REMEMBERED, reduced_precision.ASKED}
    assert "students of | float32 throughout |" in precision_table({"tiny": row})


def test_rows_of_other_teachers_stay_if_they_are_comparable(tmp_path, monkeypatch, tiny_task):
    named = {"dataset": tiny_task.dataset, "normal_class": tiny_task.normal_class}
    row = named | {"aurocs": {"float32 throughout": [90.0]}, "teacher_sha256": "abc"}
    others = {"other": row | {"normal_class": "another"}, "taught anew": row | {"teacher_sha256": "before"}}
    (file := tmp_path / "rows.json").write_text(json.dumps({"same": row, **others}))
    monkeypatch.setattr(reduced_precision, "half_precision", lambda _: True)
    monkeypatch.setattr(reduced_precision, "load_task", lambda *_: tiny_task)
    monkeypatch.setattr(reduced_precision, "load_teacher", lambda _: SimpleNamespace(sha256="abc"))
    monkeypatch.setattr(reduced_precision, "measure", lambda task, name, seeds: row)
    reduced_precision.main(["--teacher", "new", "--seeds", "1", "--results", str(file)])
    assert list(json.loads(file.read_text())) == ["same", "new"]
