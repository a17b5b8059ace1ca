import json
import resource
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers.miniatures import PREPROCESSING, evaluated, reseal
from safetensors.torch import load_file, save_file

from kdad.detection.calibration import load_calibration, save_calibration
from kdad.detection.detector import Detector
from kdad.networks.recipes import PAPER, Recipe
from kdad.networks.students import build_student
from kdad.storage import layout, student_config
from kdad.storage import student_folder as store
from kdad.storage.sealing import sealed

VIT = {"kind": "vit", "size": 32, "patch": 8, "prefix": 1, "width": 16, "hidden": 32, "heads": 2, "dropout": 0.1}
ARCHITECTURES = [{"kind": "compact-vgg", "inner": 4}, {"kind": "paper-vgg"}, {**VIT, "teacher_width": 24}]


def config_of(architecture: dict, **changes) -> student_config.StudentConfig:
    values = {
        "dataset": "patterns", "normal_class": "dots", "teacher": "vgg-cifar10", "teacher_sha256": "0" * 64,
        "label_overlap": "none", "architecture": architecture, "recipe": Recipe(epochs=3, learning_rate=2e-3),
        "preprocessing": PREPROCESSING, "score": "last-layer", "calibration": "held-out", "tile_size": 0,
        "images_sha256": "1" * 64, "layers": [], "max_value": 0, "ancestry": [],
        "seed": 2, "hardware": "a CPU", "versions": {"torch": "2.11"},
    }  # fmt: skip
    return student_config.StudentConfig(**{**values, **changes})


def random_student(architecture: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    student = build_student(architecture).eval()
    store.round_to_half(student)
    return student


@pytest.fixture
def saved(tmp_path):
    """A saved student of the smallest kind."""
    store.save_student(tmp_path / "student", config_of(ARCHITECTURES[0]), random_student(ARCHITECTURES[0]))
    return tmp_path / "student"


@pytest.fixture
def copied(student_folder, tmp_path):
    """A complete student of its own, free to be damaged."""
    return Path(shutil.copytree(student_folder, tmp_path / "copied"))


def load(folder: Path) -> torch.nn.Module:
    return store.load_student(folder, store.load_config(folder))


def change_config(folder: Path, **changes) -> None:
    reseal(folder / layout.CONFIG, **changes)


# Save, load, equal


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture["kind"])
def test_a_loaded_student_computes_the_same(architecture, tmp_path):
    student = random_student(architecture)
    store.save_student(tmp_path, config_of(architecture), student)
    loaded, pixels = load(tmp_path), torch.randn(2, 3, 32, 32)
    assert not any(module.training for module in loaded.modules())
    assert all(tensor.dtype == torch.float32 for tensor in loaded.parameters())
    for copied, expected in zip(loaded(pixels), student(pixels), strict=True):
        assert torch.equal(copied, expected)


def test_weights_are_stored_in_half_precision(saved):
    floating = [tensor for tensor in load_file(saved / layout.WEIGHTS).values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.float16}


def test_a_configuration_survives_the_round_trip(tmp_path):
    for recipe in (PAPER, Recipe(epochs=1, batch_size=8, optimizer="adamw", schedule="step", flip=True)):
        config = config_of(ARCHITECTURES[2], recipe=recipe)
        store.save_config(tmp_path, config)
        assert store.load_config(tmp_path) == config


def test_the_same_run_is_recognised_on_another_machine_and_after_it_ended(saved):
    config, finished = config_of(ARCHITECTURES[0]), store.load_config(saved)
    assert finished.weights_sha256
    other = replace(config, hardware="a GPU", versions={"torch": "9"})
    assert finished.differences(other) == ""
    assert finished.differences(other, versions=True) == "torch 2.11 instead of 9"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 3}, "seed 2 instead of 3"),
        (
            {"recipe": Recipe(epochs=9, learning_rate=2.0)},
            "epochs 3 instead of 9, learning_rate 0.002 instead of 2.0",
        ),
        ({"images_sha256": "2" * 64}, "other images"),
        ({"images_sha256": ""}, ""),  # a student of the first format cannot say
        ({"teacher_sha256": "3" * 64}, "teacher_sha256 000000000000… instead of 333333333333…"),
    ],
)
def test_another_run_is_told_apart_in_words(changes, words):
    assert config_of(ARCHITECTURES[0]).differences(config_of(ARCHITECTURES[0], **changes)) == words


def test_unknown_fields_are_refused(saved, refusal):
    change_config(saved, mood="sunny")
    assert "unknown: mood" in refusal(store.load_config, saved)


def test_a_newer_format_is_refused_with_what_to_do(saved, refusal):
    change_config(saved, format=student_config.FORMAT + 1)
    message = refusal(store.load_config, saved)
    assert f"format {student_config.FORMAT + 1}" in message
    assert "update kdad" in message


def test_a_student_of_the_first_format_still_loads(saved):
    reseal(saved / layout.CONFIG, without=("format", "images_sha256", "calibration"))
    config = store.load_config(saved)
    assert (config.images_sha256, config.calibration) == ("", "held-out")
    change_config(saved, dataset="folder:/a/bottle")
    assert store.load_config(saved).calibration == "unknown"


def test_the_names_of_the_fifth_format_still_load(saved):
    config, expected = json.loads((saved / layout.CONFIG).read_text()), store.load_config(saved)
    recipe, preprocessing = config["recipe"], config["preprocessing"]
    recipe["fewest_steps"], preprocessing["kernel"] = recipe.pop("min_steps"), preprocessing.pop("interpolation")
    config["tile"], config["white"] = config.pop("tile_size"), config.pop("max_value")
    (saved / layout.CONFIG).write_text(json.dumps(sealed({**config, "format": 5})))
    assert store.load_config(saved) == expected
    assert not store.load_config(saved).differences(expected, versions=True)


def test_figures_of_other_weights_are_not_taken_for_the_students(saved, refusal):
    (saved / layout.EVALUATION).write_text(json.dumps({"auroc": 0.9, "weights_sha256": "0" * 64}))
    assert "other weights" in refusal(store.check_evaluation, saved, store.load_config(saved))


def test_a_student_whose_weights_could_not_be_written_is_unfinished(tmp_path, monkeypatch):
    write = Path.write_bytes

    def disk_full(self, content):
        write(self, content[:100])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError):
        store.save_student(tmp_path, config_of(ARCHITECTURES[0]), random_student(ARCHITECTURES[0]))
    assert not store.is_complete(tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_folders_are_named_after_data_set_teacher_class_and_seed(tmp_path):
    place = layout.student_folder(tmp_path, "cifar10", "vit-cifar10", "cat", 0)
    assert place == tmp_path / "cifar10" / "vit-cifar10" / "cat"
    assert layout.student_folder(tmp_path, "cifar10", "owner/model", "cat", 2).parts[-2:] == (
        "owner--model", "cat-seed2",
    )  # fmt: skip


def test_only_finished_students_are_found(tmp_path):
    places = [tmp_path / "a" / name for name in ("one", "two", "unfinished")]
    for place in places:
        store.save_student(place, config_of(ARCHITECTURES[0]), random_student(ARCHITECTURES[0]))
    (places[2] / layout.WEIGHTS).unlink()
    assert store.find_students(tmp_path) == places[:2]
    assert store.find_students(tmp_path / "nowhere") == []


# Damaged weights


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
def test_truncated_weights_are_refused(kept, saved, refusal):
    content = (saved / layout.WEIGHTS).read_bytes()
    (saved / layout.WEIGHTS).write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    for weights_sha256 in (store.load_config(saved).weights_sha256, ""):
        change_config(saved, weights_sha256=weights_sha256)
        assert layout.WEIGHTS in refusal(load, saved)


@pytest.mark.parametrize("where", [0, 9, 50, 0.3, 0.6, 0.99])
def test_a_single_flipped_bit_is_noticed(where, saved, refusal):
    content = bytearray((saved / layout.WEIGHTS).read_bytes())
    content[int(where * len(content)) if isinstance(where, float) else where] ^= 1
    (saved / layout.WEIGHTS).write_bytes(content)
    assert "damaged" in refusal(load, saved)


@pytest.mark.parametrize("damage", ["shape", "extra", "missing", "nan", "infinite"])
def test_tampered_weights_are_refused_by_their_content(damage, saved, refusal):
    weights = load_file(saved / layout.WEIGHTS)
    name = "features.0.weight"
    if damage == "missing":
        del weights[name]
    else:
        values = {
            "shape": {name: torch.zeros(2, 2)},
            "extra": {"extra.weight": torch.zeros(2)},
            "nan": {name: torch.full_like(weights[name], torch.nan)},
            "infinite": {name: torch.full_like(weights[name], torch.inf)},
        }
        weights.update(values[damage])
    save_file(weights, saved / layout.WEIGHTS)
    assert "SHA-256" in refusal(load, saved)
    change_config(saved, weights_sha256="")
    assert layout.WEIGHTS in refusal(load, saved)


def test_missing_weights_are_named(saved, refusal):
    (saved / layout.WEIGHTS).unlink()
    assert "no finished student" in refusal(load, saved)


# Damaged configurations


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '"text"', "{}", "\0\1", "[" * 100_000])
def test_a_file_that_is_no_configuration_is_refused(content, saved, refusal):
    (saved / layout.CONFIG).write_text(content)
    assert layout.CONFIG in refusal(load, saved)


def test_every_field_of_the_configuration_is_needed(saved, refusal):
    whole = (saved / layout.CONFIG).read_text()
    for name in set(json.loads(whole)) - {"weights_sha256", "calibration_sha256", "format", "sha256"}:
        reseal(saved / layout.CONFIG, without=[name])
        assert name in refusal(load, saved)
        (saved / layout.CONFIG).write_text(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": 5}, {"normal_class": None}, {"teacher": ["vgg"]}, {"teacher_sha256": 0}, {"seed": "0"},
        {"label_overlap": "maybe"}, {"architecture": "vit"}, {"architecture": []}, {"recipe": []}, {"recipe": {}},
        {"recipe": {"epochs": "many"}}, {"recipe": {"epochs": -1}}, {"recipe": {"epochs": 1, "optimizer": "sgd"}},
        {"recipe": {"epochs": 1, "mse_weight": "heavy"}}, {"recipe": {"epochs": 1, "mse_weight": float("nan")}},
        {"recipe": {"epochs": 1, "learning_rate": float("nan")}}, {"preprocessing": 3}, {"preprocessing": {}},
        {"preprocessing": {**asdict(PREPROCESSING), "crop": 64}}, {"weights_sha256": None},
        {"preprocessing": {**asdict(PREPROCESSING), "std": [0, 0, 0]}},
        {"preprocessing": {**asdict(PREPROCESSING), "mean": [0.5]}},
        {"preprocessing": {**asdict(PREPROCESSING), "interpolation": "nearest"}},
    ],
    ids=str,
)  # fmt: skip
def test_senseless_fields_are_refused(changes, saved, refusal):
    change_config(saved, **changes)
    assert layout.CONFIG in refusal(load, saved)


@pytest.mark.parametrize(
    "architecture",
    [
        {}, {"kind": "resnet"}, {"kind": ["vit"]}, {"kind": "compact-vgg"}, {"kind": "compact-vgg", "inner": "4"},
        {"kind": "compact-vgg", "inner": -4}, {"kind": "compact-vgg", "inner": 5}, {"kind": "paper-vgg", "inner": 4},
        {**ARCHITECTURES[2], "heads": 3}, {**ARCHITECTURES[2], "patch": 0}, {**ARCHITECTURES[2], "dropout": 7},
        {**ARCHITECTURES[2], "width": None},
    ],
    ids=str,
)  # fmt: skip
def test_architectures_that_cannot_be_are_refused(architecture, saved, refusal):
    change_config(saved, architecture=architecture)
    refusal(load, saved)


@pytest.mark.parametrize(
    "architecture",
    [
        {"kind": "compact-vgg", "inner": 10**5}, {"kind": "compact-vgg", "inner": 10**9},
        {"kind": "compact-vgg", "inner": 10**30}, {**ARCHITECTURES[2], "size": 10**6},
        {**ARCHITECTURES[2], "prefix": 10**9}, {**ARCHITECTURES[2], "width": 10**5},
        {**ARCHITECTURES[2], "hidden": 10**9}, {**ARCHITECTURES[2], "teacher_width": 10**8},
    ],
    ids=str,
)  # fmt: skip
def test_absurd_sizes_are_refused_before_memory_is_taken(architecture, saved, refusal):
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    change_config(saved, architecture=architecture)
    refusal(load, saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < 500e6


# Damaged calibrations and evaluations


def test_a_calibration_survives_the_round_trip(copied):
    calibration = load_calibration(copied, store.load_config(copied))
    assert calibration.layer_errors.shape == (20, 4, 2)
    save_calibration(copied, calibration)
    again = load_calibration(copied, store.load_config(copied)).tensors()
    assert again.keys() == calibration.tensors().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in calibration.tensors().items())


def test_a_student_may_be_uncalibrated_and_not_evaluated(saved):
    assert load_calibration(saved, store.load_config(saved)) is None
    assert store.load_evaluation(saved) is None


@pytest.mark.parametrize("damage", ["truncated", "missing", "shape", "empty", "nan", "no distances"])
def test_a_damaged_calibration_is_refused_with_a_way_out(damage, copied, refusal):
    file = copied / layout.CALIBRATION
    calibration = load_file(file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "no distances":
        save_file({name: tensor for name, tensor in calibration.items() if name != "distances"}, file)
    else:
        errors = calibration.pop("layer_errors")
        changed = {"shape": errors[:, :3], "empty": errors[:0], "nan": errors * torch.nan}
        calibration.update({"layer_errors": changed[damage].contiguous()} if damage in changed else {})
        save_file(calibration, file)
    for calibration_sha256 in (store.load_config(copied).calibration_sha256, ""):  # where there is none: by content
        change_config(copied, calibration_sha256=calibration_sha256)
        message = refusal(Detector.load, copied, device="cpu")
        assert f"{file} is damaged" in message
        assert "run evaluate" in message


def test_the_calibration_of_another_student_is_refused(copied, refusal):
    file = copied / layout.CALIBRATION
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    assert "SHA-256" in refusal(Detector.load, copied, device="cpu")


@pytest.mark.parametrize("name", [layout.CONFIG, layout.EVALUATION])
def test_what_was_sealed_cannot_be_changed_by_hand(name, copied, tiny_task, vgg_teacher, refusal):
    evaluated(copied, tiny_task, Detector.load(copied, teacher=vgg_teacher, device="cpu"))
    values = json.loads((copied / name).read_text())
    (copied / name).write_text(json.dumps(values | {"seed": 7}))
    load_it = {layout.CONFIG: store.load_config, layout.EVALUATION: store.load_evaluation}[name]
    assert "damaged" in refusal(load_it, copied)
    (copied / name).write_text(json.dumps(values))  # another indentation is not another content
    assert load_it(copied)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_evaluation_is_refused(content, saved, refusal):
    (saved / layout.EVALUATION).write_text(content)
    assert layout.EVALUATION in refusal(store.load_evaluation, saved)
