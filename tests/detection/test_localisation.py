"""Every method on tiny networks: shapes, places, what it leaves untouched, and what it is not for."""

import copy

import numpy as np
import pytest
import torch

from kdad.detection import localisation
from kdad.detection.detector import Detector
from kdad.detection.discrepancy import layer_errors
from kdad.detection.localisation import localise, methods_for
from kdad.errors import UserError
from kdad.networks.recipes import Recipe
from kdad.scores import published_score
from kdad.training.distillation import train_student

QUICK = Recipe(epochs=1, batch_size=8)


@pytest.fixture(scope="module")
def vgg(student_folder, vgg_teacher):
    return Detector.load(student_folder, teacher=vgg_teacher, device="cpu")


@pytest.fixture(scope="module")
def vit(tmp_path_factory, vit_teacher):
    from helpers.miniatures import TinyTask

    folder = train_student(TinyTask(), vit_teacher, tmp_path_factory.mktemp("vit"), recipe=QUICK, device="cpu")
    return Detector.load(folder, teacher=vit_teacher, device="cpu")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(localisation, "SAMPLES", 4)


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 40, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["vgg", "vit"])
def test_every_method_maps_every_image_at_its_own_size(request, name, images):
    detector = request.getfixturevalue(name)
    for method in methods_for(detector):
        maps = localise(detector, images, method)
        assert maps.shape == (3, 40, 36), method
        assert np.isfinite(maps).all(), method
        np.testing.assert_allclose(localise(detector, images[1:2], method), maps[1:2], rtol=1e-2, atol=1e-3)


def test_each_network_has_its_methods(vgg, vit):
    assert methods_for(vgg) == ["patch", "gradients", "smoothgrad", "guided-backprop"]
    assert methods_for(vit) == ["patch", "gradients", "smoothgrad", "attention-rollout"]


def test_the_students_own_map_is_offered_where_the_score_reads_another(place_student_folder, vgg, images):
    detector = Detector.load(place_student_folder, teacher=vgg.teacher, device="cpu")
    assert methods_for(detector)[:2] == ["patch", "student"]
    own, shown = localise(detector, images, "student"), localise(detector, images)
    assert own.shape == shown.shape and not np.allclose(own, shown)


def test_guided_backprop_is_for_plain_relus(vgg):
    other = copy.deepcopy(vgg)
    layers = other.teacher.network.features
    for index, layer in enumerate(layers):
        if isinstance(layer, torch.nn.ReLU):
            layers[index] = torch.nn.ReLU6()
    assert methods_for(other) == ["patch", "gradients", "smoothgrad"]


def test_patch_is_the_heatmap_of_every_prediction(vgg, images):
    np.testing.assert_array_equal(localise(vgg, images), vgg.predict(images).heatmap)


def test_methods_are_refused_where_they_mean_nothing(vgg, vit, images):
    with pytest.raises(UserError, match="guided-backprop is for networks of ReLUs"):
        localise(vit, images, "guided-backprop")
    with pytest.raises(UserError, match="attention-rollout is for ViT"):
        localise(vgg, images, "attention-rollout")
    with pytest.raises(UserError, match="unknown localisation method 'lime'; choose one of: patch, student, gradients"):
        localise(vgg, images, "lime")


def test_gradients_are_those_of_the_published_score(vgg, monkeypatch):
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(localisation, "_tidy", lambda gradient: gradient.abs().sum(1))
    pixels = vgg.teacher.preprocessing(images).requires_grad_()
    score = published_score(layer_errors(vgg.student(pixels), vgg.teacher.network(pixels)), 0.01)
    (expected,) = torch.autograd.grad(score.sum(), pixels)
    np.testing.assert_allclose(localise(vgg, images, "gradients"), expected.abs().sum(1), rtol=1e-3, atol=1e-6)


def test_guided_backprop_differs_from_gradients_and_leaves_the_networks_alone(vgg, images):
    state = {name: tensor.clone() for name, tensor in vgg.student.state_dict().items()}
    inplace = [module.inplace for module in vgg.student.modules() if isinstance(module, torch.nn.ReLU)]
    before = vgg.predict(images)
    guided, plain = localise(vgg, images, "guided-backprop"), localise(vgg, images, "gradients")
    assert not np.allclose(guided, plain)
    assert [m.inplace for m in vgg.student.modules() if isinstance(m, torch.nn.ReLU)] == inplace
    assert not any(module._forward_hooks or module._backward_hooks for module in vgg.student.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in vgg.student.state_dict().items())
    np.testing.assert_array_equal(vgg.predict(images).score, before.score)


def test_smoothgrad_without_noise_is_the_gradient_and_with_it_repeats(vgg, images):
    silent, plain = localise(vgg, images, "smoothgrad", noise=0.0), localise(vgg, images, "gradients")
    np.testing.assert_allclose(silent, plain, rtol=1e-3, atol=1e-6)
    noisy = localise(vgg, images, "smoothgrad", noise=0.2)
    assert not np.allclose(noisy, plain)
    state = torch.random.get_rng_state()
    np.testing.assert_array_equal(localise(vgg, images, "smoothgrad", noise=0.2), noisy)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_attention_rollout_shares_out_attention_and_leaves_the_teacher_as_it_was(vit, images):
    usual = vit.teacher.network.model.config._attn_implementation
    before = vit.predict(images).score
    maps = localise(vit, images, "attention-rollout")
    assert maps.min() >= 0
    assert vit.teacher.network.model.config._attn_implementation == usual
    np.testing.assert_array_equal(vit.predict(images).score, before)


def test_a_single_spike_is_clipped_and_blurred():
    gradient = torch.zeros(1, 3, 128, 128)
    gradient[0, :, 55:75, 55:75] = -1.0
    gradient[0, 0, 5, 5] = 1e6
    tidy = localisation._tidy(gradient)[0]
    assert tidy[65, 65] > tidy[5, 5]
    assert tidy[65, 65] < 3
    assert tidy[65, 75] == pytest.approx(0.5 * 3, abs=0.2)  # half-way at the edge
    assert tidy[65, 79] == pytest.approx(0.16 * 3, abs=0.15)  # the blur has a standard deviation of 4 pixels
