import math

import numpy as np
import pytest
import torch

from kdad.detection.discrepancy import (
    all_errors,
    distillation_loss,
    layer_errors,
)
from kdad.networks.vgg import tokens


def random_features(shapes, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def float64_errors(student, teacher) -> np.ndarray:
    """The error table straight from its definition, image by image, in float64."""
    table = np.empty((len(student[0]), len(student), 2))
    for layer, (s, t) in enumerate(zip(student, teacher, strict=True)):
        for image in range(len(s)):
            a, b = s[image].double().numpy().ravel(), t[image].double().numpy().ravel()
            cosine = a @ b / math.sqrt((a @ a) * (b @ b))
            table[image, layer] = 1 - cosine, np.mean((a - b) ** 2)
    return table


VGG_SHAPES = [(3, 64, 8), (3, 16, 16), (3, 4, 32), (3, 1, 32)]
VIT_SHAPES = [(3, 2 + 16, 12)] * 4


def test_vgg_maps_give_hand_computed_errors():
    """Two 2×2 maps of one channel, as the tokens a VGG hands out: (1,0,0,0) against (3,4,0,0)."""
    student = tokens(torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2))
    teacher = tokens(torch.tensor([3.0, 4.0, 0.0, 0.0]).view(1, 1, 2, 2))
    errors = layer_errors([student], [teacher])
    assert errors.shape == (1, 1, 2)
    # cos = 3/5; MSE = ((1−3)² + 4²)/4 = 5
    assert errors[0, 0].tolist() == pytest.approx([0.4, 5.0])


def test_vit_tokens_give_hand_computed_errors_with_the_prefix_counted():
    student = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    # cos = 1/√2 over both tokens, although the patch alone is copied perfectly; MSE = 1/4
    assert layer_errors([student], [teacher])[0, 0].tolist() == pytest.approx([1 - 1 / math.sqrt(2), 0.25])
    assert all_errors([student], [teacher], prefix=1, grids=[(1, 1)])[1][0].item() == pytest.approx(0, abs=1e-6)


def test_errors_of_a_good_copy_are_exact_where_training_is_in_half_precision():
    teacher = random_features(VGG_SHAPES)
    student = [layer + 0.03 * noise for layer, noise in zip(teacher, random_features(VGG_SHAPES, 1), strict=True)]
    with torch.autocast("cpu", torch.bfloat16):
        errors = layer_errors(student, teacher)
    np.testing.assert_allclose(errors, float64_errors(student, teacher), rtol=0.01)


def test_the_squared_error_of_a_near_perfect_copy_does_not_cancel():
    teacher = [100 + torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))]
    errors = layer_errors([teacher[0] + 1e-3], teacher)
    expected = (teacher[0] + 1e-3 - teacher[0]).double().square().mean((1, 2))
    torch.testing.assert_close(errors[:, 0, 1].double(), expected, rtol=1e-4, atol=0)


def test_opposite_features_have_a_cosine_error_of_two():
    features = [torch.ones(1, 4, 3)]
    assert layer_errors([-features[0]], features)[0, 0].tolist() == pytest.approx([2.0, 4.0])


@pytest.mark.parametrize("shapes", [VGG_SHAPES, VIT_SHAPES], ids=["vgg", "vit"])
def test_errors_equal_the_float64_formula(shapes):
    student, teacher = random_features(shapes, seed=0), random_features(shapes, seed=1)
    np.testing.assert_allclose(layer_errors(student, teacher).numpy(), float64_errors(student, teacher), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_features_accumulate_in_float32(dtype):
    """70,000 values per map: summed in half precision they would overflow or lose all digits."""
    student = random_features([(2, 700, 100)], seed=0, dtype=dtype)
    teacher = [student[0] + random_features([(2, 700, 100)], seed=1, dtype=dtype)[0] * 0.25]
    errors = layer_errors(student, teacher)
    assert errors.dtype == torch.float32
    np.testing.assert_allclose(errors.numpy(), float64_errors(student, teacher), atol=2e-5)
    assert all_errors(student, teacher, 0, [(70, 10)])[1][0].dtype == torch.float32


def test_images_of_a_batch_do_not_influence_each_other():
    student, teacher = random_features(VIT_SHAPES, seed=0), random_features(VIT_SHAPES, seed=1)
    alone = layer_errors([s[1:2] for s in student], [t[1:2] for t in teacher])
    torch.testing.assert_close(layer_errors(student, teacher)[1:2], alone)


ERRORS = torch.tensor(
    [[[0.1, 10.0], [0.2, 20.0], [0.3, 30.0], [0.4, 40.0]], [[0.0, 0.0], [0.5, 0.0], [0.0, 2.0], [1.0, 1.0]]]
)


def test_loss_sums_all_layers_and_averages_the_batch():
    assert distillation_loss(ERRORS, 0.01).item() == pytest.approx((2.0 + 1.53) / 2)


def test_patch_errors_drop_the_prefix_and_keep_the_grid():
    """Only the patch in row 1, column 2 of a 2×3 grid differs; the two prefix tokens differ as well."""
    teacher = torch.ones(1, 2 + 6, 4)
    student = teacher.clone()
    student[:, :2] = -1
    student[:, 2 + 1 * 3 + 2] = -1
    _, (errors,) = all_errors([student], [teacher], prefix=2, grids=[(2, 3)])
    expected = torch.zeros(1, 2, 3)
    expected[0, 1, 2] = 2
    torch.testing.assert_close(errors, expected, atol=1e-6, rtol=0)


def test_patch_errors_of_a_map_lie_where_the_map_differs():
    teacher = torch.rand(2, 5, 4, 6) + 0.1
    student = teacher.clone()
    student[1, :, 3, 0] *= -1
    _, (errors,) = all_errors([tokens(student)], [tokens(teacher)], prefix=0, grids=[(4, 6)])
    assert errors.shape == (2, 4, 6)
    assert errors[1, 3, 0].item() == pytest.approx(2)
    assert errors.sum().item() == pytest.approx(2, abs=1e-4)


def test_patch_errors_have_one_map_per_layer():
    student, teacher = random_features(VGG_SHAPES, seed=0), random_features(VGG_SHAPES, seed=1)
    grids = [(8, 8), (4, 4), (2, 2), (1, 1)]
    _, maps = all_errors(student, teacher, 0, grids)
    assert [tuple(m.shape) for m in maps] == [(3, *grid) for grid in grids]
    s, t = student[1][2, 5].double(), teacher[1][2, 5].double()
    assert maps[1][2, 1, 1].item() == pytest.approx(1 - (s @ t / (s.norm() * t.norm())).item(), abs=1e-5)


def test_gradients_reach_every_student_layer_and_no_teacher_layer():
    student = [s.requires_grad_() for s in random_features(VIT_SHAPES, seed=0)]
    teacher = random_features(VIT_SHAPES, seed=1)
    distillation_loss(layer_errors(student, teacher), 0.01).backward()
    assert all(s.grad.abs().sum() > 0 and torch.isfinite(s.grad).all() for s in student)
    assert all(t.grad is None for t in teacher)


def test_a_gradient_step_lowers_the_loss():
    student = [s.requires_grad_() for s in random_features(VGG_SHAPES, seed=0)]
    teacher = random_features(VGG_SHAPES, seed=1)
    before = distillation_loss(layer_errors(student, teacher), 0.01)
    before.backward()
    stepped = [(s - s.grad).detach() for s in student]
    assert distillation_loss(layer_errors(stepped, teacher), 0.01) < before


def test_a_dead_student_gives_finite_errors_and_gradients():
    """All-zero features, as ReLUs can give, have no direction."""
    student, teacher = torch.zeros(1, 4, 3, requires_grad=True), torch.ones(1, 4, 3)
    errors = layer_errors([student], [teacher])
    assert errors[0, 0].tolist() == pytest.approx([1.0, 1.0])
    distillation_loss(errors, 0.01).backward()
    assert torch.isfinite(student.grad).all()


def test_features_that_do_not_fit_raise():
    with pytest.raises(ValueError, match="do not match"):
        layer_errors([torch.ones(1, 4, 3)], [torch.ones(1, 4, 5)])
    with pytest.raises(ValueError):
        layer_errors([torch.ones(1, 4, 3)] * 3, [torch.ones(1, 4, 3)] * 4)


def test_the_cosine_error_of_a_near_perfect_copy_does_not_cancel():
    """1 − s·t / |s||t| in float32 would give zero, or the rounding error of 1."""
    teacher = random_features([(2, 64, 32)], seed=0)
    student = [teacher[0] + 1e-5 * random_features([(2, 64, 32)], seed=1)[0]]
    errors, (patches,) = all_errors(student, teacher, 0, [(8, 8)])
    np.testing.assert_allclose(errors[:, 0, 0], float64_errors(student, teacher)[:, 0, 0], rtol=0.02)
    s, t = student[0].double(), teacher[0].double()
    expected = (1 - torch.nn.functional.cosine_similarity(s, t, dim=2)).unflatten(1, (8, 8))
    torch.testing.assert_close(patches.double(), expected, rtol=0.05, atol=1e-13)


@pytest.mark.parametrize("shapes", [VGG_SHAPES, VIT_SHAPES], ids=["vgg", "vit"])
def test_gradients_are_those_of_the_definition(shapes):
    student, teacher = random_features(shapes, seed=0), random_features(shapes, seed=1)
    student[0][0, 1] = 0  # a patch without direction
    ours, defined = ([layer.clone().requires_grad_() for layer in student] for _ in range(2))
    distillation_loss(layer_errors(ours, teacher), 0.5).backward()
    for s, t in zip(defined, teacher, strict=True):
        s, t = s.flatten(1), t.flatten(1)
        loss = 1 - torch.nn.functional.cosine_similarity(s, t) + 0.5 * (s - t).square().mean(1)
        loss.mean().backward()
    for one, other in zip(ours, defined, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_gradients_of_both_sides_are_those_of_finite_differences():
    from kdad.detection.discrepancy import _TokenNorms

    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(_TokenNorms.apply, sides)
