"""What is timed, how it is compared, and where it goes."""

import json
import time

import pytest
import torch

from benchmarks import speed
from benchmarks.tables import speed as table


def slow() -> speed.Prepared:
    yield speed.timed(lambda: time.sleep(0.02)), speed.timed(lambda: time.sleep(0.01))


def test_a_row_says_how_many_times_as_fast_ours_is(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "ROWS", {"naps": speed.Row("long ones", "short ones", slow)})
    speed.main(["--rounds", "3", "--results", str(tmp_path / "speed.json")])
    row = json.loads((tmp_path / "speed.json").read_text())["naps"]
    assert 1.4 < row["lowest"] <= row["ratio"] <= row["highest"] < 2.6
    assert row["rounds"] == 3
    assert row["seconds"] < row["baseline_seconds"]
    assert "| naps | long ones | short ones | 0.02 | 0.01 |" in table(
        {"naps": row | {"baseline_seconds": 0.02, "seconds": 0.01}}
    )


def test_what_a_row_starts_ends_with_it(monkeypatch):
    ended = []

    def started() -> speed.Prepared:
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
    speed.published_step(teacher, student, 0.01)()
    assert (student.conv.weight != before).any()
    assert teacher.conv.weight.grad is not None


def test_our_step_trains_the_student_alone(vgg_teacher, monkeypatch):
    built = []
    build = speed.build_student
    monkeypatch.setattr(speed, "build_student", lambda architecture: built.append(build(architecture)) or built[-1])
    step = speed.our_step(vgg_teacher)
    before = {name: tensor.clone() for name, tensor in built[0].state_dict().items()}
    step()
    assert any((tensor != before[name]).any() for name, tensor in built[0].state_dict().items())
    assert all(parameter.grad is None for parameter in vgg_teacher.network.parameters())
