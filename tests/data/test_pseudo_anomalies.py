import numpy as np

from kdad.data.pseudo_anomalies import blend_in


def images(n: int = 60) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, 32, 40, 3), dtype=np.uint8)


def test_what_is_blended_in_shows_within_the_mask_and_fades_around_it():
    normal = images()
    blended, masks = blend_in(normal)
    changed = (blended != normal).any(3)
    assert np.mean(changed[masks]) > 0.95
    assert np.mean(changed[~masks]) < 0.05
    difference = abs(blended.astype(float) - normal).mean(3)
    assert difference[masks].mean() > 3 * difference[changed & ~masks].mean()
    assert blended.dtype == np.uint8 and masks.shape == (60, 32, 40)


def test_some_are_faint_and_some_are_plain_to_see():
    normal = images(200)
    blended, masks = blend_in(normal)
    strength = [
        abs(new.astype(float) - old)[mask].mean() for new, old, mask in zip(blended, normal, masks, strict=True)
    ]
    assert np.quantile(strength, 0.2) < 30 < 50 < np.quantile(strength, 0.8)


def test_something_small_is_pasted_into_every_image():
    masks = blend_in(images())[1]
    share = masks.mean((1, 2))
    assert share.min() > 0
    assert share.max() < 0.25


def test_the_images_given_stay_as_they_are_and_a_seed_says_all():
    normal = images()
    before = normal.copy()
    first, again, other = blend_in(normal)[0], blend_in(normal)[0], blend_in(normal, seed=1)[0]
    assert (normal == before).all()
    assert (first == again).all()
    assert (first != other).any()


def test_patches_and_scars_both_occur():
    masks = blend_in(images(200))[1]
    shapes = []
    for mask in masks:
        points = np.argwhere(mask)
        if len(points) > 8:
            values = np.linalg.eigvalsh(np.cov(points.T))
            shapes.append(np.sqrt(values[1] / max(values[0], 1e-3)))
    assert np.quantile(shapes, 0.2) < 2.5 < 4 < np.quantile(shapes, 0.9)


def test_half_of_them_keep_the_hues_of_the_images():
    grey = np.repeat(images(200)[..., :1], 3, 3)
    blended, masks = blend_in(grey)
    coloured = [np.ptp(image[mask].astype(int), axis=1).max() > 5 for image, mask in zip(blended, masks, strict=True)]
    assert 0.35 < np.mean(coloured) < 0.6
