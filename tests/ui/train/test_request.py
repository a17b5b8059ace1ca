"""A training as it is asked for: its command, and what stands in its way."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from kdad import cli
from kdad.jobs import manager, status
from kdad.networks.recipes import COMPACT_VGG, with_overrides
from kdad.storage import student_folder as store
from ui.train import request
from ui.train.request import Request, obstacle, refusal, teacher_named, unmet

REQUEST = Request("patterns", "dots", "vgg-cifar10", COMPACT_VGG, epochs=4, batch_size=64, learning_rate=3e-3)


@pytest.fixture(autouse=True)
def root(monkeypatch, tmp_path):
    monkeypatch.setenv("KDAD_STUDENTS", str(tmp_path))
    monkeypatch.delenv("KDAD_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return tmp_path


def parsed(request: Request):
    return cli.build_parser().parse_args(request.arguments)


def test_the_command_line_understands_a_request(root):
    args = parsed(replace(REQUEST, epochs=7, learning_rate=1e-4, seed=3, device="cpu", overwrite=True))
    assert (args.dataset, args.normal_class, args.teacher, args.out) == ("patterns", "dots", "vgg-cifar10", str(root))
    assert (args.epochs, args.learning_rate, args.seed, args.device, args.overwrite) == (7, 1e-4, 3, "cpu", True)


def test_what_follows_the_preset_is_left_to_it():
    args = parsed(REQUEST)
    assert (args.epochs, args.batch_size, args.learning_rate, args.overwrite) == (None, None, None, False)
    assert args.tile_size is None


@pytest.mark.parametrize("tile_size", [0, 256])
def test_whole_images_and_tiles_can_be_asked_for(tile_size):
    assert parsed(replace(REQUEST, tile_size=tile_size)).tile_size == tile_size


def test_a_request_leads_to_the_folder_that_training_makes(root):
    expected = store.student_folder(root, "patterns", "vgg-cifar10", "dots", 3)
    assert replace(REQUEST, seed=3).folder == expected.resolve()


@pytest.mark.parametrize("typed", [None, "", "  "])
def test_a_teacher_without_a_name_is_refused(typed):
    assert "Choose a teacher" in refusal(replace(REQUEST, teacher=teacher_named(typed)))


@pytest.mark.parametrize("typed", ["{}/teacher", "{}/../x", "~/x", "timm:resnet18@{}/w.safetensors", "\\\\host\\share"])
def test_a_teacher_elsewhere_is_for_who_may_read_it(tmp_path, monkeypatch, refusal, typed):
    monkeypatch.setenv("KDAD_FOLDERS", str(tmp_path / "allowed"))
    assert "KDAD_FOLDERS" in refusal(teacher_named, typed.format(tmp_path))
    assert teacher_named("timm:resnet18") == "timm:resnet18"
    assert teacher_named(f"timm:resnet18@{tmp_path}/allowed/w").endswith("allowed/w")


def test_a_folder_is_called_by_its_full_path_as_training_does(tmp_path, monkeypatch, vgg_folder, vgg_teacher):
    monkeypatch.setenv("KDAD_FOLDERS", "/")
    monkeypatch.chdir(vgg_folder.parent)
    assert teacher_named(f" ./{vgg_folder.name} ") == vgg_teacher.name
    assert teacher_named("owner/model") == "owner/model"


def test_a_folder_that_is_no_teacher_s_is_named(tmp_path):
    assert "contains no config.json" in unmet(replace(REQUEST, teacher=str(tmp_path)))


def test_a_student_in_training_is_not_trained_twice(monkeypatch):
    assert refusal(REQUEST) is None
    job = manager.Job(REQUEST.folder, (), REQUEST.folder, 0.0, status.Status(), status.QUEUED)
    monkeypatch.setattr(manager, "find_all", lambda _: [job])
    assert "already training" in refusal(REQUEST)
    assert refusal(replace(REQUEST, seed=1)) is None


def left_behind(recipe, tile_size: int = 0) -> None:
    REQUEST.folder.mkdir(parents=True)
    (REQUEST.folder / "config.json").write_text(
        json.dumps({"dataset": "patterns", "recipe": recipe.as_dict(), "tile_size": tile_size})
    )


def test_only_what_would_be_lost_is_an_obstacle():
    assert obstacle(REQUEST) is None
    left_behind(COMPACT_VGG)
    assert obstacle(REQUEST) is None  # it is continued
    assert obstacle(replace(REQUEST, epochs=5)) == "unfinished run with different settings"
    assert obstacle(replace(REQUEST, tile_size=0)) is None
    assert obstacle(replace(REQUEST, tile_size=256)) == "unfinished run with different settings"
    (REQUEST.folder / "model.safetensors").touch()
    assert obstacle(REQUEST) == "finished student"


def test_an_unfinished_run_with_other_knobs_is_continued_by_the_same():
    left_behind(with_overrides(COMPACT_VGG, epochs=9))
    assert obstacle(replace(REQUEST, epochs=9)) is None
    assert obstacle(REQUEST) == "unfinished run with different settings"


def test_a_run_to_which_few_images_have_added_epochs_is_continued(root):
    """The page does not know how many; the job that made it had the same arguments."""
    left_behind(with_overrides(COMPACT_VGG, epochs=12))
    assert obstacle(REQUEST) == "unfinished run with different settings"
    for created, asked in enumerate((replace(REQUEST, seed=3), replace(REQUEST, overwrite=True))):
        job = root / ".jobs" / str(created)
        job.mkdir(parents=True)
        content = {"arguments": asked.arguments, "student": str(asked.folder), "created": created}
        (job / status.REQUEST).write_text(json.dumps(content))
    assert obstacle(REQUEST) is None
    assert obstacle(replace(REQUEST, epochs=5)) == "unfinished run with different settings"


def test_a_damaged_run_must_be_replaced():
    left_behind(COMPACT_VGG)
    (REQUEST.folder / "config.json").write_text("{")
    assert obstacle(REQUEST) == "damaged run"


def test_a_folder_that_is_meant_otherwise_is_refused_before_a_job_starts(tmp_path):
    for kind in ("good", "crack"):
        (tmp_path / "toy" / kind).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "toy" / kind / "0.png")
    assert "are the images in 'crack' normal, too?" in unmet(replace(REQUEST, dataset=f"folder:{tmp_path}/toy"))
    assert unmet(replace(REQUEST, dataset=f"folder:{tmp_path}/toy/good")) is None


def test_what_is_here_needs_no_network(monkeypatch):
    monkeypatch.setattr(request, "hub_reachable", lambda: pytest.fail("asked the network"))
    assert unmet(REQUEST) is None


def test_a_device_that_is_not_here_is_named():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    assert "'cuda' is not available" in unmet(replace(REQUEST, device="cuda"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "cifar10"}, "$KDAD_DATA/cifar10"),
        ({"teacher": "owner/model"}, "owner/model is not on this machine"),
    ],
)
def test_what_cannot_be_fetched_is_named_before_the_start(monkeypatch, changes, said):
    monkeypatch.setattr(request, "hub_reachable", lambda: False)
    assert said in unmet(replace(REQUEST, **changes))
    monkeypatch.setattr(request, "hub_reachable", lambda: True)
    assert unmet(replace(REQUEST, **changes)) is None


def test_a_teacher_nobody_knows_is_named():
    assert "no teacher nonsense" in unmet(replace(REQUEST, teacher="nonsense"))


def test_the_hub_is_reachable_when_it_answers_at_all(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert request.hub_reachable()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not request.hub_reachable()


def test_without_a_network_the_hub_is_not_reachable(no_network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert not request.hub_reachable()
