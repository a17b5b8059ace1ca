import numpy as np

from kdad.data.pseudo_anomalies import cut_and_paste


def images(n: int = 60) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, 32, 40, 3), dtype=np.uint8)


def test_only_what_the_mask_covers_has_changed():
    normal = images()
    pasted, masks = cut_and_paste(normal)
    assert (pasted == normal).all(3)[~masks].all()
    assert np.mean((pasted != normal).any(3)[masks]) > 0.95
    assert pasted.dtype == np.uint8 and masks.shape == (60, 32, 40)


def test_something_small_is_pasted_into_every_image():
    masks = cut_and_paste(images())[1]
    share = masks.mean((1, 2))
    assert share.min() > 0
    assert share.max() < 0.25


def test_the_images_given_stay_as_they_are_and_a_seed_says_all():
    normal = images()
    before = normal.copy()
    first, again, other = cut_and_paste(normal)[0], cut_and_paste(normal)[0], cut_and_paste(normal, seed=1)[0]
    assert (normal == before).all()
    assert (first == again).all()
    assert (first != other).any()


def test_patches_and_scars_both_occur():
    masks = cut_and_paste(images(200))[1]
    shapes = []
    for mask in masks:
        points = np.argwhere(mask)
        if len(points) > 8:
            values = np.linalg.eigvalsh(np.cov(points.T))
            shapes.append(np.sqrt(values[1] / max(values[0], 1e-3)))
    assert np.quantile(shapes, 0.2) < 2 < 4 < np.quantile(shapes, 0.9)
