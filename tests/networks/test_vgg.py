import json
from itertools import chain

import pytest
import torch
from helpers.miniatures import PREPROCESSING
from safetensors.torch import load_file, save_file
from torch import nn

from kdad.errors import UserError
from kdad.networks.students import build_student, preset
from kdad.networks.teachers.loading import Teacher
from kdad.networks.vgg import (
    COMPACT_BLOCKS,
    CompactVGG,
    ConvStack,
    compact_layers,
    imagenet_vgg16,
    paper_student,
    tokens,
)


def compact_stack() -> ConvStack:
    torch.manual_seed(0)
    return ConvStack(*compact_layers(COMPACT_BLOCKS)).eval()


def vgg16_stack() -> ConvStack:
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    return imagenet_vgg16(make_layers(cfgs["D"])).eval()


def maps_layer_by_layer(stack: ConvStack, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The output of every layer, copied before an in-place layer can change it."""
    maps, x = [], pixels
    for layer in stack.features:
        x = layer(x.clone())
        maps.append(x.clone())
    return maps


@torch.no_grad()
def assert_reads_its_taps(stack: ConvStack, pixels: torch.Tensor):
    maps = maps_layer_by_layer(stack, pixels)
    for read, tap in zip(stack(pixels), stack.taps, strict=True):
        torch.testing.assert_close(read, tokens(maps[tap]))


def test_compact_taps_are_the_last_relu_before_each_pool():
    layers, taps = compact_layers(COMPACT_BLOCKS)
    assert len(taps) == 4
    assert all(isinstance(layers[tap], nn.ReLU) and isinstance(layers[tap + 1], nn.MaxPool2d) for tap in taps)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in layers) == 4
    assert_reads_its_taps(compact_stack(), torch.randn(2, 3, 32, 32))


def test_vgg16_is_read_at_pools_two_to_five():
    stack = vgg16_stack()
    assert stack.taps == (9, 16, 23, 30)
    assert all(isinstance(stack.features[tap], nn.MaxPool2d) for tap in stack.taps)
    assert_reads_its_taps(stack, torch.randn(1, 3, 32, 32))


def test_paper_student_copies_the_shapes_of_vgg16():
    pixels = torch.randn(1, 3, 64, 64)
    student, teacher = paper_student().eval(), vgg16_stack()
    assert_reads_its_taps(student, pixels)
    assert all(isinstance(student.features[tap], nn.MaxPool2d) for tap in student.taps)
    with torch.no_grad():
        assert [s.shape for s in student(pixels)] == [t.shape for t in teacher(pixels)]
    assert student.grids(64, 64) == teacher.grids(64, 64) == [(16, 16), (8, 8), (4, 4), (2, 2)]


# (number, output channels) in `features`, counted by hand along the published channel list
# 16-16-M-16-128-M-16-16-256-M-16-16-512-M-16-16-512-M.
PAPER_CONVOLUTIONS = {
    0: 16, 3: 16,
    6: 16, 9: 128,
    12: 16, 15: 16, 18: 256,
    21: 16, 24: 16, 27: 512,
    30: 16, 33: 16, 36: 512,
}  # fmt: skip
PAPER_NORMS = {1: 16, 7: 16, 13: 16, 16: 16, 22: 16, 25: 16, 31: 16, 34: 16}


def test_paper_student_has_the_published_numbering():
    features = paper_student().features
    convolutions = {i: layer.out_channels for i, layer in enumerate(features) if isinstance(layer, nn.Conv2d)}
    norms = {i: layer.num_features for i, layer in enumerate(features) if isinstance(layer, nn.BatchNorm2d)}
    assert (convolutions, norms) == (PAPER_CONVOLUTIONS, PAPER_NORMS)
    assert [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)] == [5, 11, 20, 29, 38]


def test_paper_student_state_dict_has_the_published_keys():
    weights = {f"features.{i}.weight" for i in (*PAPER_CONVOLUTIONS, *PAPER_NORMS)}
    statistics = ("bias", "running_mean", "running_var", "num_batches_tracked")
    assert set(paper_student().state_dict()) == weights | {
        f"features.{i}.{name}" for i in PAPER_NORMS for name in statistics
    }


def test_tokens_are_rows_of_the_map():
    feature_map = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert tokens(feature_map).shape == (2, 20, 3)
    assert torch.equal(tokens(feature_map)[1, 2 * 5 + 3], feature_map[1, :, 2, 3])


def test_tokens_of_a_channels_last_map_share_its_memory():
    feature_map = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert tokens(feature_map).data_ptr() == feature_map.data_ptr()


@pytest.mark.parametrize("stack", [compact_stack, paper_student])
def test_features_stay_channels_last_through_the_stack(stack):
    with torch.no_grad():
        assert all(read.is_contiguous() for read in stack()(torch.randn(2, 3, 32, 32)))


def test_layers_after_the_last_tap_are_cut_off():
    assert isinstance(compact_stack().features[-1], nn.ReLU)


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_grids_tell_the_token_count(size):
    stack = compact_stack()
    with torch.no_grad():
        counts = [read.shape[1] for read in stack(torch.randn(1, 3, *size))]
    assert counts == [h * w for h, w in stack.grids(*size)]


def test_compact_student_matches_its_teacher_and_fits_the_budget():
    student = build_student({"kind": "compact-vgg", "inner": 16}).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert [s.shape for s in student(pixels)] == [t.shape for t in compact_stack()(pixels)]
    assert sum(t.numel() for t in student.state_dict().values()) * 2 <= 350_000
    widths = [layer.out_channels for layer in student.features if isinstance(layer, nn.Conv2d)]
    assert widths == [16, 64, 16, 128, 16, 256, 16, 256]


def test_a_teacher_of_other_widths_is_loaded_as_it_was_saved_and_copied_by_a_student_of_them(tmp_path):
    blocks = ((4, 8), (8, 16), (16, 24), (24, 32))
    CompactVGG(5, blocks).save(tmp_path, PREPROCESSING)
    teacher = CompactVGG.load(tmp_path).stack
    assert [layer.out_channels for layer in teacher.features if isinstance(layer, nn.Conv2d)] == list(chain(*blocks))
    assert teacher.channels == (8, 16, 24, 32)
    student = build_student(preset(Teacher("narrow", "", (), PREPROCESSING, teacher))[0]).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert [s.shape for s in student(pixels)] == [t.shape for t in teacher(pixels)]


def test_compact_teacher_fits_the_budget():
    assert sum(p.numel() for p in CompactVGG(10).parameters()) <= 2_400_000


def test_maps_and_logits_belong_to_one_forward_pass():
    model = CompactVGG(7).eval()
    with torch.no_grad():
        pixels, squares = torch.randn(2, 3, 32, 32), torch.tensor([[0, 6], [15, 1]])
        maps, logits = model.maps_and_logits(pixels, squares)
        fine, coarse = model.stack(pixels)[-2:]
    # Square 6 of 4×4 is row 1, column 2: rows 2, 3 and columns 4, 5 of 8×8.
    torch.testing.assert_close(maps[0][0], fine[0, [0, 1, 8, 9, 20, 21, 28, 29]])
    torch.testing.assert_close(maps[1], torch.stack([coarse[0, [0, 6]], coarse[1, [15, 1]]]))
    assert logits.shape == (2, 7)


def test_saved_teacher_loads_equal_to_half_precision(tmp_path):
    torch.manual_seed(1)
    model = CompactVGG(5)
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))  # moves the batch norms' statistics
    model.save(tmp_path, PREPROCESSING)
    loaded = CompactVGG.load(tmp_path)
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(loaded.state_dict()[name], expected), name
    pixels = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), model.eval()(pixels), atol=5e-3, rtol=5e-3)


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("head.weight")
    save_file(weights, folder / "model.safetensors")


DAMAGE = {
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "truncated weights": truncate,
    "a missing tensor": drop_a_weight,
    "no config": lambda folder: (folder / "config.json").unlink(),
    "config that is no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config that is no object": lambda folder: (folder / "config.json").write_text("[]"),
    "config without its fields": lambda folder: (folder / "config.json").write_text("{}"),
    "another number of classes": lambda folder: (folder / "config.json").write_text(json.dumps({"num_labels": 3})),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_teacher_is_one_clear_line(damage, tmp_path):
    CompactVGG(2).save(tmp_path, PREPROCESSING)
    damage(tmp_path)
    with pytest.raises(UserError, match="damaged") as error:
        CompactVGG.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
