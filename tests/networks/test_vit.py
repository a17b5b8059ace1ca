import pytest
import torch
from torch import nn

from kdad.errors import UserError
from kdad.networks.students import build_student
from kdad.networks.vit import Block, ViTFeatures, ViTStudent

WIDTH = 32
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
SIZES = {"image_size": 32, "patch_size": 8}


def tiny_model(kind: str, **options):
    """A random model of one family member, its embeddings and norms far from their trivial initial values."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **SIZES, **options})
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def blocks_of(model) -> torch.nn.ModuleList:
    return model.layers if hasattr(model, "layers") else model.encoder.layer


@torch.no_grad()
def residual_stream(model, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The embeddings and what every block hands to the next, by a manual forward pass."""
    states = [model.embeddings(pixels)]
    for block in blocks_of(model):
        states.append(block(states[-1]))
    return states


FAMILY_MEMBERS = {
    "ViT": 1,
    "DeiT": 2,
    "Dinov2": 1,
    "Dinov2WithRegisters": 1 + 4,
    "ViTMSN": 1,
}


@pytest.mark.parametrize(("kind", "prefix"), FAMILY_MEMBERS.items(), ids=FAMILY_MEMBERS.keys())
def test_features_are_the_residual_stream_with_the_right_prefix_and_grid(kind, prefix):
    pixels = torch.randn(2, 3, 32, 32)
    expected = residual_stream(tiny_model(kind), pixels)[1:]
    extractor = ViTFeatures(tiny_model(kind), 32)
    with torch.no_grad():
        features = extractor(pixels)
    assert extractor.prefix == prefix
    assert extractor.grids(32, 32) == [(4, 4)] * 4
    assert [tuple(f.shape) for f in features] == [(2, prefix + 16, WIDTH)] * 4
    for read, state in zip(features, expected, strict=True):
        torch.testing.assert_close(read, state)


def test_a_deeper_model_is_read_after_every_quarter_of_its_blocks():
    pixels = torch.randn(1, 3, 32, 32)
    expected = residual_stream(tiny_model("ViT", num_hidden_layers=12), pixels)
    extractor = ViTFeatures(tiny_model("ViT", num_hidden_layers=12), 32)
    assert extractor.taps == (3, 6, 9, 12)
    with torch.no_grad():
        for read, tap in zip(extractor(pixels), (3, 6, 9, 12), strict=True):
            torch.testing.assert_close(read, expected[tap])


@pytest.mark.parametrize(("kind", "prefix"), FAMILY_MEMBERS.items(), ids=FAMILY_MEMBERS.keys())
def test_an_input_of_another_size_than_trained_is_interpolated(kind, prefix):
    extractor = ViTFeatures(tiny_model(kind), 48)
    with torch.no_grad():
        features = extractor(torch.randn(1, 3, 48, 48))
    assert extractor.prefix == prefix
    assert extractor.grids(48, 48) == [(6, 6)] * 4
    assert all(f.shape == (1, prefix + 36, WIDTH) for f in features)


def test_patches_follow_the_prefix_in_reading_order():
    """A change in the second row and third column of patches moves that token most."""
    extractor = ViTFeatures(tiny_model("Dinov2WithRegisters"), 32)
    blank = torch.zeros(1, 3, 32, 32)
    changed = blank.clone()
    changed[..., 8:16, 16:24] = 3
    with torch.no_grad():
        moved = (extractor(changed)[0] - extractor(blank)[0]).norm(dim=2)[0, extractor.prefix :]
    assert moved.argmax().item() == 1 * 4 + 2


def test_unknown_model_type_lists_the_known_ones():
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    with pytest.raises(UserError, match=r"'bert'.*vit, deit, dinov2"):
        ViTFeatures(BertModel(config), 32)


def test_depth_must_be_a_multiple_of_four():
    with pytest.raises(UserError, match="has 6"):
        ViTFeatures(tiny_model("ViT", num_hidden_layers=6), 32)


def student_of(extractor: ViTFeatures, size: int, width: int) -> ViTStudent:
    torch.manual_seed(0)
    architecture = {
        "kind": "vit",
        "size": size,
        "patch": extractor.patch,
        "prefix": extractor.prefix,
        "width": width,
        "hidden": 48,
        "heads": 4,
        "dropout": 0.0,
        "teacher_width": extractor.width,
    }
    return build_student(architecture).eval()


@pytest.mark.parametrize("width", [WIDTH, 16], ids=["as wide", "narrow"])
@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Dinov2WithRegisters"])
def test_student_shapes_equal_its_teachers(kind, width):
    extractor = ViTFeatures(tiny_model(kind), 32)
    student, pixels = student_of(extractor, 32, width), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert [s.shape for s in student(pixels)] == [t.shape for t in extractor(pixels)]
    assert student.grids(32, 32) == extractor.grids(32, 32)
    assert student.prefix == extractor.prefix


def test_only_a_narrow_student_has_projections():
    extractor = ViTFeatures(tiny_model("ViT"), 32)
    projections = {width: list(student_of(extractor, 32, width).projections.parameters()) for width in (WIDTH, 16)}
    assert not projections[WIDTH]
    assert len(projections[16]) == 2 * 4


def test_student_tells_prefix_from_patches_and_positions_apart():
    """All patches of a blank image look alike: only positions can make their tokens differ."""
    student = student_of(ViTFeatures(tiny_model("DeiT"), 32), 32, 16)
    with torch.no_grad():
        first = student(torch.zeros(1, 3, 32, 32))[0][0]
    assert torch.pdist(first).min() > 1e-3


def test_student_reads_the_same_while_it_learns_as_when_it_judges():
    extractor = ViTFeatures(tiny_model("ViT"), 32)
    student = student_of(extractor, 32, 16)
    pixels = torch.randn(2, 3, 32, 32)
    for learning, judging in zip(student.train()(pixels), student.eval()(pixels), strict=True):
        torch.testing.assert_close(learning, judging)


def test_gradients_reach_every_parameter_of_the_student():
    student = student_of(ViTFeatures(tiny_model("ViT"), 32), 32, 16)
    # Squares: a plain sum would be blind through the last layer norm's centring.
    sum(layer.square().sum() for layer in student(torch.randn(2, 3, 32, 32))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_a_block_is_torchs_own(training):
    torch.manual_seed(0)
    sizes = {"dim_feedforward": 10, "dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    ours, theirs = Block(12, 3, **sizes).train(training), nn.TransformerEncoderLayer(12, 3, **sizes).train(training)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(tokens), theirs(tokens))
    for block in (ours, theirs):
        block(tokens).square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_block_in_training_drops_what_it_should():
    torch.manual_seed(0)
    block, tokens = Block(12, 3, 10, dropout=0.5, batch_first=True, norm_first=True), torch.randn(2, 5, 12)
    assert not torch.equal(block(tokens), block(tokens))
    assert torch.equal(block.eval()(tokens), block(tokens))
