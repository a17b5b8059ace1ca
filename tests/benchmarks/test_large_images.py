"""Small defects in large images, from the making of a folder to rows of the table."""

import json
from functools import partial

import pytest

from benchmarks import large_images
from kdad.networks.recipes import Recipe


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(large_images, "SIDE", 160)
    monkeypatch.setattr("kdad.data.folders.TRAINING_TILES", 20)
    monkeypatch.setattr(large_images, "COUNTS", {"train/good": 10, "test/good": 2, "test/spot": 2})
    quick = partial(large_images.train_student, recipe=Recipe(epochs=1, batch_size=8))
    monkeypatch.setattr(large_images, "train_student", quick)


@pytest.mark.slow
def test_whole_images_and_tiles_have_a_row_each(tmp_path, vgg_folder):
    file = tmp_path / "large_images.json"
    large_images.main(["--teacher", str(vgg_folder), "--results", str(file)])
    measured = json.loads(file.read_text())
    whole, tiles = measured["rows"]
    assert (whole["tile"], tiles["tile"]) == (0, large_images.TILE)
    other = whole | {"teacher": "another"}
    file.write_text(json.dumps(measured | {"rows": [other, whole, tiles]}))
    large_images.main(["--teacher", str(vgg_folder), "--results", str(file)])
    assert [row["teacher"] for row in json.loads(file.read_text())["rows"]] == ["another", *[whole["teacher"]] * 2]
    assert all(0 <= row[name] <= 1 for row in (whole, tiles) for name in ("auroc", "pixel_auroc", "pro", "pixel_ap"))


def test_an_unknown_teacher_is_one_line_and_writes_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        large_images.main(["--teacher", "no-such", "--results", str(tmp_path / "x.json")])
    assert "no-such" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("*.json"))
