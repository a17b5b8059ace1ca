"""Images as points: pooled features of any sizes, and their projection."""

import numpy as np
import pytest
import torch

from kdad.evaluation.feature_map import METHODS, pooled_features, project


def test_features_are_the_teacher_s_summary_in_order(vgg_teacher):
    images = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    summary = vgg_teacher.network.summary(vgg_teacher(vgg_teacher.preprocessing(images))).numpy()
    assert np.concatenate(list(pooled_features(vgg_teacher, images))) == pytest.approx(summary, abs=1e-5)
    mixed = [images[0], torch.zeros(3, 40, 64, dtype=torch.uint8), images[1]]
    of_mixed = np.concatenate(list(pooled_features(vgg_teacher, mixed)))
    assert of_mixed[[0, 2]] == pytest.approx(summary[:2], abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_two_groups_stay_apart_and_maps_repeat(method):
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(30, 20)), rng.normal(6, size=(30, 20))]).astype(np.float32)
    places, axes = project(features, method)
    assert places.shape == (60, 2)
    assert len(axes) == 2
    centres = places[:30].mean(0), places[30:].mean(0)
    nearer = [np.linalg.norm(places - centre, axis=1) for centre in centres]
    assert np.array_equal(nearer[0] < nearer[1], np.arange(60) < 30)
    assert np.array_equal(places, project(features, method)[0])


def test_images_that_are_all_alike_have_a_map():
    places, axes = project(np.ones((4, 5), np.float32), "PCA")
    assert np.isfinite(places).all()
    assert axes[0] == "component 1, 0 % of variance"


def test_another_projection_is_refused(refusal):
    assert "PCA" in refusal(project, np.ones((4, 5)), "UMAP")
