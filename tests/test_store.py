import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PREPROCESSING
from hub import TOKEN
from PIL import Image
from safetensors.torch import load_file, save_file

from kdad import store
from kdad.catalogue import CIFAR10_CLASSES
from kdad.data import load_source
from kdad.detector import Detector
from kdad.recipes import PAPER, Recipe
from kdad.students import build_student

VIT = {"kind": "vit", "size": 32, "patch": 8, "prefix": 1, "width": 16, "hidden": 32, "heads": 2, "dropout": 0.1}
ARCHITECTURES = [{"kind": "compact-vgg", "inner": 4}, {"kind": "paper-vgg"}, {**VIT, "teacher_width": 24}]
CIFAR10 = "uoft-cs/cifar10"


def config_of(architecture: dict, **changes) -> store.StudentConfig:
    values = {
        "dataset": "patterns", "normal_class": "dots", "teacher": "vgg-cifar10", "teacher_sha256": "0" * 64,
        "label_overlap": "none", "architecture": architecture, "recipe": Recipe(epochs=3, learning_rate=2e-3),
        "preprocessing": PREPROCESSING, "score": "last-layer", "tile": 0,
        "seed": 2, "hardware": "a CPU", "versions": {"torch": "2.11"},
    }  # fmt: skip
    return store.StudentConfig(**{**values, **changes})


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
    values = json.loads((folder / store.CONFIG).read_text())
    (folder / store.CONFIG).write_text(json.dumps({**values, **changes}))


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
    floating = [tensor for tensor in load_file(saved / store.WEIGHTS).values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.float16}


def test_a_configuration_survives_the_round_trip(tmp_path):
    for recipe in (PAPER, Recipe(epochs=1, batch_size=8, optimizer="adamw", schedule="step", flip=True)):
        config = config_of(ARCHITECTURES[2], recipe=recipe)
        store.save_config(tmp_path, config)
        assert store.load_config(tmp_path) == config


def test_the_same_run_is_recognised_on_another_machine_and_after_it_ended(saved):
    config, finished = config_of(ARCHITECTURES[0]), store.load_config(saved)
    assert finished.weights_sha256
    assert finished.same_run(replace(config, hardware="a GPU", versions={"torch": "9"}))
    assert not finished.same_run(replace(config, seed=3))


def test_fields_of_a_later_version_are_ignored(saved):
    config = store.load_config(saved)
    change_config(saved, mood="sunny")
    assert store.load_config(saved) == config


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
    place = store.student_folder(tmp_path, "cifar10", "vit-cifar10", "cat", 0)
    assert place == tmp_path / "cifar10" / "vit-cifar10" / "cat"
    assert store.student_folder(tmp_path, "cifar10", "owner/model", "cat", 2).parts[-2:] == (
        "owner--model", "cat-seed2",
    )  # fmt: skip


def test_only_finished_students_are_found(tmp_path):
    places = [tmp_path / "a" / name for name in ("one", "two", "unfinished")]
    for place in places:
        store.save_student(place, config_of(ARCHITECTURES[0]), random_student(ARCHITECTURES[0]))
    (places[2] / store.WEIGHTS).unlink()
    assert store.find_students(tmp_path) == places[:2]
    assert store.find_students(tmp_path / "nowhere") == []


# Damaged weights


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
def test_truncated_weights_are_refused(kept, saved, refusal):
    content = (saved / store.WEIGHTS).read_bytes()
    (saved / store.WEIGHTS).write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    for weights_sha256 in (store.load_config(saved).weights_sha256, ""):
        change_config(saved, weights_sha256=weights_sha256)
        assert store.WEIGHTS in refusal(load, saved)


@pytest.mark.parametrize("where", [0, 9, 50, 0.3, 0.6, 0.99])
def test_a_single_flipped_bit_is_noticed(where, saved, refusal):
    content = bytearray((saved / store.WEIGHTS).read_bytes())
    content[int(where * len(content)) if isinstance(where, float) else where] ^= 1
    (saved / store.WEIGHTS).write_bytes(content)
    assert "damaged" in refusal(load, saved)


@pytest.mark.parametrize("damage", ["shape", "extra", "missing", "nan", "infinite"])
def test_tampered_weights_are_refused_by_their_content(damage, saved, refusal):
    weights = load_file(saved / store.WEIGHTS)
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
    save_file(weights, saved / store.WEIGHTS)
    assert "SHA-256" in refusal(load, saved)
    change_config(saved, weights_sha256="")
    assert store.WEIGHTS in refusal(load, saved)


def test_missing_weights_are_named(saved, refusal):
    (saved / store.WEIGHTS).unlink()
    assert "no finished student" in refusal(load, saved)


# Damaged configurations


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '"text"', "{}", "\0\1", "[" * 100_000])
def test_a_file_that_is_no_configuration_is_refused(content, saved, refusal):
    (saved / store.CONFIG).write_text(content)
    assert store.CONFIG in refusal(load, saved)


def test_every_field_of_the_configuration_is_needed(saved, refusal):
    values = json.loads((saved / store.CONFIG).read_text())
    for name in set(values) - {"weights_sha256"}:
        (saved / store.CONFIG).write_text(json.dumps({k: v for k, v in values.items() if k != name}))
        assert name in refusal(load, saved)


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
        {"preprocessing": {**asdict(PREPROCESSING), "kernel": "nearest"}},
    ],
    ids=str,
)  # fmt: skip
def test_senseless_fields_are_refused(changes, saved, refusal):
    change_config(saved, **changes)
    assert store.CONFIG in refusal(load, saved)


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
    calibration = store.load_calibration(copied, store.load_config(copied))
    assert calibration["layer_errors"].shape == (20, 4, 2)
    store.save_calibration(copied, calibration)
    again = store.load_calibration(copied, store.load_config(copied))
    assert again.keys() == calibration.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in calibration.items())


def test_a_student_may_be_uncalibrated_and_not_evaluated(saved):
    assert store.load_calibration(saved, store.load_config(saved)) is None
    assert store.load_evaluation(saved) is None


@pytest.mark.parametrize("damage", ["truncated", "missing", "shape", "empty", "nan", "no distances"])
def test_a_damaged_calibration_is_refused_with_a_way_out(damage, copied, refusal):
    file = copied / store.CALIBRATION
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
    message = refusal(Detector.load, copied, device="cpu")
    assert f"{file} is damaged" in message
    assert "run evaluate" in message


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_evaluation_is_refused(content, saved, refusal):
    (saved / store.EVALUATION).write_text(content)
    assert store.EVALUATION in refusal(store.load_evaluation, saved)


# To and from the Hub


@pytest.fixture
def original(student_folder, tiny_task):
    """What the student on disk says of the test images."""
    return Detector.load(student_folder, device="cpu").predict(tiny_task.test.images)


def assert_same_verdicts(folder_or_repo, original, tiny_task):
    prediction = Detector.load(folder_or_repo, device="cpu").predict(tiny_task.test.images)
    assert np.array_equal(prediction.score, original.score)
    assert np.array_equal(prediction.p_value, original.p_value)
    assert np.array_equal(prediction.heatmap, original.heatmap)


def test_a_student_on_the_hub_judges_as_the_one_on_disk(hub, student_folder, original, tiny_task, tmp_path):
    hub.add_folder("someone/dots", student_folder)
    assert_same_verdicts("someone/dots", original, tiny_task)
    folder = store.pull("someone/dots", tmp_path / "out")
    config = store.load_config(student_folder)
    assert folder == store.folder_of(tmp_path / "out", config)
    assert store.load_config(folder) == config
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert_same_verdicts(folder, original, tiny_task)


def test_pull_takes_a_students_own_files_only(hub, student_folder, tmp_path):
    hub.add_folder("someone/dots", student_folder)
    hub.add("someone/dots", {"run.py": b"print('hello')", "deep/config.json": b"{}", "last.ckpt": b"0"})
    folder = store.pull("someone/dots", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} <= set(store.SHARED_FILES)


@pytest.mark.parametrize("present", [store.WEIGHTS, "last.ckpt"])
def test_pull_does_not_replace_what_is_there(present, hub, student_folder, tmp_path, refusal):
    hub.add_folder("someone/dots", student_folder)
    place = store.folder_of(tmp_path / "out", store.load_config(student_folder))
    place.mkdir(parents=True)
    (place / present).write_text("mine")
    assert f"{place} is not empty" in refusal(store.pull, "someone/dots", tmp_path / "out")
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [(present, "mine")]
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize(
    ("field", "place"),
    [("dataset", "../elsewhere"), ("dataset", "{0}/elsewhere"), ("normal_class", "../../../elsewhere"),
     ("normal_class", "{0}/elsewhere")],
)  # fmt: skip
def test_pull_writes_nothing_outside_its_folder(field, place, hub, copied, tmp_path, refusal):
    change_config(copied, **{field: place.format(tmp_path)})
    hub.add_folder("someone/hostile", copied)
    before = {path for path in tmp_path.iterdir() if path.name != "cache"}
    assert "outside" in refusal(store.pull, "someone/hostile", tmp_path / "out")
    assert {path for path in tmp_path.iterdir() if path.name != "cache"} == before


@pytest.mark.parametrize("damage", ["no such repository", "no weights", "other weights", "cut off"])
def test_pull_of_a_damaged_student_leaves_nothing(damage, hub, copied, tmp_path, refusal):
    if damage == "no weights":
        (copied / store.WEIGHTS).unlink()
    if damage == "other weights":
        save_file(load_file(copied / store.CALIBRATION), copied / store.WEIGHTS)
    if damage == "cut off":
        hub.cut_off.add(store.WEIGHTS)
    if damage != "no such repository":
        hub.add_folder("someone/dots", copied)
    refusal(store.pull, "someone/dots", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pull_and_load_without_a_network(no_network, tmp_path, refusal):
    assert "network" in refusal(store.pull, "someone/dots", tmp_path / "out")
    assert "network" in refusal(Detector.load, "someone/dots")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gone", "./gone", "/gone/away", "a/b/c", "../gone"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name, hub, refusal):
    assert "no such student folder" in refusal(store.resolve, name)
    assert not hub.requests


def test_push_uploads_what_pull_fetches(hub, copied, original, tiny_task, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (copied / "last.ckpt").write_bytes(b"not to be shared")
    assert store.push(copied, "me/dots") == f"{hub.endpoint}/me/dots"
    pushed = {path.name: path.read_bytes() for path in (hub.root / "models/me/dots").iterdir()}
    assert pushed == {name: (copied / name).read_bytes() for name in store.SHARED_FILES if (copied / name).is_file()}
    assert_same_verdicts(store.pull("me/dots", tmp_path / "out"), original, tiny_task)


def test_push_again_replaces_what_changed(hub, copied, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    store.push(copied, "me/dots")
    (copied / store.CARD).write_text("# Better words\n")
    store.push(copied, "me/dots")
    assert (hub.root / "models/me/dots" / store.CARD).read_text() == "# Better words\n"


def test_push_under_a_bare_name_goes_to_ones_own_account(hub, copied, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert store.push(copied, "dots") == f"{hub.endpoint}/me/dots"
    assert (hub.root / "models/me/dots" / store.WEIGHTS).is_file()


def test_push_without_login_says_how_to_log_in(hub, copied, refusal):
    assert "hf auth login" in refusal(store.push, copied, "me/dots")
    assert not (hub.root / "models/me").exists()


def test_push_without_a_network(no_network, copied, refusal):
    assert "could not push to me/dots" in refusal(store.push, copied, "me/dots")


def test_push_sends_no_damaged_student(hub, copied, monkeypatch, refusal):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (copied / store.WEIGHTS).write_bytes(b"")
    assert "damaged" in refusal(store.push, copied, "me/dots")
    assert "no student folder" in refusal(store.push, copied.parent, "me/dots")
    assert not hub.requests


# A data set from the Hub


def cifar_parquet(images: np.ndarray, labels: list[int]) -> bytes:
    """A parquet file in CIFAR-10's layout, holding images (N, 32, 32, 3) as PNG."""
    import pyarrow
    import pyarrow.parquet

    encoded = []
    for image in images:
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        encoded.append({"bytes": png.getvalue(), "path": None})
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"img": encoded, "label": labels}), file)
    return file.getvalue()


@pytest.fixture
def cifar():
    """Images (N, 32, 32, 3) and labels of a tiny CIFAR-10; the sources of other tests are forgotten."""
    load_source.cache_clear()
    yield np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), [i % 10 for i in range(20)]
    load_source.cache_clear()


def parquet_names() -> list[str]:
    return [f"plain_text/{part}-00000-of-00001.parquet" for part in ("train", "test")]


def test_cifar10_is_fetched_part_by_part(hub, cifar):
    images, labels = cifar
    train, test = parquet_names()
    hub.add(CIFAR10, {train: cifar_parquet(images, labels), test: cifar_parquet(images[:5], labels[:5])}, "datasets")
    source = load_source("cifar10")
    assert source.classes == CIFAR10_CLASSES
    assert source.labels("test").tolist() == labels[:5]
    assert not any(train in request for request in hub.requests if request.startswith("GET"))
    read = source.images("train", torch.tensor([7, 3]))
    assert np.array_equal(read.permute(0, 2, 3, 1).numpy(), images[[7, 3]])


def test_cifar10_on_disk_needs_no_hub(hub, cifar, tmp_path, monkeypatch):
    local = tmp_path / "data" / "cifar10" / parquet_names()[1]
    local.parent.mkdir(parents=True)
    local.write_bytes(cifar_parquet(*cifar))
    monkeypatch.setenv("KDAD_DATA", str(tmp_path / "data"))
    assert load_source("cifar10").labels("test").tolist() == cifar[1]
    assert not hub.requests


@pytest.mark.parametrize("damage", ["no repository", "no file", "cut off"])
def test_cifar10_that_cannot_be_fetched_says_both_ways_to_get_it(damage, hub, cifar, refusal):
    train, test = parquet_names()
    if damage != "no repository":
        hub.add(CIFAR10, {(train if damage == "no file" else test): cifar_parquet(*cifar)}, "datasets")
    if damage == "cut off":
        hub.cut_off.add(Path(test).name)
    message = refusal(load_source("cifar10").labels, "test")
    assert CIFAR10 in message
    assert f"$KDAD_DATA/cifar10/{test}" in message


def test_a_fetch_that_failed_is_tried_again(hub, cifar, refusal):
    hub.add(CIFAR10, {parquet_names()[1]: cifar_parquet(*cifar)}, "datasets")
    hub.cut_off.add(Path(parquet_names()[1]).name)
    refusal(load_source("cifar10").labels, "test")
    hub.cut_off.clear()
    assert load_source("cifar10").labels("test").tolist() == cifar[1]


def test_cifar10_without_a_network_gives_up_at_once(no_network, cifar, refusal):
    start = time.monotonic()
    assert "$KDAD_DATA/cifar10/" in refusal(load_source("cifar10").labels, "train")
    assert time.monotonic() - start < 5


def test_a_fetched_file_that_is_no_parquet_is_refused(hub, cifar, refusal):
    hub.add(CIFAR10, {parquet_names()[1]: b"<html>a login page</html>"}, "datasets")
    assert "not a readable parquet file" in refusal(load_source("cifar10").labels, "test")


# The commands, in a process of their own


def run_kdad(*arguments, endpoint: str, home: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "KDAD_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "kdad", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_score_takes_a_student_straight_from_the_hub(hub, student_folder, tmp_path):
    hub.add_folder("someone/dots", student_folder)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    command = ["score", "someone/dots", tmp_path / "image.png", "--json", "--device", "cpu"]
    done = run_kdad(*command, endpoint=hub.endpoint, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    expected = Detector.load(student_folder, device="cpu").predict([pixels])
    assert json.loads(done.stdout)[0]["score"] == pytest.approx(float(expected.score[0]), rel=1e-6)


def test_training_on_cifar10_without_data_or_network_ends_with_one_line(no_network, vgg_folder, tmp_path):
    out = tmp_path / "students"
    command = ["train", "--dataset", "cifar10", "--teacher", vgg_folder, "--normal-class", "cat", "--out", out]
    done = run_kdad(*command, endpoint=no_network, home=tmp_path / "home")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert CIFAR10 in done.stderr
    assert "$KDAD_DATA/cifar10/" in done.stderr
    assert not out.exists()
