"""Any backbone of timm as a teacher: what is read of it, and what is refused."""

import shutil

import pytest
import timm
import torch
from helpers.miniatures import TinyTask, save_timm_weights
from torch.nn.functional import normalize

from kdad.data.preprocessing import Preprocessing
from kdad.detection.detector import Detector
from kdad.networks.recipes import Recipe
from kdad.networks.students import build_student, preset
from kdad.networks.teachers import timm_backbones
from kdad.networks.teachers.loading import load_teacher
from kdad.networks.teachers.registry import default_image_size
from kdad.networks.teachers.timm_backbones import TimmFeatures, timm_pixels
from kdad.training.distillation import train_student

QUICK = Recipe(epochs=1, batch_size=16, mse_weight=0.0)
FAMILIES = ("test_resnet", "test_convnext", "test_byobnet", "test_efficientnet", "test_vit", "test_mambaout")


def features_of(teacher, count=2):
    image_size = teacher.preprocessing.crop[0]
    return teacher(torch.randn(count, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module", params=[name for name in FAMILIES if timm.is_model(name)])
def any_teacher(request, tmp_path_factory):
    file = save_timm_weights(tmp_path_factory.mktemp("timm") / "weights.safetensors", request.param)
    return load_teacher(f"timm:{request.param}@{file}")


def test_shapes_are_what_the_grids_say_and_the_student_has_the_same(any_teacher):
    student = build_student(preset(any_teacher)[0]).eval()
    image_size = any_teacher.preprocessing.crop[0]
    features, copied = features_of(any_teacher), student(torch.randn(2, 3, image_size, image_size))
    assert [layer.shape[1] - any_teacher.prefix for layer in features] == [h * w for h, w in any_teacher.grids]
    assert [layer.shape for layer in copied] == [layer.shape for layer in features]
    assert student.grids(image_size, image_size) == any_teacher.grids


def test_layers_hold_what_the_model_itself_computes(timm_teacher, timm_file):
    model = timm.create_model("test_resnet", pretrained_cfg_overlay={"file": str(timm_file)}, pretrained=True).eval()
    pixels = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        final, maps = model.forward_intermediates(pixels)
        read = timm_teacher(pixels)
    for layer, expected in zip(read, [maps[2], maps[3], final], strict=True):
        torch.testing.assert_close(layer, expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)
    assert timm_teacher.layers == ("layer2", "layer3", "final")


def test_layers_can_be_chosen_and_a_student_follows(timm_file):
    teacher = load_teacher(f"timm:test_resnet@{timm_file}", image_size=64, layers=["layer1", "layer2", "layer4"])
    assert teacher.grids == [(16, 16), (8, 8), (2, 2)]
    assert preset(teacher)[0] == {"kind": "conv", "strides": [4, 8, 32], "channels": [32, 48, 96]}


def test_the_final_layer_alone_will_do(timm_file):
    teacher = load_teacher(f"timm:test_resnet@{timm_file}", image_size=64, layers=["final"])
    assert [layer.shape for layer in features_of(teacher)] == [(2, 4, 96)]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["layer9"], "its layers are: act1, layer1, layer2, layer3, layer4, final"),
        (["layer3", "layer2"], "from fine to coarse"),
        (["layer2", "layer2"], "each once"),
    ],
)
def test_layers_that_are_not_there_or_out_of_order_are_refused(layers, message, timm_file, refusal):
    assert message in refusal(load_teacher, f"timm:test_resnet@{timm_file}", layers=layers)


@pytest.mark.parametrize(("model", "image_size", "message"), [
    ("test_resnet", 100, "multiples of 32, not 100"), ("test_vit", 100, "multiples of 16, not 100"),
    ("test_resnet", (64, 100), "multiples of 32, not 64×100"),
])  # fmt: skip
def test_a_side_that_does_not_fit_is_refused(model, image_size, message, tmp_path, refusal):
    file = save_timm_weights(tmp_path / "weights.safetensors", model)
    assert message in refusal(load_teacher, f"timm:{model}@{file}", image_size=image_size)


def test_a_transformer_takes_another_side_by_resampled_positions(tmp_path):
    file = save_timm_weights(tmp_path / "weights.safetensors", "test_vit")
    small, usual = (load_teacher(f"timm:test_vit@{file}", image_size=image_size) for image_size in (96, None))
    assert (small.grids[0], usual.grids[0]) == ((6, 6), (10, 10))
    assert small.prefix == usual.prefix == 1
    assert small.network.model.pos_embed.shape[1] == 37
    assert preset(small)[0] | {"size": 0} == {
        "kind": "vit", "size": 0, "patch": 16, "prefix": 1, "teacher_width": 64, "width": 56, "hidden": 112,
        "heads": 4, "dropout": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["cait_xxs24_224", "mixer_s32_224"])
def test_transformers_that_give_their_patches_alone_can_be_read(name):
    network = TimmFeatures(timm.create_model(name), (), (224, 224))
    assert network.prefix == 0
    assert len(network.channels) == 4 and len(set(network.channels)) == 1


def test_students_of_transformers_read_squares(tmp_path, refusal):
    file = save_timm_weights(tmp_path / "weights.safetensors", "test_vit")
    oblong = load_teacher(f"timm:test_vit@{file}", image_size=(64, 96))
    assert oblong.grids[0] == (4, 6)
    assert "not 64×96 px: give one --image-size" in refusal(preset, oblong)


def test_the_final_layer_is_what_the_classifier_reads_most(monkeypatch, timm_file):
    """A change of the final features that the classifier does not see must not show."""
    monkeypatch.setattr(timm_backbones, "MAX_FINAL_CHANNELS", 16)
    model = timm.create_model("test_resnet", pretrained_cfg_overlay={"file": str(timm_file)}, pretrained=True)
    network = TimmFeatures(model, (), (64, 64))
    assert "projection" in dict(network.named_buffers())  # it moves with the network
    assert network.channels == (48, 192, 16)
    weight = model.fc.weight.detach().double()
    largest = torch.linalg.svd(weight, full_matrices=False).Vh[:16].float()
    torch.testing.assert_close(network.projection.T @ network.projection, torch.eye(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(network.projection @ network.projection.T, largest.T @ largest, atol=1e-4, rtol=0)
    assert (network.projection.gather(0, network.projection.abs().argmax(0)[None]) > 0).all()  # a sign on every machine


def test_the_summary_leaves_the_outermost_patches_out_and_has_length_one(timm_teacher):
    features = features_of(timm_teacher)
    grid = features[-1].unflatten(1, (3, 3))
    torch.testing.assert_close(timm_teacher.network.summary(features), normalize(grid[:, 1, 1], dim=1))


def test_pixels_are_what_the_model_asks_for():
    config = {"input_size": (3, 224, 224), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bicubic"}
    expected = Preprocessing(224, 224, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    assert timm_pixels(config, None) == expected
    assert timm_pixels(config, 320).crop == timm_pixels(config, 320).resize == (320, 320)


def test_lite0_is_here_with_the_package_and_reads_data_sets_at_sides_of_their_own():
    sizes = (default_image_size("lite0-imagenet", dataset) for dataset in ("cifar10", "folder:screws"))
    small, large = (load_teacher("lite0-imagenet", image_size=size) for size in sizes)
    assert (small.preprocessing.resize, large.preprocessing.resize) == ((160, 160), (256, 256))
    assert (small.trained_on, small.layers) == (("imagenet-1k",), ("blocks.2", "blocks.4", "final"))
    assert small.network.channels == (40, 112, 512)
    assert large.grids == [(32, 32), (16, 16), (8, 8)]
    assert load_teacher("lite0-imagenet", image_size=64).grids[-1] == (2, 2)


@pytest.mark.parametrize("options", [{"image_size": 64}, {"layers": ["x"]}])
def test_other_teachers_have_one_side_and_layers_of_their_own(options, vgg_folder, refusal):
    assert "--image-size and --layers are for lite0-imagenet and timm:NAME" in refusal(
        load_teacher, str(vgg_folder), **options
    )


def test_a_student_finds_its_teacher_where_its_file_was_with_its_side_and_layers(timm_teacher, tmp_path):
    images = TinyTask().calibration[:4]
    folder = train_student(TinyTask(), timm_teacher, tmp_path, recipe=QUICK, device="cpu")
    assert folder.parent.name == "timm-test_resnet"
    detector = Detector.load(folder, device="cpu")
    assert detector.config.teacher == "timm:test_resnet"
    assert detector.teacher.preprocessing == timm_teacher.preprocessing
    again = Detector.load(folder, teacher=timm_teacher, device="cpu").predict(images)
    assert (detector.predict(images).score == again.score).all()


def test_a_student_of_other_layers_is_refused(timm_teacher, timm_file, tmp_path, refusal):
    folder = train_student(TinyTask(), timm_teacher, tmp_path, recipe=QUICK, device="cpu")
    other = load_teacher(f"timm:test_resnet@{timm_file}", image_size=96, layers=["layer2", "layer3", "layer4"])
    assert "load it with these layers" in refusal(Detector.load, folder, teacher=other, device="cpu")
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "local.json").unlink()
    assert "timm:test_resnet" in refusal(Detector.load, moved, device="cpu")
