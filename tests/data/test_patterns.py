import time

import numpy as np
import pytest

from kdad.data import patterns
from kdad.data.patterns import CLASSES, DEFECTS, defects, normals

NOISE = 0.02 * 255


def test_there_are_ten_classes():
    assert len(CLASSES) == len(set(CLASSES)) == 10


@pytest.mark.parametrize("name", CLASSES)
def test_images_depend_on_the_seed_alone(name):
    images = normals(name, 6, seed=1)
    assert images.shape == (6, 3, 32, 32)
    assert images.dtype == np.uint8
    assert np.array_equal(images, normals(name, 6, seed=1))
    assert not np.array_equal(images, normals(name, 6, seed=2))


@pytest.mark.parametrize("name", CLASSES)
def test_images_of_one_class_differ_and_show_something(name):
    images = normals(name, 20, seed=0).astype(float)
    apart = np.abs(images[:, None] - images[None]).mean((2, 3, 4))
    assert apart[~np.eye(20, dtype=bool)].min() > 2 * NOISE
    assert images.std((2, 3)).max(1).min() > 4 * NOISE, "an image without contrast"


def test_classes_are_drawn_independently():
    """Two classes share neither colours nor noise, although their seed is the same."""
    first, second = normals("stripes", 4, seed=0), normals("checkerboard", 4, seed=0)
    assert not np.isclose(first.max((2, 3)), second.max((2, 3)), atol=3).all()


@pytest.mark.parametrize("kind", DEFECTS)
def test_defects_depend_on_the_seed_alone(kind):
    images, masks = defects("dots", kind, 5, seed=1)
    assert images.shape == (5, 3, 32, 32)
    assert images.dtype == np.uint8
    assert masks.shape == (5, 32, 32)
    assert masks.dtype == bool
    again, masks_again = defects("dots", kind, 5, seed=1)
    assert np.array_equal(images, again)
    assert np.array_equal(masks, masks_again)
    assert not np.array_equal(masks, defects("dots", kind, 5, seed=2)[1])


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", DEFECTS)
def test_masks_are_exact(monkeypatch, name, kind):
    """The same images, drawn without sensor noise before and after the defect, differ inside the mask alone."""
    clean = []
    apply = patterns._apply_defect

    def remember_and_apply(kind, images, *rest):
        clean.append(images)
        return apply(kind, images, *rest)

    monkeypatch.setattr(patterns, "_apply_defect", remember_and_apply)
    noisy, masks = defects(name, kind, 20, seed=3)
    monkeypatch.setattr(patterns, "_to_uint8", lambda images, rng: images)
    defective, same_masks = defects(name, kind, 20, seed=3)
    assert np.array_equal(masks, same_masks)

    change = np.abs(defective - clean[1])
    assert change[~np.broadcast_to(masks[:, None], change.shape)].max() == 0
    assert np.abs(noisy / 255 - defective).max() < 7 * 0.02, "more than sensor noise"
    assert (masks.sum((1, 2)) >= 4).all()
    assert (masks.mean((1, 2)) < 0.25).all()
    largest = np.where(masks[:, None], change, 0).max((1, 2, 3))
    assert np.median(largest) > 0.2, "the defect cannot be seen"


def test_the_whole_data_set_takes_seconds():
    """A tenth of it, that is 1,400 images, takes tenths of seconds."""
    started = time.process_time()
    for name in CLASSES:
        normals(name, 140, seed=0)
    assert time.process_time() - started < 3
