"""A running `kdad serve`, asked by several at once."""

import pytest

from benchmarks import serving
from kdad.cli import main


@pytest.mark.slow
def test_every_request_is_answered_with_the_score_of_its_image(student_folder, vgg_folder, tmp_path):
    row = serving.measured([student_folder], requests=30, clients=6)
    assert row["statuses"] == {"200": 30}
    assert row["wrong"] == 0
    assert 0 < row["p50"] <= row["p95"]


def test_a_second_student_of_the_same_name_is_refused(student_folder, capsys):
    assert main(["serve", str(student_folder), str(student_folder), "--port", str(serving.free_port())]) == 2
    said = capsys.readouterr().err
    assert said.endswith("serve one of them\n")
    assert said.count("\n") == 1
