"""The Gaussian on a teacher's last features."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from kdad.detection.mahalanobis import Gaussian


@pytest.fixture
def normals() -> torch.Tensor:
    """4,000 correlated features (4000, 6); their narrowest direction is a tenth as wide as their widest."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    return torch.randn(4000, 6, generator=generator) * torch.linspace(0.3, 3, 6) @ rotation + 3


def test_distance_is_that_of_mahalanobis_with_a_shrunk_covariance(normals):
    others = normals[:50] * 1.5
    expected = LedoitWolf().fit(normals.double().numpy()).mahalanobis(others.double().numpy()) / 6
    np.testing.assert_allclose(Gaussian.fit(normals.split(1000)).distance(others), expected, rtol=5e-3)


def test_normals_lie_about_one_away(normals):
    assert Gaussian.fit([normals]).distance(normals).mean().item() == pytest.approx(1, abs=0.05)


def test_small_variance_counts_as_much_as_large(normals):
    """What distillation neglects: a step of three deviations is as far in the narrowest direction as in the widest."""
    gaussian = Gaussian.fit([normals])
    values, directions = torch.linalg.eigh(torch.cov(normals.T))
    steps = normals.mean(0) + 3 * values.sqrt()[:, None] * directions.T
    torch.testing.assert_close(gaussian.distance(steps), torch.full((6,), 9 / 6), rtol=0.1, atol=0)


def test_packed_as_a_triangle_it_measures_the_same(normals):
    gaussian = Gaussian.fit([normals])
    packed = gaussian.packed()
    assert packed["distance_whitening"].shape == (21,)
    assert packed["distance_whitening"].dtype == torch.float16
    again = Gaussian.unpacked(packed)
    assert torch.equal(again.distance(normals), gaussian.distance(normals))


@pytest.mark.parametrize("features", [torch.zeros(20, 4), torch.full((3, 4), 7.5), torch.randn(3, 40)])
def test_features_without_variance_or_few_images_give_finite_distances(features):
    gaussian = Gaussian.fit([features])
    for tensor in (*gaussian.packed().values(), gaussian.distance(features), gaussian.distance(features + 1)):
        assert tensor.isfinite().all()
