"""The health of a folder: what is doubtful is named, and a healthy folder gets no advice."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from kdad.cli import main
from kdad.data.health import examine, in_words
from kdad.errors import UserError

GENERATOR = np.random.default_rng(0)


def bricks(level: float = 128.0, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    """A noisy image around a grey level."""
    coarse = GENERATOR.normal(level, 25, (6, 6, 3)).clip(0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR))


def save(file, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def folder(tmp_path):
    for index in range(20):
        save(tmp_path / "train" / "good" / f"{index:03}.png", bricks())
    return tmp_path


def test_what_there_is_is_counted_and_told(folder):
    for index in range(3):
        save(folder / "test" / "good" / f"{index}.png", bricks())
        save(folder / "test" / "crack" / f"{index}.png", bricks())
    save(folder / "ground_truth" / "crack" / "0_mask.png", np.full((96, 96), 255, np.uint8))
    health = examine(folder)
    assert (health.normals, health.tests, health.masks) == (20, {"crack": 3, "good": 3}, 1)
    assert health.sizes == ((96, 96),) * 3
    assert health.image_size == (256, 256) and not health.tile_size
    assert "normals: 20, 96 px, to be read whole, at 256 px" in in_words(health)
    assert not health.blank and not health.repeated and not health.odd
    assert [advice.split(" are few")[0] for advice in health.advice] == ["20 normals"]


def test_blank_repeated_and_odd_normals_are_named(folder):
    good = folder / "train" / "good"
    save(good / "blank.png", np.full((96, 96, 3), 120, np.uint8))
    copied = np.asarray(Image.open(good / "004.png"))
    save(good / "copy.png", np.where(np.indices(copied.shape).sum(0) % 7, copied, copied ^ 1))
    save(good / "dark.png", bricks(5))
    health = examine(folder)
    save(good / "green.png", np.full((96, 96, 3), (30, 160, 60), np.uint8))
    assert examine(folder).blank == ["blank.png", "green.png"]
    assert health.blank == ["blank.png"]
    assert health.repeated == [("copy.png", "004.png")]
    assert health.odd == ["dark.png"]
    said = " ".join(health.advice)
    for name in ("blank.png", "copy.png and 004.png", "dark.png"):
        assert name in said


def test_large_photographs_are_to_be_read_in_tiles(folder, monkeypatch):
    monkeypatch.setattr("kdad.data.sizes.TILED_ABOVE", 0.2)
    health = examine(folder)
    assert health.tile_size == 1024
    assert "in tiles of 1024 px" in in_words(health)[0]


def test_different_distances_are_told(folder):
    for index in range(4):
        save(folder / "train" / "good" / f"near{index}.png", bricks(size=(300, 300)))
    assert any("sizes differ" in advice for advice in examine(folder).advice)


def test_a_folder_that_cannot_be_trained_on_is_refused(tmp_path):
    save(tmp_path / "0.png", bricks())
    with pytest.raises(UserError, match="at least 10"):
        examine(tmp_path)


def test_the_command_tells_what_is_left_out(folder, capsys):
    (folder / "train" / "good" / "raw.cr2").touch()
    shutil.copy(folder / "train" / "good" / "000.png", folder / "train" / "good" / "copy.png")
    assert main(["check", str(folder)]) == 0
    said = capsys.readouterr().err
    assert "copies of others" in said and "raw.cr2" in said


def test_the_command_prints_lines_or_json(folder, monkeypatch, capsys):
    assert main(["check", str(folder)]) == 0
    assert "- 20 normals are few" in capsys.readouterr().out
    monkeypatch.setenv("HOME", str(folder.parent))
    assert main(["check", f"folder:~/{folder.name}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["normals"] == 20 and told["advice"]
    assert main(["check", str(folder / "nowhere")]) == 2
