"""Scoring into parts: each image once, whatever ends a run, and where it went on."""

import os
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet
import pytest
from filelock import FileLock
from PIL import Image

from kdad.cli import main
from kdad.detection import bulk
from kdad.detection.detector import Detector


@pytest.fixture
def images(tmp_path):
    """Seven images of two sizes, one of them in a folder below, and one that cannot be read."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for index in range(7):
        side = 32 if index % 3 else 40
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save((folder / "below" if index == 6 else folder) / f"{index}.png")
    (folder / "broken.png").write_text("x")
    return folder


@pytest.fixture
def score(student_folder, vgg_folder, tmp_path, images, capsys):
    """A function that scores into parts; returns the status and what was said to whom."""

    def scored(*places, options=(), out="parts"):
        request = ["score", str(student_folder), *map(str, places or [images])]
        more = ["--teacher", str(vgg_folder), "--parquet", str(tmp_path / out), "--device", "cpu", *options]
        status = main([*request, *more])
        return status, capsys.readouterr()

    return scored


@pytest.fixture
def detector(student_folder, vgg_teacher):
    return Detector.load(student_folder, teacher=vgg_teacher, device="cpu")


def rows(folder) -> dict[str, dict]:
    """The rows of all parts, by image, none of which may have two."""
    table = [row for file in sorted(folder.glob("*.parquet")) for row in pyarrow.parquet.read_table(file).to_pylist()]
    assert len({row["image"] for row in table}) == len(table)
    return {row.pop("image"): row for row in table}


def test_every_image_has_one_row_with_what_predict_says(score, images, tmp_path, detector):
    status, said = score()
    assert status == 0
    assert said.out == f"7 judged now, 1 unreadable, 0 known before: {tmp_path / 'parts'}\n"
    assert "broken.png: not an image" in said.err
    found = rows(tmp_path / "parts")
    assert set(found) == {str(file) for file in images.rglob("*.png")}
    for image, row in found.items():
        about = Path(image).stat()
        assert (row.pop("size"), row.pop("modified_ns")) == (about.st_size, about.st_mtime_ns)
        if "broken" in image:
            assert row == {"score": None, "p_value": None, "is_anomaly": None, "error": f"{image}: not an image"}
        else:
            alone = detector.predict(image)
            assert row["score"] == pytest.approx(float(alone.score[0]), abs=1e-4)
            assert row["p_value"] == pytest.approx(float(alone.p_value[0]))
            assert (row["is_anomaly"], row["error"]) == (bool(alone.is_anomaly[0]), None)


def test_an_interrupted_run_goes_on_with_what_has_no_row(score, images, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk.remaining, "__defaults__", (3,))
    write, written = bulk._write, []

    def interrupted(file, *more):
        if written:
            raise KeyboardInterrupt
        written.append(file)
        write(file, *more)

    with monkeypatch.context() as patched:
        patched.setattr(bulk, "_write", interrupted)
        status, _ = score()
    assert status == 130
    before = rows(tmp_path / "parts")
    assert len(before) == 3
    Image.new("RGB", (32, 32)).save(images / "late.png")
    status, said = score()
    assert (status, said.out.split(":")[0]) == (0, "5 judged now, 1 unreadable, 3 known before")
    after = rows(tmp_path / "parts")
    assert len(after) == 9
    assert {image: after[image] for image in before} == before
    status, said = score()
    assert said.out.startswith("0 judged now, 0 unreadable, 9 known before")


def test_what_changed_is_judged_again_and_what_is_gone_has_no_row(score, images, tmp_path, detector):
    """A picture that was half copied, one that was replaced by another of its size, and one that was deleted."""
    score()
    before = rows(tmp_path / "parts")
    shutil.copy(images / "0.png", images / "broken.png")
    replaced, content = images / "1.png", (images / "2.png").read_bytes()
    replaced.write_bytes(content[:1000])
    (images / "3.png").unlink()
    status, said = score()
    assert (status, said.out.split(":")[0]) == (0, "1 judged now, 1 unreadable, 5 known before")
    assert said.err.startswith("2 files changed since and are judged again, 1 is gone\n")
    replaced.write_bytes(content)
    _, said = score()
    assert said.err.startswith("1 file changed since and is judged again\n")
    after = rows(tmp_path / "parts")
    assert set(after) == {str(file) for file in images.rglob("*.png")} == set(before) - {str(images / "3.png")}
    assert {row["error"] for row in after.values()} == {None}
    assert after[str(replaced)]["score"] == pytest.approx(float(detector.predict(images / "2.png").score[0]), abs=1e-4)
    untouched = [image for image in after if Path(image).name not in ("broken.png", "1.png")]
    assert len(untouched) == 5 and all(after[image] == before[image] for image in untouched)
    _, said = score()
    assert said.out.startswith("0 judged now, 0 unreadable, 7 known before")
    assert "changed" not in said.err and "gone" not in said.err


def test_a_file_that_only_became_newer_is_judged_again(score, images):
    score()
    os.utime(images / "0.png", ns=(0, 0))
    _, said = score()
    assert said.out.startswith("1 judged now, 0 unreadable, 7 known before")


def test_names_that_are_no_utf_8_have_rows_too(score, images, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(images) + b"/odd-\xff.png"))
    shutil.copy(images / "0.png", odd)
    assert score()[0] == 0
    written = rows(tmp_path / "parts")
    same = written[str(images / "0.png")]["score"]
    assert written[f"{images}/odd-\\xff.png"]["score"] == pytest.approx(same, abs=1e-5)
    assert "0 judged now, 0 unreadable, 9 known before" in score()[1].out


def test_rows_of_places_that_were_not_looked_into_are_kept(score, images, tmp_path):
    """They may be on a disk that is not there today; of named files, those beside them that are gone are dropped."""
    score()
    shutil.move(images / "below", tmp_path / "elsewhere")
    (images / "1.png").unlink()
    _, said = score(images / "0.png", images / "2.png")
    assert said.err.startswith("2 are gone\n")
    assert set(rows(tmp_path / "parts")) == {str(file) for file in images.rglob("*.png")}
    _, said = score(tmp_path / "elsewhere")
    assert "gone" not in said.err
    assert len(rows(tmp_path / "parts")) == 7


def test_a_part_without_rows_is_removed(score, images, tmp_path):
    score()
    for file in images.rglob("*.png"):
        if file.name != "0.png":
            file.unlink()
    Image.new("RGB", (32, 32)).save(images / "0.png")
    _, said = score()
    assert said.err.startswith("1 file changed since and is judged again, 7 are gone\n")
    (part,) = (tmp_path / "parts").glob("*.parquet")
    assert pyarrow.parquet.read_table(part).num_rows == 1


def test_rows_of_an_earlier_version_are_judged_again(score, tmp_path):
    score()
    (part,) = (tmp_path / "parts").glob("*.parquet")
    table = pyarrow.parquet.read_table(part)
    pyarrow.parquet.write_table(table.drop_columns(["size", "modified_ns"]), part)
    status, said = score()
    assert (status, said.out.split(":")[0]) == (0, "7 judged now, 1 unreadable, 0 known before")
    why = "8 files from an earlier version, which kept no time of change, are judged again\n"
    assert said.err.startswith(why)
    assert pyarrow.parquet.read_table(part).equals(table)


def test_what_could_not_be_fetched_is_tried_again(score, images, tmp_path, monkeypatch):
    found = bulk.find([str(images)])
    monkeypatch.setattr(bulk, "find", lambda _: found)
    images.rename(tmp_path / "offline")
    assert score()[1].out.startswith("0 judged now, 8 unreadable, 0 known before")
    (tmp_path / "offline").rename(images)
    assert score()[1].out.startswith("7 judged now, 1 unreadable, 0 known before")
    assert score()[1].out.startswith("0 judged now, 0 unreadable, 8 known before")


def test_relative_names_are_read_from_where_they_were_given(detector, images, tmp_path, monkeypatch):
    monkeypatch.chdir(images)
    listing, job = bulk.find(["."]), bulk.ScoringJob("", None, tmp_path / "parts", "", "", None, "cpu")
    monkeypatch.chdir("/")
    (part,) = bulk.remaining(listing, job).parts
    assert bulk.judge_part(detector, job, part).judged == 7
    assert {Path(name).name for name in rows(tmp_path / "parts")} == {file.name for file in images.rglob("*.png")}


def test_a_disk_that_fails_for_a_moment_leaves_no_row(score, monkeypatch):
    read = Path.read_bytes

    def fail(file):
        if file.name == "0.png":
            raise OSError(5, "Input/output error")
        return read(file)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fail)
        assert score()[1].out.startswith("6 judged now, 2 unreadable, 0 known before")
    assert score()[1].out.startswith("1 judged now, 0 unreadable, 7 known before")


def test_an_error_of_a_kind_that_only_a_store_knows_ends_no_run(score, images, monkeypatch):
    store = fsspec.filesystem("memory")
    store.put(str(images), "/hiccup", recursive=True)
    opened = fsspec.open

    def hiccup(place, *more):
        if place.endswith("/0.png"):
            raise LookupError("the server has gone")
        return opened(place, *more)

    monkeypatch.setattr(fsspec, "open", hiccup)
    status, said = score("memory://hiccup")
    assert (status, said.out.split(":")[0]) == (0, "6 judged now, 2 unreadable, 0 known before")
    assert "0.png: cannot be read (the server has gone)" in said.err
    monkeypatch.setattr(fsspec, "open", opened)
    assert score("memory://hiccup")[1].out.startswith("1 judged now, 0 unreadable, 7 known before")
    store.rm("/hiccup", recursive=True)


def test_objects_of_a_store_are_judged_again_once_they_are_replaced(score, images, tmp_path):
    store = fsspec.filesystem("memory")
    store.put(str(images), "/bucket", recursive=True)
    assert score("memory://bucket")[0] == 0
    assert score("memory://bucket")[1].out.startswith("0 judged now, 0 unreadable, 8 known before")
    store.pipe("/bucket/broken.png", (images / "0.png").read_bytes())
    store.rm("/bucket/1.png")
    _, said = score("memory://bucket")
    assert said.out.startswith("1 judged now, 0 unreadable, 6 known before")
    assert said.err.startswith("1 file changed since and is judged again, 1 is gone\n")
    store.rm("/bucket", recursive=True)
    found = rows(tmp_path / "parts")
    assert len(found) == 7 and {row["error"] for row in found.values()} == {None}


def test_images_are_read_through_fsspec(score, images, tmp_path):
    assert score(f"file://{images}", out="urls")[0] == score(out="paths")[0] == 0
    by_url, by_path = rows(tmp_path / "urls"), rows(tmp_path / "paths")
    assert {image.removeprefix("file://"): row["score"] for image, row in by_url.items()} == {
        image: row["score"] for image, row in by_path.items()
    }


def test_scores_of_another_rate_or_student_are_not_mixed(score):
    score()
    status, said = score(options=["--fpr", "0.2"])
    assert status == 2
    assert "was not made with this student and --fpr; use another folder for --parquet" in said.err


def test_a_damaged_part_is_named(score, tmp_path):
    score()
    (part,) = (tmp_path / "parts").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:100])
    status, said = score()
    assert status == 2
    assert f"{part} is damaged" in said.err
    part.unlink()
    assert score()[0] == 0


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nothing://bucket/x", "cannot be accessed (Protocol not known: nothing"),
        ("memory://nobody/there", "no image found; the known suffixes are"),
        ("/no/such/folder", "no such file or directory"),
    ],
)
def test_a_place_without_images_is_named(score, place, words):
    status, said = score(place)
    assert status == 2
    assert words in said.err
    assert said.err.count("\n") == 1


def test_two_runs_do_not_write_to_one_folder(score, tmp_path):
    (tmp_path / "parts").mkdir()
    with FileLock(tmp_path / "parts" / ".lock"):
        status, said = score()
    assert (status, said.err) == (
        2, f"kdad: another run writes to {tmp_path / 'parts'}; wait for it, or use another folder\n",
    )  # fmt: skip


@pytest.mark.parametrize("options", [["--heatmaps", "x"], ["--csv", "x"], ["--json"]])
def test_other_outputs_do_not_go_with_parts(score, options):
    assert score(options=options)[0] == 2


def test_an_engine_is_for_parts_alone(student_folder, images, capsys):
    assert main(["score", str(student_folder), str(images), "--engine", "ray"]) == 2
    assert "give --parquet DIR as well" in capsys.readouterr().err
