"""Distances of patches from those of normals."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage

from kdad.detection.conformal import p_values
from kdad.detection.normal_patches import (
    MIN_SQUARE,
    NearestPatches,
    NormalPatches,
    PositionGaussians,
    Projection,
    Scale,
    layer_maps,
    worst_places,
)

GRID = (4, 5)
EVERYWHERE = torch.arange(1000)  # a region of interest that leaves nothing out


def patches(images: int, seed: int = 0, size: int = 6) -> torch.Tensor:
    """Patches (images, 20, size) whose mean and spread depend on the position."""
    generator = torch.Generator().manual_seed(seed)
    where = torch.linspace(-2, 2, 20)[:, None]
    return where + (1 + where.abs()) * torch.randn(images, 20, size, generator=generator)


def test_the_nearest_normal_patch_lies_in_a_window_of_any_normal():
    normals, images = patches(7), patches(3, seed=1)
    found = NearestPatches.fit(normals, GRID).distances(images).sqrt()
    for position in range(20):
        row, column = divmod(position, 5)
        window = [r * 5 + c for r in range(4) for c in range(5) if max(abs(r - row), abs(c - column)) <= 1]
        known = normals[:, window].flatten(0, 1)
        assert found[:, position] == pytest.approx(torch.cdist(images[:, position], known).amin(1), rel=1e-4)


def test_a_normal_is_left_out_of_the_memory_as_if_it_had_never_been_there():
    normals = patches(6)
    left_out = NearestPatches.fit(normals, GRID).left_out(normals)
    for index in range(6):
        others = NearestPatches.fit(torch.cat([normals[:index], normals[index + 1 :]]), GRID)
        assert left_out[index] == pytest.approx(others.distances(normals[index : index + 1])[0], rel=1e-4)


def test_a_normal_is_left_out_of_the_gaussians_in_closed_form():
    normals = patches(12)
    gaussians, left_out = PositionGaussians.fit(normals)
    for position in (0, 10, 19):
        at = normals[:, position].double()
        off = (at - at.mean(0)).float().numpy()
        share = ledoit_wolf_shrinkage(off, assume_centered=True)
        covariance = torch.from_numpy(off).double().T @ torch.from_numpy(off).double() / 12
        ridge = share * covariance.trace() / 6 * torch.eye(6)
        off = at - at.mean(0)
        whole = (off @ ((1 - share) * covariance + ridge).inverse() * off).sum(1)
        assert gaussians.distances(normals)[:, position] == pytest.approx(whole, rel=5e-3)  # of half precision
        for index in range(12):
            others = torch.cat([at[:index], at[index + 1 :]])
            less = (1 - share) * torch.cov(others.T, correction=0) + ridge
            gone = at[index] - others.mean(0)
            assert float(left_out[index, position]) == pytest.approx(float(gone @ less.inverse() @ gone), rel=1e-3)


def test_left_out_normals_are_about_as_far_as_new_ones_and_anomalies_farther():
    normals, others = patches(60), patches(200, seed=1)
    nearest, (gaussians, left_out) = NearestPatches.fit(normals, GRID), PositionGaussians.fit(normals)
    for known, found in ((nearest.left_out(normals), nearest.distances), (left_out, gaussians.distances)):
        scale = Scale.fit(known, EVERYWHERE[: known.shape[1]])
        shown, new, odd = (scale.standardise(of) for of in (known, found(others), found(others + 3)))
        assert abs(float(shown.mean())) < 0.01 and float(shown.std()) == pytest.approx(1, abs=0.1)
        assert abs(float(new.mean())) < 0.15 and float(odd.mean()) > 1


def test_normals_that_are_all_one_have_finite_distances():
    normals = patches(1).expand(10, -1, -1).contiguous()
    nearest, (gaussians, left_out) = NearestPatches.fit(normals, GRID), PositionGaussians.fit(normals)
    assert (
        Scale.fit(nearest.left_out(normals), EVERYWHERE[: left_out.shape[1]]).standardise(
            nearest.distances(normals + 1)
        )
        > 0
    ).all()
    assert (
        Scale.fit(left_out, EVERYWHERE[: left_out.shape[1]])
        .standardise(gaussians.distances(normals + 1))
        .isfinite()
        .all()
    )
    assert nearest.left_out(normals).clamp(min=MIN_SQUARE).log().isfinite().all()


def test_each_layer_counts_alike_whatever_its_width_and_units():
    generator = torch.Generator().manual_seed(0)
    fine, coarse = torch.randn(8, 6, 4, 4, generator=generator), torch.randn(8, 2, 2, 2, generator=generator)
    plain = Projection.fit([[fine, coarse]])
    assert plain.grid == (4, 4) and plain([fine, coarse]).shape == (8, 16, 8)
    units = torch.tensor([1.0, 1000, 0.01, 1, 1, 1])[:, None, None]
    scaled = Projection.fit([[fine * units + 5, coarse * 100]])([fine * units + 5, coarse * 100])
    assert torch.cdist(scaled, scaled) == pytest.approx(
        torch.cdist(plain([fine, coarse]), plain([fine, coarse])), abs=1e-2
    )
    in_parts = Projection.fit([[fine[:3], coarse[:3]], [fine[3:], coarse[3:]]])
    assert in_parts.mean == pytest.approx(plain.mean, abs=1e-5)


def test_features_that_never_vary_have_finite_components():
    blank = [torch.ones(5, 6, 4, 4), torch.zeros(5, 2, 2, 2)]
    assert Projection.fit([blank])(blank).isfinite().all()


def test_what_each_distance_has_in_the_worst_places_adds_up():
    maps = torch.randn(3, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    highest = maps.sum(1).flatten(1).topk(4, 1).values.mean(1)
    assert worst_places(maps).shape == (3, 2) and worst_places(maps).sum(1) == pytest.approx(highest, abs=1e-5)
    assert worst_places(maps[:, :, :2, :2]).sum(1) == pytest.approx(maps[:, :, :2, :2].sum(1).flatten(1).amax(1))


def test_what_normals_show_comes_back_from_a_file(vgg_teacher, tiny_task):
    fitted = NormalPatches.fit(vgg_teacher, tiny_task.train.split(8))
    tensors = fitted.patches.packed()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == NormalPatches.shapes(tensors)
    assert float(fitted.left_out.sum(1).std()) == pytest.approx(1, abs=1e-3)
    layers = layer_maps(vgg_teacher(vgg_teacher.preprocessing(tiny_task.test.images[:4])), vgg_teacher)
    found, again = fitted.patches.distances(layers), NormalPatches.unpacked(tensors).distances(layers)
    assert found.shape == (4, 2, *fitted.patches.projection.grid) and torch.equal(again, found)


def test_few_normals_hold_their_false_positive_rate():
    """A normal that had a part in its own scale could be no outlier, and images like it would be called anomalous."""
    rng, normals, images = torch.Generator().manual_seed(0), 12, 24
    called = []
    for _ in range(25):
        known, new = torch.randn(normals + images, 6, 8, 8, generator=rng).split([normals, images])
        level = torch.randn(normals + images, 1, 1, 1, generator=rng).exp()  # some images are more textured than others
        maps = [part * scale for part, scale in zip((known, new), level.split([normals, images]), strict=True)]
        fitted, left_out = NormalPatches.fit_maps(lambda maps=maps: [[maps[0]]])
        calibration = worst_places(left_out).sum(1).numpy()
        scores = worst_places(fitted.distances([maps[1]])).sum(1).numpy()
        called.append((p_values(scores, calibration) <= 1 / (normals + 1) + 1e-9).mean())
    assert 0.02 < np.mean(called) < 0.11  # asked for: 1/13


def test_a_normal_is_measured_in_deviations_of_the_others():
    distances = patches(7)[..., 0].square() + 0.1
    found = Scale.standardise_left_out(distances, EVERYWHERE[: distances.shape[1]])
    for index in range(7):
        others = Scale.fit(torch.cat([distances[:index], distances[index + 1 :]]), EVERYWHERE[: distances.shape[1]])
        assert found[index] == pytest.approx(others.standardise(distances[index : index + 1])[0], rel=1e-3, abs=1e-3)
