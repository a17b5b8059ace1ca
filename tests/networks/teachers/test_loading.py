import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.miniatures import PREPROCESSING, save_vgg_teacher
from safetensors.torch import load_file, save_file

from kdad.devices import accelerator
from kdad.networks.teachers.loading import load_teacher, vgg16_sha256_prefix
from kdad.networks.teachers.provenance import label_overlap
from kdad.networks.teachers.registry import IMAGENET_MEAN, IMAGENET_STD, TEACHERS, available, teacher_slug

SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
SIZES = {"image_size": 32, "patch_size": 8}
CHECKPOINT = "pytorch_model.bin"


class Bomb:
    """Unpickled by a careless reader, it leaves a folder behind."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def save_family_member(kind: str, folder: Path, processor: dict) -> Path:
    """A tiny random transformers model of the ViT family with its processor's configuration."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL, **SIZES)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def as_pytorch_checkpoint(folder: Path, copy: Path) -> Path:
    """The same model, its weights in the older format only."""
    shutil.copytree(folder, copy)
    torch.save(load_file(copy / "model.safetensors"), copy / CHECKPOINT)
    (copy / "model.safetensors").unlink()
    return copy


def random_pixels(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def assert_same_features(teacher, other):
    pixels = random_pixels(teacher.preprocessing.crop[0])
    for read, expected in zip(teacher(pixels), other(pixels), strict=True):
        assert torch.equal(read, expected)


# vgg16-imagenet


def vgg16_file(folder: Path) -> Path:
    """A VGG-16 state dict of full shapes in a small file: all tensors are overlapping views of one storage."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vgg16().state_dict().items()}
    storage = 0.03 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    strides = {4: (97, 89, 3, 1), 2: (13, 1), 1: (1,)}
    state = {name: storage.as_strided(shape, strides[len(shape)]) for name, shape in shapes.items()}
    folder.mkdir()
    torch.save(state, folder / "vgg16.pth")
    digest = hashlib.sha256((folder / "vgg16.pth").read_bytes()).hexdigest()
    return (folder / "vgg16.pth").rename(folder / f"vgg16-{digest[:8]}.pth")


@pytest.fixture
def vgg16_url(hub, tmp_path, monkeypatch):
    """torchvision's weights, as a file on the local server; returns that file."""
    from torchvision.models import VGG16_Weights

    file = vgg16_file(tmp_path / "made")
    folder = hub.add("torch/weights", {file.name: file.read_bytes()})
    url = f"{hub.endpoint}/torch/weights/resolve/main/{file.name}"
    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1.value, "url", url)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return folder / file.name


def torch_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def test_vgg16_is_fetched_once_and_prepared_as_published(vgg16_url, hub, capsys):
    teacher = load_teacher("vgg16-imagenet")
    assert (teacher.name, teacher.trained_on, teacher.prefix) == ("vgg16-imagenet", ("imagenet-1k",), 0)
    assert teacher.sha256 == hashlib.sha256(vgg16_url.read_bytes()).hexdigest()
    prepared = teacher.preprocessing
    assert (prepared.resize, prepared.crop, prepared.interpolation) == ((256, 256), (224, 224), "lanczos")
    assert (prepared.mean, prepared.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert [(read.shape[1], read.shape[2]) for read in teacher(random_pixels(224)[:1])] == [
        (56 * 56, 128), (28 * 28, 256), (14 * 14, 512), (7 * 7, 512),
    ]  # fmt: skip
    requests = len(hub.requests)
    load_teacher("vgg16-imagenet")
    assert len(hub.requests) == requests
    assert capsys.readouterr().out == "", "standard output belongs to the command's own result"


def test_vgg16_reads_the_weights_of_the_file(vgg16_url):
    teacher, state = load_teacher("vgg16-imagenet"), torch.load(vgg16_url, weights_only=True)
    convolutions = [layer for layer in teacher.network.features if isinstance(layer, torch.nn.Conv2d)]
    stored = [state[name] for name in state if name.startswith("features.") and name.endswith(".weight")]
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(convolutions, stored, strict=True))


def test_vgg16_of_another_hash_is_refused(vgg16_url, refusal):
    vgg16_url.write_bytes(vgg16_url.read_bytes() + b"\0")
    assert "hash" in refusal(load_teacher, "vgg16-imagenet")
    assert not list(torch_cache().iterdir())


def test_vgg16_cut_off_while_downloading_is_refused(vgg16_url, hub, refusal):
    hub.cut_off.add(vgg16_url.name)
    assert "'vgg16-imagenet' could not be fetched" in refusal(load_teacher, "vgg16-imagenet")
    assert not list(torch_cache().iterdir())


def test_vgg16_without_a_network_says_where_to_put_the_file(vgg16_url, hub, refusal):
    vgg16_url.unlink()
    hub.shutdown()
    hub.server_close()
    message = refusal(load_teacher, "vgg16-imagenet")
    assert f"put {vgg16_url.name} into {torch_cache()}" in message


@pytest.mark.parametrize("damage", ["truncated", "another file", "bomb"])
def test_vgg16_damaged_in_the_cache_is_refused_by_name(vgg16_url, tmp_path, refusal, damage):
    torch_cache().mkdir(parents=True)
    cached = torch_cache() / vgg16_url.name
    if damage == "truncated":
        cached.write_bytes(vgg16_url.read_bytes()[:1000])
    elif damage == "another file":
        torch.save({name: t + 1 for name, t in torch.load(vgg16_url).items() if t.ndim == 1}, cached)
    else:
        torch.save({"features.0.weight": Bomb(tmp_path / "trace")}, cached)
    message = refusal(load_teacher, "vgg16-imagenet")
    assert f"remove {cached}" in message
    assert not (tmp_path / "trace").exists()


def test_torchvision_names_the_hash_of_its_vgg16():
    assert vgg16_sha256_prefix() == "397923af"


# vit-base-cifar10


@pytest.fixture
def seed_vit(hub, vit_folder, tmp_path):
    """A tiny ViT under the preset's own id, in the form that repository has: an older checkpoint and processor."""
    folder = as_pytorch_checkpoint(vit_folder, tmp_path / "seed-vit")
    processor = {"do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor", "size": 32}
    colours = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **colours}))
    hub.add_folder(TEACHERS["vit-base-cifar10"].place, folder)
    return folder


def test_vit_base_cifar10_takes_its_own_colours_and_leaves_room_to_crop(seed_vit, vit_teacher):
    teacher = load_teacher("vit-base-cifar10")
    prepared = teacher.preprocessing
    assert (prepared.mean, prepared.std, prepared.interpolation) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bilinear")
    assert (prepared.resize, prepared.crop) == ((37, 37), (32, 32))  # 256 : 224
    assert (teacher.name, teacher.trained_on) == ("vit-base-cifar10", ("imagenet-21k", "cifar10"))
    assert teacher.sha256 == hashlib.sha256((seed_vit / CHECKPOINT).read_bytes()).hexdigest()
    assert_same_features(teacher, vit_teacher)


def test_vit_base_cifar10_is_read_from_the_cache_without_a_network(seed_vit, hub):
    fetched = load_teacher("vit-base-cifar10")
    hub.shutdown()
    hub.server_close()
    assert_same_features(load_teacher("vit-base-cifar10"), fetched)


# Any ViT-family model

PLAIN = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
CROPPED = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
FAMILY = {
    "ViT": (PLAIN, 1, (32, "bilinear")),
    "DeiT": ({**PLAIN, "size": 36, "crop_size": 32, "do_center_crop": True, "resample": 3}, 2, (36, "bicubic")),
    "Dinov2": ({**PLAIN, **CROPPED, "resample": 1}, 1, (40, "lanczos")),
}


@pytest.mark.parametrize("kind", FAMILY)
def test_family_members_load_alike_from_a_folder_and_from_the_hub(kind, hub, tmp_path):
    processor, prefix, (resize, interpolation) = FAMILY[kind]
    folder = save_family_member(kind, tmp_path / "model", processor)
    hub.add_folder("someone/model", folder)
    local, fetched = load_teacher(str(folder)), load_teacher("someone/model")
    assert (local.prefix, local.grids) == (prefix, [(4, 4)] * 4)
    prepared = local.preprocessing
    assert (prepared.resize, prepared.crop, prepared.interpolation) == ((resize, resize), (32, 32), interpolation)
    assert (local.trained_on, fetched.trained_on) == (("unknown",), ("unknown",))
    assert (local.name, fetched.name) == (str(folder), "someone/model")
    assert local.sha256 == fetched.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert_same_features(fetched, local)


def test_weights_split_over_several_files_are_fetched_together(hub, vit_folder, vit_teacher, tmp_path):
    from transformers import ViTModel

    folder = tmp_path / "split"
    shutil.copytree(vit_folder, folder)
    (folder / "model.safetensors").unlink()
    ViTModel.from_pretrained(vit_folder).save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    hub.add_folder("someone/split", folder)
    assert_same_features(load_teacher("someone/split"), vit_teacher)


def test_a_folder_may_say_what_it_was_trained_on(vit_folder, tmp_path):
    folder = tmp_path / "with-card"
    shutil.copytree(vit_folder, folder)
    (folder / "teacher.json").write_text(json.dumps({"trained_on": ["cifar10"]}))
    assert load_teacher(str(folder)).trained_on == ("cifar10",)


def test_a_relative_folder_is_remembered_by_its_whole_path(vgg_folder, monkeypatch):
    monkeypatch.chdir(vgg_folder.parent)
    assert load_teacher(vgg_folder.name).name == str(vgg_folder)
    assert teacher_slug(str(vgg_folder)) == vgg_folder.name
    assert teacher_slug("owner/model") == "owner--model"


def test_code_hidden_in_a_pytorch_checkpoint_does_not_run(vit_folder, tmp_path, refusal):
    folder = as_pytorch_checkpoint(vit_folder, tmp_path / "hostile")
    torch.save({"embeddings.cls_token": Bomb(tmp_path / "trace")}, folder / CHECKPOINT)
    assert "no loadable transformers model" in refusal(load_teacher, str(folder))
    assert not (tmp_path / "trace").exists()


# What cannot be loaded


def test_a_repository_that_does_not_exist(hub, refusal):
    assert "'nobody/nothing' could not be fetched from the Hub" in refusal(load_teacher, "nobody/nothing")


def test_a_repository_without_a_model(hub, refusal):
    hub.add("someone/empty", {"README.md": b"nothing here"})
    assert "no config.json" in refusal(load_teacher, "someone/empty")


@pytest.mark.parametrize("weights", ["model.safetensors", CHECKPOINT])
def test_weights_cut_off_while_downloading_are_refused_and_fetched_anew(weights, hub, vit_folder, tmp_path, refusal):
    folder = as_pytorch_checkpoint(vit_folder, tmp_path / "older") if weights == CHECKPOINT else vit_folder
    hub.add_folder("someone/vit", folder)
    hub.cut_off.add(weights)
    assert "'someone/vit' could not be fetched" in refusal(load_teacher, "someone/vit")
    hub.cut_off.clear()
    assert_same_features(load_teacher("someone/vit"), load_teacher(str(folder)))


def test_no_network(no_network, refusal):
    message = refusal(load_teacher, "vit-base-cifar10")
    assert "could not be fetched" in message
    assert "network" in message


def test_an_unknown_name_lists_the_known_ones(refusal):
    message = refusal(load_teacher, "resnet")
    assert all(name in message for name in available())
    assert available() == list(TEACHERS)


def test_a_folder_that_is_no_model(tmp_path, refusal):
    assert "no config.json" in refusal(load_teacher, str(tmp_path))


def test_a_missing_folder_is_not_looked_for_on_the_hub(hub, tmp_path, refusal):
    assert "unknown teacher" in refusal(load_teacher, str(tmp_path / "gone"))
    assert "unknown teacher" in refusal(load_teacher, "./gone")
    assert not hub.requests


@pytest.mark.parametrize(
    "content",
    [None, "{", "[]", "{}", '{"size": 32}', '{"size": {"width": 32}, "image_mean": [0.5], "image_std": [0.5]}',
     '{"size": 32, "do_center_crop": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}',
     '{"size": "big", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}',
     '{"size": 32, "image_mean": "grey", "image_std": [0.5, 0.5, 0.5]}'],
)  # fmt: skip
def test_a_missing_or_damaged_processor_is_named(content, vit_folder, tmp_path, refusal):
    folder = tmp_path / "vit"
    shutil.copytree(vit_folder, folder)
    (folder / "preprocessor_config.json").unlink()
    if content is not None:
        (folder / "preprocessor_config.json").write_text(content)
    assert "preprocessor_config.json" in refusal(load_teacher, str(folder))


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"preprocessing": {"resize": 32}}'])
def test_a_missing_or_damaged_card_of_a_compact_teacher_is_named(content, tmp_path, refusal):
    folder = save_vgg_teacher(tmp_path / "vgg")
    (folder / "teacher.json").unlink()
    if content is not None:
        (folder / "teacher.json").write_text(content)
    assert "teacher.json" in refusal(load_teacher, str(folder))


@pytest.mark.parametrize("content", ["{", "[]", "\0", '{"model_type": "no-such-model"}', '{"model_type": ["vit"]}'])
def test_a_damaged_configuration_is_refused(content, vit_folder, tmp_path, refusal):
    folder = tmp_path / "vit"
    shutil.copytree(vit_folder, folder)
    (folder / "config.json").write_text(content)
    assert str(folder) in refusal(load_teacher, str(folder))


def test_weights_that_do_not_fit_are_refused(vit_folder, tmp_path, refusal):
    weights = load_file(vit_folder / "model.safetensors")
    name = "embeddings.patch_embeddings.projection.weight"
    for damaged in ({k: t for k, t in weights.items() if k != name}, {**weights, name: torch.zeros(3, 3)}):
        folder = tmp_path / str(len(damaged))
        shutil.copytree(vit_folder, folder)
        save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})
        assert str(folder) in refusal(load_teacher, str(folder))


def test_truncated_weights_are_refused(vit_folder, vgg_folder, tmp_path, refusal):
    for source in (vit_folder, vgg_folder):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
        assert str(folder) in refusal(load_teacher, str(folder))


# The frozen teacher


@pytest.mark.parametrize("teacher", ["vgg_teacher", "vit_teacher"])
def test_a_teacher_is_frozen(teacher, request):
    teacher = request.getfixturevalue(teacher)
    assert not any(module.training for module in teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    pixels = random_pixels(32).requires_grad_()
    assert not any(read.requires_grad for read in teacher.to("cpu")(pixels))
    assert not any(module.training for module in teacher.network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.network.state_dict().items())


def test_compact_teacher_uses_its_card(vgg_folder, vgg_teacher):
    assert (vgg_teacher.preprocessing, vgg_teacher.trained_on) == (PREPROCESSING, ("cifar10",))
    assert vgg_teacher.sha256 == hashlib.sha256((vgg_folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("trained_on", "dataset", "overlap"),
    [
        (("cifar10",), "cifar10", "same"),
        (("imagenet-21k", "cifar10"), "cifar10", "same"),
        (("imagenet-1k",), "cifar10", "related"),
        (("tiny-imagenet-32",), "cifar10", "related"),
        (("imagenet-1k",), "fashion-mnist", "related"),
        (("tiny-imagenet-32", "cifar10"), "mnist", "none"),
        (("imagenet-1k",), "patterns", "none"),
        (("cifar10",), "fashion-mnist", "none"),
        (("unknown",), "cifar10", "unknown"),
        (("unknown", "imagenet-1k"), "cifar10", "related"),
        (("imagenet-1k",), "folder:screws", "unknown"),
    ],
)
def test_label_overlap(trained_on, dataset, overlap):
    assert label_overlap(trained_on, dataset) == overlap


def test_features_are_the_same_whatever_precision_surrounds_the_teacher(vgg_teacher, vit_teacher):
    """The same run has the same targets, whether they were remembered before training or are computed in it."""
    pixels = random_pixels(32)
    for teacher in (vgg_teacher, vit_teacher):
        alone = teacher(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            surrounded = teacher(pixels)
        for one, other in zip(alone, surrounded, strict=True):
            assert other.dtype == torch.float32
            assert torch.equal(one, other)


def test_choosing_a_device_changes_no_setting_of_the_process(vgg_teacher):
    before = torch.backends.cudnn.allow_tf32
    try:
        for setting in (True, False):
            torch.backends.cudnn.allow_tf32 = setting
            accelerator("auto")
            vgg_teacher(random_pixels(32))
            assert torch.backends.cudnn.allow_tf32 is setting
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_a_teacher_that_a_stranger_names_is_not_fetched_unless_allowed(no_network, refusal):
    message = refusal(load_teacher, "nobody/nothing", allow_download=False)
    assert "'nobody/nothing', is not on this machine: say where with --teacher FOLDER" in message
    assert "could not be fetched" in refusal(load_teacher, "nobody/nothing")


def test_a_teacher_on_this_machine_needs_no_permission(vgg_folder):
    assert load_teacher(str(vgg_folder), allow_download=False).sha256 == load_teacher(str(vgg_folder)).sha256
