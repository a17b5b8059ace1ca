"""What is known without loading anything agrees with what loading shows."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.miniatures import ROOT

from kdad.data.datasets import PARQUET, at_hand
from kdad.networks import recipes
from kdad.networks.students import preset
from kdad.networks.teachers import provenance, registry
from kdad.networks.teachers.loading import load_teacher
from kdad.networks.teachers.registry import teacher_facts
from kdad.storage.layout import student_folder
from kdad.training import distillation


@pytest.fixture(autouse=True)
def empty_caches(monkeypatch, tmp_path):
    """No file of any Hub or torch cache is here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.parametrize("kind", ["vgg", "vit"])
def test_the_facts_of_a_folder_are_those_of_the_loaded_teacher(request, kind):
    folder, teacher = request.getfixturevalue(f"{kind}_folder"), request.getfixturevalue(f"{kind}_teacher")
    facts = teacher_facts(str(folder))
    assert facts.trained_on == teacher.trained_on
    assert facts.recipe == preset(teacher)[1]
    assert facts.here
    assert facts.megabytes == pytest.approx((folder / "model.safetensors").stat().st_size / 1e6)


def test_shipped_teachers_are_here_with_their_provenance():
    for name in registry.shipped():
        facts, teacher = teacher_facts(name), load_teacher(name)
        assert facts.here
        assert (facts.trained_on, facts.recipe) == (teacher.trained_on, preset(teacher)[1])


@pytest.mark.parametrize("name", sorted(set(registry.TEACHERS) - {*registry.shipped(), registry.LITE0}))
def test_full_size_teachers_are_not_here_until_they_are_fetched(name):
    facts = teacher_facts(name)
    assert not facts.here
    assert facts.recipe is not None


def test_the_file_of_vgg16_is_torchvision_s(tmp_path):
    from torchvision.models import VGG16_Weights

    assert Path(VGG16_Weights.IMAGENET1K_V1.url).name == registry.VGG16_FILE
    place = tmp_path / "torch" / "hub" / "checkpoints" / registry.VGG16_FILE
    place.parent.mkdir(parents=True)
    place.touch()
    assert teacher_facts("vgg16-imagenet").here


@pytest.mark.parametrize("name", ["", "owner/model", "/no/such/folder", "nonsense"])
def test_of_an_unknown_teacher_nothing_is_claimed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = teacher_facts(name)
    assert (facts.trained_on, facts.recipe) == (provenance.UNKNOWN, None)


def test_a_damaged_teacher_folder_claims_nothing(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "teacher.json").write_text("{")
    assert teacher_facts(str(tmp_path)).trained_on == provenance.UNKNOWN


def test_a_data_set_is_at_hand_when_all_parts_asked_for_are(tmp_path, monkeypatch):
    monkeypatch.setenv("KDAD_DATA", str(tmp_path))
    for part in ("test", "train"):
        assert not at_hand("cifar10", ("train", "test"))
        file = tmp_path / "cifar10" / PARQUET["cifar10"].file(part)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert at_hand("cifar10", ("train", "test"))


def test_a_student_has_one_place():
    assert student_folder(Path("out"), "cifar10", "owner/model", "cat", 2) == Path("out/cifar10/owner--model/cat-seed2")


def test_every_optimizer_and_schedule_of_a_recipe_exists():
    assert set(recipes.OPTIMIZERS) == set(distillation.OPTIMIZERS)
    assert set(recipes.SCHEDULES) == set(distillation.SCHEDULES)


@pytest.mark.parametrize(("pixels", "batch"), [(160**2, 32), (256**2, 32), (384**2, 14), (4096**2, 1)])
def test_batches_of_large_images_are_smaller_and_none_is_larger(pixels, batch):
    recipe = recipes.COMPACT_CONV.within(pixels)
    assert recipe.batch_size == batch
    assert recipe.with_enough_steps(60).epochs * -(-60 // batch) >= recipe.min_steps


def test_none_of_it_needs_torch():
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import kdad.networks.teachers.registry, kdad.storage.history, kdad.jobs.manager, kdad.networks.recipes\n"
        "import ui.train.form, ui.train.job_list, ui.train.student_list, ui.train.request\n"
        "kdad.data.datasets.at_hand('cifar10'), kdad.networks.teachers.registry.teacher_facts('vit-base-cifar10')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
