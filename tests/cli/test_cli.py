"""Every command in-process, and every mistake a user can make: status 2, one line, nothing written."""

import csv
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.miniatures import TinyTask, reseal
from PIL import Image

from kdad.cli import main
from kdad.data.decoding import read_image
from kdad.detection.detector import Detector
from kdad.storage import layout
from kdad.storage import student_folder as store


@pytest.fixture
def folder(tmp_path, student_folder):
    """A copy of the finished student, free to be written to."""
    return shutil.copytree(student_folder, tmp_path / "student")


@pytest.fixture
def tiny_patterns(monkeypatch):
    """Every task is the tiny one."""
    # In this order: importing the sweep after the other is replaced would keep the replacement for good.
    for place in ("kdad.training.sweep.load_task", "kdad.data.loading.load_task"):
        monkeypatch.setattr(place, lambda _, normal_class, *sizes: TinyTask(normal_class))


@pytest.fixture
def image(tmp_path):
    """One PNG file, and its name as an argument."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def contents(folder) -> dict:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def rejected(tmp_path, monkeypatch, capfd):
    """Run a command that must be refused; returns the one line it says."""

    def run(*arguments) -> str:
        monkeypatch.chdir(tmp_path)
        before, _ = contents(tmp_path), capfd.readouterr()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            status = main([str(argument) for argument in arguments])
        output = capfd.readouterr()
        assert status == 2
        assert output.out == ""
        assert re.fullmatch(r"kdad: [^\n]+\n", output.err)
        assert not warned
        assert contents(tmp_path) == before
        return output.err

    return run


def train_arguments(teacher, out, *more):
    request = ["train", "--dataset", "patterns", "--normal-class", "dots", "--teacher", teacher, "--epochs", "1"]
    return [str(part) for part in [*request, "--batch-size", "8", "--device", "cpu", "--out", out, *more]]


def test_train_leaves_a_complete_evaluated_student_and_says_where(tmp_path, capsys, tiny_patterns, vgg_folder):
    assert main(train_arguments(vgg_folder, tmp_path)) == 0
    folder = tmp_path / "patterns" / vgg_folder.name / "dots"
    figures = store.load_evaluation(folder)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"patterns/dots: auroc {figures['auroc']:.4f}, auroc_mkd {figures['auroc_mkd']:.4f} on test "
        f"(20 normal, 20 anomalous; seed 0; teacher tiny-vgg, label overlap: none)",
        f"student folder: {folder}",
    ]
    not_of_all = {layout.PIXEL_CURVES, layout.SENSITIVITY, layout.OPERATING_POINT}
    assert {file.name for file in folder.iterdir()} == {*layout.SHARED_FILES, layout.LOCAL} - not_of_all


def test_train_into_a_complete_folder_is_refused_without_overwrite(tmp_path, tiny_patterns, vgg_folder, rejected):
    assert main(train_arguments(vgg_folder, tmp_path)) == 0
    assert "--overwrite" in rejected(*train_arguments(vgg_folder, tmp_path))
    assert main(train_arguments(vgg_folder, tmp_path, "--overwrite")) == 0


def test_a_folder_is_found_wanting_before_the_teacher_is_loaded(tmp_path, monkeypatch, rejected):
    told = threading.Event()
    monkeypatch.setattr("kdad.networks.teachers.loading.load_teacher", lambda *_, **__: told.wait())
    (tmp_path / "empty").mkdir()
    assert "0 readable images" in rejected("train", "--dataset", "folder:empty")
    told.set()


def test_nan_ends_with_status_1_and_one_line_below_the_bar(tmp_path, capsys, tiny_patterns, vgg_folder):
    assert main(train_arguments(vgg_folder, tmp_path, "--learning-rate", "1e30")) == 1
    assert re.fullmatch(r"kdad: the loss became NaN or infinite in .*", capsys.readouterr().err.splitlines()[-1])
    assert not store.find_students(tmp_path)


def test_a_full_disk_ends_with_status_1_and_one_line(monkeypatch, capsys, folder, image, tmp_path):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["score", str(folder), image, "--csv", str(tmp_path / "scores.csv"), "--device", "cpu"]) == 1
    assert capsys.readouterr().err == "kdad: [Errno 28] No space left on device\n"
    assert not list(tmp_path.glob("scores*"))


def test_evaluate_prints_one_object_as_it_is_saved(capsys, tiny_patterns, folder):
    assert main(["evaluate", str(folder), "--json", "--device", "cpu"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures.items() < store.load_evaluation(folder).items()
    assert list(figures)[:2] == ["auroc", "auroc_mkd"]


def test_evaluate_in_words_gives_the_provenance_and_warns_of_few_images(capsys, tiny_patterns, folder):
    assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    for stated in ("patterns/dots: auroc 0.", "on test", "seed 0", "tiny-vgg", "label overlap: none"):
        assert stated in printed.out
    assert printed.err.startswith("warning: only 20 calibration images")


def test_score_agrees_with_python(capsys, folder, image):
    assert main(["score", str(folder), image, "--json", "--device", "cpu"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    prediction = Detector.load(folder, device="cpu").predict([Image.open(image)])
    assert row == {
        "image": image,
        "score": float(prediction.score[0]),
        "p_value": float(prediction.p_value[0]),
        "is_anomaly": bool(prediction.is_anomaly[0]),
    }


def test_score_in_words_has_a_line_per_image(capsys, folder, image):
    assert main(["score", str(folder), image, image, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(r" ?-?\d+\.\d{6}  p \d\.\d{4}  (anomaly|normal )  .*image\.png", line) for line in lines)


def test_score_of_an_uncalibrated_student_says_so(capsys, folder, image):
    (folder / layout.CALIBRATION).unlink()
    assert main(["score", str(folder), image, "--device", "cpu"]) == 0
    assert "uncalibrated" in capsys.readouterr().out
    assert main(["score", str(folder), image, "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["p_value"] is None


def test_score_writes_csv_and_heatmaps_of_the_images_size(tmp_path, capsys, folder, image):
    arguments = ["--csv", str(tmp_path / "scores.csv"), "--heatmaps", str(tmp_path / "maps"), "--device", "cpu"]
    assert main(["score", str(folder), image, *arguments]) == 0
    assert capsys.readouterr().out == ""
    with open(tmp_path / "scores.csv", newline="") as lines:
        (row,) = csv.DictReader(lines)
    assert list(row) == ["image", "score", "p_value", "is_anomaly", "heatmap"]
    assert float(row["score"]) == pytest.approx(float(Detector.load(folder).predict([Image.open(image)]).score[0]))
    (heatmap,) = (tmp_path / "maps").iterdir()
    assert row["heatmap"] == str(heatmap)
    assert Image.open(heatmap).size == (36, 24)


@pytest.mark.parametrize("name", ["scores.csv", "scores.CSV", "scores.tsv", "scores.txt", "scores"])
def test_scores_replace_older_scores_and_nothing_else(tmp_path, monkeypatch, folder, image, name):
    """Also those that a spreadsheet has saved since; a photograph without an ending is no table."""
    monkeypatch.chdir(tmp_path)
    request = ["score", str(folder), image, "--csv", name, "--device", "cpu"]
    assert main(request) == 0
    written = (tmp_path / name).read_bytes()
    assert written.startswith(b"image\tscore" if name.endswith(".tsv") else b"image,score")
    for older in (written, b"", b'\xef\xbb\xbf"image";"score"\n'):
        (tmp_path / name).write_bytes(older)
        assert main(request) == 0
        assert (tmp_path / name).read_bytes() == written
    for other in (b"image,label\n", Path(image).read_bytes()):
        (tmp_path / name).write_bytes(other)
        assert main(request) == 2
        assert (tmp_path / name).read_bytes() == other


def test_a_name_is_no_formula_in_the_csv(tmp_path, monkeypatch, folder, image):
    monkeypatch.chdir(tmp_path)
    shutil.copy(image, "=1+1.png")
    assert main(["score", str(folder), "=1+1.png", "--csv", "scores.csv", "--device", "cpu"]) == 0
    assert Path("scores.csv").read_text().splitlines()[1].startswith("'=1+1.png,")


def test_heatmaps_that_a_link_would_make_images_are_refused(tmp_path, rejected, folder, image):
    (tmp_path / "photos").mkdir()
    (tmp_path / "maps").mkdir()
    shutil.copy(image, tmp_path / "maps")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "maps")
    assert "would lie among the images" in rejected("score", folder, "photos", "--heatmaps", "maps")


def test_a_lower_rate_makes_fewer_anomalies(capsys, folder, tmp_path, tiny_task):
    for i, pixels in enumerate(tiny_task.test.images[10:30]):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{i:02d}.png")
    images = sorted(map(str, tmp_path.glob("*.png")))
    counts = []
    for fpr in ("0.05", "0.5", "0.9"):
        assert main(["score", str(folder), *images, "--fpr", fpr, "--json", "--device", "cpu"]) == 0
        counts.append(sum(row["is_anomaly"] for row in json.loads(capsys.readouterr().out)))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def odd_images(folder) -> list[str]:
    """One file of every mode and size that people come up with."""
    folder.mkdir()
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    deep = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (20, 30), np.uint16))
    colours.convert("CMYK").save(folder / "cmyk.jpg")
    deep.save(folder / "16-bit.png")
    colours.quantize(8).save(folder / "palette.png")
    colours.convert("RGBA").save(folder / "rgba.png")
    colours.convert("LA").save(folder / "la.png")
    colours.convert("1").save(folder / "bilevel.png")
    colours.save(folder / "still.gif")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    colours.save(folder / "rotated.jpg", exif=rotated)
    colours.crop((0, 0, 1, 1)).save(folder / "1x1.png")
    colours.resize((1500, 3)).save(folder / "long.webp")
    return sorted(file.name for file in folder.iterdir())


def test_odd_images_are_scored(tmp_path, capsys, folder):
    names = odd_images(tmp_path / "odd")
    assert main(["score", str(folder), str(tmp_path / "odd"), "--json", "--device", "cpu"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [Path(row["image"]).name for row in rows] == names
    detector = Detector.load(folder, device="cpu")
    for row in rows:
        alone = detector.predict(read_image(row["image"])[None])
        assert row["score"] == pytest.approx(float(alone.score[0]), abs=1e-4)


def test_an_unreadable_file_in_a_directory_is_reported_and_skipped(tmp_path, capsys, folder, image):
    (tmp_path / "many").mkdir()
    shutil.copy(image, tmp_path / "many" / "good.png")
    (tmp_path / "many" / "bad.png").write_bytes(b"no image")
    (tmp_path / "many" / "notes.txt").write_text("not asked for")
    assert main(["score", str(folder), str(tmp_path / "many"), "--json", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert [Path(row["image"]).name for row in json.loads(printed.out)] == ["good.png"]
    skipped, warned = printed.err.splitlines()
    assert "bad.png" in skipped
    assert warned.startswith("warning: only 20 calibration images")


def test_names_that_other_systems_write_or_that_are_long_end_no_run(tmp_path, capsys, folder, image):
    (tmp_path / "many").mkdir()
    for name in (b"caf\xe9.png", b"x" * 245 + b".png", "é".encode() * 120 + b".png"):
        shutil.copy(image, os.path.join(os.fsencode(tmp_path / "many"), name))  # noqa: PTH118
    arguments = ["score", str(folder), str(tmp_path / "many"), "--heatmaps", str(tmp_path / "maps"), "--device", "cpu"]
    assert main([*arguments, "--csv", str(tmp_path / "scores.csv")]) == 0
    rows = (tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 4 and any("caf\\xe9.png" in row for row in rows)
    assert len(list((tmp_path / "maps").iterdir())) == 3
    capsys.readouterr()
    assert main(arguments) == 0
    capsys.readouterr().out.encode("utf-8")


def test_what_was_judged_before_something_went_wrong_is_kept(tmp_path, capsys, folder, image, monkeypatch):
    """The disk is full when the heatmap of the second size is written."""
    from kdad.detection import image_files

    (tmp_path / "many").mkdir()
    for index, side in enumerate((16, 24)):
        Image.open(image).resize((side, side)).save(tmp_path / "many" / f"{index}.png")
    usual = image_files.save_png

    def save(file, pixels):
        if len(pixels) == 24:
            raise OSError(28, "No space left on device")
        usual(file, pixels)

    monkeypatch.setattr(image_files, "save_png", save)
    arguments = ["score", str(folder), str(tmp_path / "many"), "--heatmaps", str(tmp_path / "maps"), "--device", "cpu"]
    assert main([*arguments, "--csv", str(tmp_path / "scores.csv")]) == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 2
    assert main([*arguments, "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_sweep_prints_a_table_or_json(tmp_path, monkeypatch, capsys, tiny_patterns, vgg_folder):
    monkeypatch.setattr("kdad.training.sweep.class_names", lambda _: ("dots", "rings"))
    arguments = [*train_arguments(vgg_folder, tmp_path)[1:], "--normal-class", "all"]
    assert main(["sweep", *arguments]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^\| rings( \| \d+\.\d\d){3} \|$", table, re.MULTILINE)
    assert main(["sweep", *arguments, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["classes"]) == ["dots", "rings"]


def test_sweep_merges_its_figures_into_a_results_file(tmp_path, monkeypatch, capsys, tiny_patterns, vgg_folder, entry):
    from kdad.evaluation.results_file import load_results, merge_entry

    monkeypatch.setattr("kdad.training.sweep.class_names", lambda _: ("dots", "rings"))
    file = tmp_path / "results" / "results.json"
    merge_entry(file, entry())
    arguments = [*train_arguments(vgg_folder, tmp_path)[1:], "--normal-class", "all", "--results", str(file), "--json"]
    assert main(["sweep", *arguments]) == 0
    printed, entries = json.loads(capsys.readouterr().out), load_results(file)
    assert len(entries) == 2
    assert entries["patterns/tiny-vgg"] == printed


@pytest.mark.parametrize(
    ("options", "figures"),
    [
        ([], r"validation accuracy 0\.\d{4}, test accuracy 0\.\d{4}"),
        (["--distil-from", "lite0-imagenet"], r"validation agreement [01]\.\d{4}"),
    ],
)
def test_pretrain_prints_figures_and_leaves_a_teacher(tmp_path, monkeypatch, capsys, options, figures):
    from kdad.data import sources
    from kdad.training.pretraining import pretrain

    class Few(sources.PatternsSource):
        per_class = {"train": 6, "test": 2}

        def images(self, part, indices):
            return torch.zeros(len(indices), 3, 32, 32, dtype=torch.uint8)

    monkeypatch.setattr(pretrain, "load_source", lambda _: Few())
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "cache"))
    request = ["pretrain", "--backbone", "vgg", "--dataset", "patterns", "--epochs", "1", "--device", "cpu", *options]
    assert main([*request, "--out", str(tmp_path / "teacher")]) == 0
    said = capsys.readouterr().out
    assert re.match(rf"vgg on patterns: {figures}\n", said)
    assert (tmp_path / "teacher" / "model.safetensors").is_file()


def test_list_of_an_empty_folder_says_how_to_make_a_student(tmp_path, capsys):
    assert main(["list", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "vgg16-imagenet" in printed
    assert "`python -m kdad train` makes one" in printed


def test_list_shows_figures_and_provenance(capsys, tiny_patterns, folder):
    assert main(["list", "--out", str(folder.parent)]) == 0
    assert "not evaluated" in capsys.readouterr().out
    assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["list", "--out", str(folder.parent)]) == 0
    assert re.search(r"student  test AUROC 0\.\d{4}  \(label overlap: none; seed 0\)", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "the following arguments are required"),
        ("dance", "invalid choice: 'dance'"),
        ("train --dataset patterns", "--teacher is needed; there are: vgg-cifar10, "),
        ("train --dataset patterns --teacher TEACHER", "--normal-class is needed; patterns has: stripes, "),
        ("train --dataset folder:/nowhere --teacher TEACHER", "/nowhere: no such folder"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --tile-size 9", "tiles are for folders"),
        ("train --dataset folder:/nowhere --teacher TEACHER --tile-size -1", "whole number of at least 0"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --image-size 64", "reads images at 32 px"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --image-size 0", "not '0'"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --layers a b", "are for lite0-imagenet and"),
        (
            "train --dataset patterns --teacher lite0-imagenet --normal-class dots --image-size 100",
            "multiples of 32, not 100",
        ),
        (
            "train --dataset patterns --teacher lite0-imagenet --normal-class dots --layers a",
            "its layers are: blocks.0,",
        ),
        ("train --dataset patterns --teacher timm:resnt18 --normal-class dots", "near ones: resnet18"),
        ("train --dataset imagenet --teacher TEACHER --normal-class cat", "unknown data set 'imagenet'"),
        ("train --dataset cifar10 --teacher TEACHER --normal-class unicorn", "unknown class of cifar10 'unicorn'"),
        ("train --dataset patterns --teacher TEACHER --normal-class cat", "unknown class of patterns 'cat'"),
        ("train --dataset patterns --teacher nobody --normal-class dots", "unknown teacher 'nobody'"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --device abacus", "unknown device 'abacus'"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --epochs -3", "not '-3'"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --epochs 0", "not '0'"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --epochs 1.5", "not '1.5'"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --batch-size 0", "not '0'"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --seed -1", "not '-1'"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --seed 99999999999999999999", "seed"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --learning-rate -1", "learning rate"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --learning-rate nan", "learning rate"),
        ("train --dataset patterns --teacher TEACHER --normal-class dots --logger mlflow", "invalid choice: 'mlflow'"),
        ("train --dataset cifar10 --teacher TEACHER --normal-class cat", "put it at $KDAD_DATA/cifar10/"),
        ("sweep --dataset patterns --teacher TEACHER --normal-class all --seeds 0", "not '0'"),
        ("sweep --dataset patterns --teacher TEACHER --normal-class dots --results r.json", "--normal-class all"),
        ("sweep --dataset patterns --teacher TEACHER --normal-class all --results IMAGE", "image.png is left alone"),
        ("sweep --dataset patterns --teacher TEACHER --normal-class all --results EMPTY", "is a folder"),
        (
            "sweep --dataset patterns --teacher TEACHER --normal-class all --results STUDENT/config.json",
            "no results file",
        ),
        ("sweep --dataset patterns --teacher TEACHER --normal-class tartan", "unknown class of patterns 'tartan'"),
        ("evaluate STUDENT --dataset imagenet", "unknown data set 'imagenet'"),
        ("evaluate STUDENT --dataset mnist", "unknown class of mnist 'dots'"),
        ("evaluate STUDENT --device abacus", "unknown device 'abacus'"),
        ("evaluate nowhere", "no such student folder"),
        ("evaluate TEACHER", "damaged or not a student's"),
        ("score EMPTY IMAGE", "is no student folder"),
        ("score nobody/nothing IMAGE", "no student of that name could be fetched"),
        ("score STUDENT IMAGE --fpr 0", "false-positive rate"),
        ("score STUDENT IMAGE --fpr nan --heatmaps maps", "false-positive rate"),
        ("score STUDENT IMAGE --json --csv scores.csv", "not allowed with argument"),
        ("score STUDENT IMAGE --device abacus", "unknown device 'abacus'"),
        ("score STUDENT EMPTY", "no image found"),
        ("pretrain --backbone vgg --dataset patterns --out new --from nobody", "teacher 'nobody' is missing"),
        ("pretrain --backbone vgg --dataset patterns --out new --distil-from nobody", "unknown teacher 'nobody'"),
        ("pretrain --backbone resnet --dataset patterns --out new", "invalid choice: 'resnet'"),
        ("pretrain --backbone vgg --dataset cifar10 --out new", "put it at $KDAD_DATA/cifar10/"),
        ("import-cloner nowhere.pth --normal-class cat", "nowhere.pth"),
        ("import-cloner IMAGE --normal-class cat", "image.png"),
        ("pull nobody/nothing", "no student of that name could be fetched"),
        ("push EMPTY nobody/nothing", "is no student folder"),
        ("train --dataset patterns-defects --teacher TEACHER --normal-class dots --out IMAGE", "image.png is a file"),
        ("train --dataset EMPTY --teacher TEACHER", "images of your own are folder:"),
        ("train --dataset nothing --teacher TEACHER", "unknown data set 'nothing'"),
        ("train --dataset folder: --teacher TEACHER", "needs a path"),
        ("score STUDENT IMAGE --csv EMPTY", "is a folder; name a file in it"),
        ("score STUDENT --csv IMAGE IMAGE", "image.png is left alone: the name of this output must end with .csv"),
        ("score STUDENT IMAGE --csv TEACHER/model.safetensors", "must end with .csv"),
        ("score STUDENT IMAGE --csv STUDENT/history.csv", "holds something other than scores, and is kept"),
        ("score STUDENT IMAGE --csv nowhere/scores.csv", "nowhere: no such folder; create it first"),
        ("score STUDENT IMAGE --csv /dev/null", "/dev/null is no regular file"),
        ("score STUDENT IMAGE --heatmaps IMAGE", "image.png is a file; name a folder"),
        ("score STUDENT IMAGE --heatmaps .", "would lie among the images of"),
        ("score STUDENT . --heatmaps .", "would lie among the images of ."),
        ("score STUDENT . --heatmaps new/maps", "would lie among the images of ."),
        ("score STUDENT IMAGE --parquet IMAGE", "image.png is a file; name a folder"),
        ("export STUDENT IMAGE", "image.png is left alone: the name of this output must end with .onnx"),
        ("export STUDENT TEACHER/model.safetensors", "must end with .onnx"),
        ("export STUDENT nowhere/student.onnx", "nowhere: no such folder"),
        ("score STUDENT IMAGE --method lime --heatmaps maps", "unknown localisation method 'lime'"),
        ("score STUDENT IMAGE --method attention-rollout --heatmaps maps", "attention-rollout is for ViT"),
        ("score STUDENT IMAGE --method gradients", "give --heatmaps DIR as well"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, rejected, folder, vgg_folder, image, arguments, said):
    (tmp_path / "empty").mkdir()
    places = {"TEACHER": vgg_folder, "STUDENT": folder, "IMAGE": image, "EMPTY": tmp_path / "empty"}
    parts = (part.partition("/") for part in arguments.split())
    assert said in rejected(*(f"{places.get(first, first)}{slash}{rest}" for first, slash, rest in parts))


def empty(file):
    file.write_bytes(b"")


def truncated(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def tampered(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def no_such_file(file):
    file.unlink()


@pytest.mark.parametrize("damage", [empty, truncated, tampered, no_such_file])
def test_damaged_weights_are_one_line(rejected, folder, image, damage):
    damage(folder / layout.WEIGHTS)
    assert layout.WEIGHTS in rejected("score", folder, image)
    assert layout.WEIGHTS in rejected("evaluate", folder)


@pytest.mark.parametrize("damage", [empty, truncated])
@pytest.mark.parametrize("name", [layout.CONFIG, layout.CALIBRATION])
def test_other_damaged_files_are_one_line(rejected, folder, image, name, damage):
    damage(folder / name)
    assert name in rejected("score", folder, image)


def test_a_missing_teacher_is_one_line(rejected, folder, image, vgg_folder):
    store.save_local(folder, "patterns", "/nowhere/teacher")
    assert "/nowhere/teacher" in rejected("score", folder, image)
    (folder / layout.LOCAL).unlink()
    assert "say where with --teacher" in rejected("score", folder, image)
    assert main(["score", str(folder), str(image), "--teacher", str(vgg_folder), "--device", "cpu"]) == 0


def test_a_teacher_of_another_hash_is_one_line(rejected, folder, image):
    reseal(folder / layout.CONFIG, teacher_sha256="0" * 64)
    assert "SHA-256" in rejected("score", folder, image)


def bomb(file):
    Image.new("1", (20_000, 20_000)).save(file)


def smaller_bomb(file):
    Image.new("1", (10_000, 10_000)).save(file)


def text(file):
    file.write_text("I am no image")


@pytest.mark.parametrize("damage", [empty, truncated, text, no_such_file, bomb, smaller_bomb])
def test_what_is_no_usable_image_is_one_line(rejected, folder, tmp_path, image, damage):
    bad = tmp_path / "bad.png"
    shutil.copy(image, bad)
    damage(bad)
    said = rejected("score", folder, image, bad, "--heatmaps", tmp_path / "maps", "--csv", tmp_path / "scores.csv")
    assert "bad.png" in said


def run_python(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=True)


def test_help_answers_within_a_second():
    started = time.perf_counter()
    shown = run_python("-m", "kdad", "--help").stdout
    assert time.perf_counter() - started < 1
    for command in ("train", "evaluate", "score", "sweep", "pretrain", "import-cloner", "list", "push", "pull"):
        assert re.search(rf"^ +{command}\b", shown, re.MULTILINE)
    assert "exit status" in shown


def test_importing_the_package_loads_nothing_heavy():
    heavy = "{'torch', 'streamlit', 'transformers', 'pytorch_lightning', 'numpy', 'pandas', 'PIL'}"
    program = f"import sys, kdad, kdad.cli; print(sorted({heavy} & set(sys.modules)))"
    assert run_python("-c", program).stdout == "[]\n"


def test_the_help_of_every_command_names_the_exit_statuses(capsys):
    for command in ("train", "evaluate", "score", "sweep", "pretrain", "import-cloner", "list", "push", "pull"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert "exit status: 0" in " ".join(capsys.readouterr().out.split())


def test_no_command_depends_on_the_working_directory(tmp_path, monkeypatch, capsys, folder, image):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    relative = os.path.relpath(folder)
    assert main(["score", relative, image, "--device", "cpu"]) == 0
    assert not list(Path().iterdir())


def test_threshold_sets_shows_and_clears_what_score_uses(folder, image, capsys, tiny_patterns):
    assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
    assert main(["threshold", str(folder)]) == 0
    assert "keeps no operating point" in capsys.readouterr().out
    costs = ["--miss", "1000", "--false-alarm", "1", "--defects", "0.5"]
    assert main(["threshold", str(folder), *costs]) == 0
    said = capsys.readouterr().out
    assert "of least expected cost where a miss costs 1000" in said
    assert "of calling every image normal: 500" in said
    assert main(["threshold", str(folder)]) == 0
    assert capsys.readouterr().out == said
    detector = Detector.load(folder)
    parts = str(folder.parent / "parts")
    assert main(["score", str(folder), image, "--parquet", parts]) == 0
    assert main(["score", str(folder), image, "--parquet", parts, "--fpr", str(detector.default_fpr)]) == 0
    assert main(["threshold", str(folder), "--clear"]) == 0
    assert not (folder / layout.OPERATING_POINT).exists()
    assert main(["score", str(folder), image, "--parquet", parts]) == 2
    assert "was not made with this student and --fpr" in capsys.readouterr().err


def test_mistakes_about_thresholds(rejected, folder):
    assert "give --miss, --false-alarm and --defects" in rejected("threshold", folder, "--miss", "3")
    assert "without costs" in rejected("threshold", folder, "--miss", "3", "--clear")
    costs = ("--miss", "3", "--false-alarm", "1", "--defects")
    assert "between 0 and 1" in rejected("threshold", folder, *costs, "2")
    assert "never tested" in rejected("threshold", folder, *costs, "0.1")
    assert "no such student folder" in rejected("threshold", "nowhere", *costs, "0.1")
