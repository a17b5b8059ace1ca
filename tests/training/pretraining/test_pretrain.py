"""Teaching compact teachers, on sixty images."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.miniatures import Crash, crash
from helpers.tiny_source import TinySource, contents, interrupted_and_whole, taught

from kdad.data.task import holdout_split
from kdad.errors import UserError, WorkFailed
from kdad.locks import exclusive_lock
from kdad.networks.compact_vit import CompactViT
from kdad.networks.teachers.loading import load_teacher
from kdad.networks.vgg import CompactVGG
from kdad.storage.history import read_history
from kdad.training.pretraining import pretrain
from kdad.training.pretraining.classification import PREPROCESSING, Classification, mixed, random_augment
from kdad.training.pretraining.pretrain import train_teacher

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def source(monkeypatch):
    tiny = TinySource()
    monkeypatch.setattr(pretrain, "load_source", lambda _: tiny)
    return tiny


@pytest.fixture(scope="module")
def taught_vgg(tmp_path_factory):
    """A VGG teacher of one epoch; read-only."""
    out = tmp_path_factory.mktemp("taught") / "tiny"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pretrain, "load_source", lambda _: TinySource())
        taught("vgg", out)
    return out


@pytest.mark.parametrize(("backbone", "grids"), [("vgg", [32, 16, 8, 4]), ("vit", [8, 8, 8, 8])])
def test_a_taught_folder_loads_as_a_teacher(tmp_path, backbone, grids):
    card = taught(backbone, tmp_path / "mine", learning_rate=0.02)
    teacher = load_teacher(str(tmp_path / "mine"))
    assert teacher.trained_on == ("patterns",)
    assert teacher.grids == [(image_size, image_size) for image_size in grids]
    assert teacher.preprocessing == replace(
        PREPROCESSING["patterns"], interpolation=teacher.preprocessing.interpolation
    )
    assert len(teacher(torch.zeros(2, 3, 32, 32))) == 4
    assert json.loads((tmp_path / "mine" / "teacher.json").read_text()) == json.loads(json.dumps(card))
    assert (card["name"], card["backbone"], card["classes"]) == ("mine", backbone, ["even", "odd"])
    assert (card["recipe"]["epochs"], card["recipe"]["learning_rate"]) == (1, 0.02)
    assert "patterns" in (tmp_path / "mine" / "README.md").read_text()


def test_nothing_but_the_teacher_is_left(taught_vgg):
    names = {file.name for file in taught_vgg.iterdir()}
    assert names == {"README.md", "config.json", "history.csv", "model.safetensors", "teacher.json"}


def test_the_card_states_the_accuracy_of_the_saved_weights(taught_vgg):
    source, model = TinySource(), CompactVGG.load(taught_vgg)
    card = json.loads((taught_vgg / "teacher.json").read_text())
    parts = {"validation": ("train", holdout_split(60)[1]), "test": ("test", torch.arange(20))}
    for split, (part, indices) in parts.items():
        with torch.no_grad():
            logits = model(PREPROCESSING["patterns"](source.images(part, indices)))
        correct = (logits.argmax(1) == source.labels(part)[indices]).float().mean()
        assert card["accuracy"][split] == pytest.approx(float(correct), abs=1e-4)


@pytest.mark.parametrize("backbone", ["vgg", "vit"])
def test_the_held_out_tenth_is_never_learned_from(tmp_path, monkeypatch, source, backbone):
    seen, step = [], Classification.training_step

    def watched(module, batch, index):
        seen.append(module.images[batch[0]])
        return step(module, batch, index)

    monkeypatch.setattr(Classification, "training_step", watched)
    taught(backbone, tmp_path)
    fitted = {image.numpy().tobytes() for image in torch.cat(seen)}
    kept, held_out = holdout_split(60)
    assert fitted == {image.numpy().tobytes() for image in source.images("train", kept)}
    # Initialisation and training ask for kept images alone, validation and accuracy for held-out ones alone.
    asked = [indices for part, indices in source.asked if part == "train"]
    assert all(indices <= set(kept.tolist()) or indices == set(held_out.tolist()) for indices in asked)


def test_the_test_part_is_read_once_at_the_end(tmp_path, source):
    taught("vgg", tmp_path)
    assert [part for part, _ in source.asked].count("test") == 1
    assert source.asked[-1][0] == "test"


def test_starting_from_a_teacher_takes_over_its_weights(tmp_path, monkeypatch, taught_vgg):
    slow = replace(pretrain.BACKBONES["vgg"].tuned, learning_rate=1e-9)
    monkeypatch.setitem(pretrain.BACKBONES, "vgg", replace(pretrain.BACKBONES["vgg"], tuned=slow))
    card = taught("vgg", tmp_path, start_from=str(taught_vgg), seed=5)
    old, new = (CompactVGG.load(folder).state_dict() for folder in (taught_vgg, tmp_path))
    fitted = [name for name in old if name.endswith(("weight", "bias"))]
    assert all(torch.allclose(new[name], old[name], atol=1e-3) for name in fitted)
    assert card["start_from"] == str(taught_vgg)


def test_the_card_says_what_a_teacher_owes_to_another(tmp_path, source, taught_vgg):
    older, out = tmp_path / "older", tmp_path / "new"
    shutil.copytree(taught_vgg, older)
    heir = json.loads((older / "teacher.json").read_text()) | {"trained_on": ["cifar10"]}
    (older / "teacher.json").write_text(json.dumps(heir))
    card = taught("vgg", out, start_from=str(older))
    assert card["trained_on"] == ["cifar10", "patterns"]
    assert card["licence"] == f"{pretrain.LICENCE['cifar10']}; {pretrain.LICENCE['patterns']}"
    assert f"Trained from the weights of {older}." in (out / "README.md").read_text()
    assert "Trained from scratch." in (older / "README.md").read_text()


def test_starting_from_a_teacher_of_other_classes_renews_the_head_only(tmp_path, monkeypatch, taught_vgg):
    monkeypatch.setattr(TinySource, "classes", ("even", "odd", "neither"))
    slow = replace(pretrain.BACKBONES["vgg"].tuned, learning_rate=1e-9)
    monkeypatch.setitem(pretrain.BACKBONES, "vgg", replace(pretrain.BACKBONES["vgg"], tuned=slow))
    taught("vgg", tmp_path, start_from=str(taught_vgg))
    old, new = (CompactVGG.load(folder) for folder in (taught_vgg, tmp_path))
    assert new.head.out_features == 3
    assert torch.allclose(new.stack.features[0].weight, old.stack.features[0].weight, atol=1e-3)


def test_distilling_copies_another_teachers_patches(tmp_path, taught_vgg):
    guide = shutil.copytree(taught_vgg, tmp_path / "guide")
    card = json.loads((guide / "teacher.json").read_text())
    (guide / "teacher.json").write_text(json.dumps({**card, "trained_on": ["cifar10"]}))
    guided = taught("vit", tmp_path / "guided", distil_from=str(guide))
    assert guided["trained_on"] == ["cifar10", "patterns"]
    assert guided["distil_from"] == str(guide)
    words = (tmp_path / "guided" / "README.md").read_text()
    assert f"Trained from scratch, copying features of {guide} beside the labels." in words
    plain = CompactViT(2).state_dict()
    assert CompactViT.load(tmp_path / "guided").state_dict().keys() == plain.keys()  # the reader is not saved
    assert load_teacher(str(tmp_path / "guided")).trained_on == ("cifar10", "patterns")


def test_a_vit_without_guide_keeps_the_average_of_its_weights(tmp_path, monkeypatch):
    modules = []
    usual = pretrain.loop.fit

    def watched(module, *arguments, **options):
        modules.append(module)
        usual(module, *arguments, **options)

    monkeypatch.setattr(pretrain.loop, "fit", watched)
    taught("vit", tmp_path)
    (module,) = modules
    kept, last = CompactViT.load(tmp_path).state_dict(), module.model.state_dict()
    average = module.averaged.module.state_dict()
    assert any(not torch.equal(average[name], last[name].to(average[name])) for name in last)
    assert all(torch.allclose(kept[name], average[name], atol=1e-3) for name in kept)


def test_early_epochs_may_show_smaller_images(tmp_path, monkeypatch):
    shown, usual = [], Classification.loss

    def watched(module, pixels, labels):
        shown.append((module.current_epoch, tuple(pixels.shape[2:])))
        return usual(module, pixels, labels)

    monkeypatch.setattr(Classification, "loss", watched)
    card = taught("vgg", tmp_path, epochs=4, image_sizes=[16, 32])
    assert set(shown) == {(0, (16, 16)), (1, (16, 16)), (2, (32, 32)), (3, (32, 32))}
    assert card["recipe"]["image_sizes"] == [16, 32]


@pytest.mark.parametrize(
    ("backbone", "image_sizes", "said"),
    [("vgg", [16, 24], "end with 32"), ("vgg", [8, 32], "16 to 32"), ("vit", [16, 32], "leave out --image-sizes")],
)
def test_sides_that_cannot_be_taught_at_are_refused(tmp_path, backbone, image_sizes, said):
    with pytest.raises(UserError, match=said):
        taught(backbone, tmp_path, image_sizes=image_sizes)
    assert not list(tmp_path.iterdir())


def test_augmenting_changes_pixels_and_keeps_what_they_are():
    images = TinySource().images("train", torch.arange(40))
    recipe = replace(pretrain.VIT, operations=2, erase=1.0)
    torch.manual_seed(0)
    changed = random_augment(images, recipe)
    assert changed.shape == images.shape and changed.dtype == torch.uint8
    assert (changed != images).any()
    torch.testing.assert_close(random_augment(images, pretrain.GUIDED_VIT), images)


def test_mixed_images_have_shares_of_their_classes():
    torch.manual_seed(0)
    for _ in range(6):  # of both kinds
        pixels, shares = mixed(torch.randn(10, 3, 32, 32), torch.arange(10) % 2, 2)
        assert pixels.shape == (10, 3, 32, 32)
        torch.testing.assert_close(shares.sum(1), torch.ones(10))


def test_the_guide_does_not_change(tmp_path, monkeypatch, taught_vgg):
    guide = load_teacher(str(taught_vgg))
    before = {name: tensor.clone() for name, tensor in guide.network.state_dict().items()}
    monkeypatch.setattr(pretrain, "load_teacher", lambda _: guide)
    taught("vit", tmp_path, distil_from="guide")
    assert all(torch.equal(tensor, before[name]) for name, tensor in guide.network.state_dict().items())
    assert not any(module.training for module in guide.network.modules())


@pytest.mark.parametrize(("backbone", "guided"), [("vgg", False), ("vit", False), ("vit", True)])
def test_an_interrupted_run_ends_as_an_unbroken_one(tmp_path, monkeypatch, taught_vgg, backbone, guided):
    guide = str(taught_vgg) if guided else None
    chosen = pretrain.BACKBONES[backbone]
    small = replace(chosen.recipe, batch_size=27), replace(chosen.guided, batch_size=27, all_squares_from=0.5)
    monkeypatch.setitem(pretrain.BACKBONES, backbone, replace(chosen, recipe=small[0], guided=small[1]))
    broken, whole = interrupted_and_whole(monkeypatch, Classification, tmp_path, backbone, distil_from=guide)
    assert broken["model.safetensors"] == whole["model.safetensors"]
    assert {row["epoch"] for row in read_history(tmp_path / "broken")} == {1, 2}


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    with exclusive_lock(tmp_path / ".lock", "held"):
        with pytest.raises(UserError, match="another run trains in"):
            taught("vgg", tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_an_unfinished_run_of_other_settings_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(pretrain, "_accuracies", crash)
        taught("vgg", tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"unfinished run with different settings.*--overwrite"):
        taught("vit", tmp_path)
    assert contents(tmp_path) == before
    assert taught("vgg", tmp_path, seed=1, overwrite=True)["seed"] == 1


def test_a_finished_teacher_is_refused_without_overwrite(tmp_path, taught_vgg):
    shutil.copytree(taught_vgg, tmp_path, dirs_exist_ok=True)
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds a teacher already.*--overwrite"):
        taught("vgg", tmp_path, seed=1)
    assert contents(tmp_path) == before
    taught("vgg", tmp_path, seed=1, overwrite=True)
    assert contents(tmp_path)[tmp_path / "model.safetensors"] != before[tmp_path / "model.safetensors"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start_from": "nowhere"}, "teacher 'nowhere' is missing"),
        ({"distil_from": "nowhere"}, "unknown teacher 'nowhere'"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"learning_rate": 0.0}, "learning rate must be above 0, not 0"),
    ],
)
def test_a_mistake_leaves_the_finished_teacher_alone_even_when_overwriting(tmp_path, taught_vgg, options, said):
    shutil.copytree(taught_vgg, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=said):
        taught("vgg", tmp_path, overwrite=True, **options)
    assert contents(tmp_path) == before


def test_what_is_no_teachers_is_left_alone(tmp_path, student_folder):
    """The README of a project, and a student, which `--overwrite` is not about."""
    (tmp_path / "README.md").write_text("mine")
    shutil.copytree(student_folder, tmp_path / "student")
    before = contents(tmp_path)
    for out in (tmp_path, tmp_path / "student"):
        with pytest.raises(UserError, match="holds files that are no teacher's"):
            taught("vgg", out, overwrite=True)
    with pytest.raises(UserError, match="is a file; name a folder"):
        taught("vgg", tmp_path / "README.md", overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("option", ["start_from", "distil_from"])
def test_a_teacher_does_not_replace_the_one_it_learns_from(tmp_path, taught_vgg, option):
    folder = shutil.copytree(taught_vgg, tmp_path / "older")
    before = contents(folder)
    with pytest.raises(UserError, match="which the new teacher learns from"):
        taught("vgg", folder, overwrite=True, **{option: str(folder)})
    assert contents(folder) == before


@pytest.mark.parametrize(("backbone", "other"), [("vgg", "vit_folder"), ("vit", "taught_vgg")])
def test_starting_from_another_architecture_is_refused(tmp_path, request, backbone, other):
    with pytest.raises(UserError):
        taught(backbone, tmp_path, start_from=str(request.getfixturevalue(other)))
    assert not list(tmp_path.iterdir())


def test_a_guide_without_the_right_patches_is_refused(tmp_path, vit_teacher, vit_folder):
    with pytest.raises(UserError, match="its last maps are not 8×8 and 4×4"):
        taught("vit", tmp_path, distil_from=str(vit_folder))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("argument", "value"), [("backbone", "resnet"), ("dataset", "imagenet")])
def test_unknown_names_list_the_known_ones(tmp_path, argument, value):
    request = {"backbone": "vgg", "dataset": "patterns", argument: value}
    with pytest.raises(UserError, match=f"unknown .* '{value}'; choose one of: "):
        train_teacher(**request, out=tmp_path)


def test_nan_is_a_failure_of_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Classification, "loss", lambda module, pixels, _: module.model(pixels).sum() * float("nan"))
    with pytest.raises(WorkFailed, match="no epoch was finished"):
        taught("vgg", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
