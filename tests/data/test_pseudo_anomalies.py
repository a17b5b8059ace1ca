import numpy as np
import pytest

from kdad.data.pseudo_anomalies import KINDS, LEAST_CHANGE, draw_pseudo_anomalies


def images(count: int = 20 * len(KINDS), seed: int = 1) -> np.ndarray:
    """Photograph-like: a bright, smoothly shaded and slightly noisy thing before a dark ground."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:48, 0:64]
    shade = 90 + 60 * np.sin(columns / 9 + rng.uniform(0, 6, (count, 1, 1))) * (rows > 10) - 40 * (rows <= 10)
    return (shade[..., None] + rng.normal(0, 6, (count, 48, 64, 3)) + [0, 10, 20]).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def normal() -> np.ndarray:
    return images()


@pytest.fixture(scope="module")
def drawn(normal):
    return draw_pseudo_anomalies(normal)


def of_kind(drawn, kind: str) -> np.ndarray:
    return np.array([name == kind for name in drawn.kinds])


def test_every_image_has_one_and_all_kinds_are_as_frequent(drawn, normal):
    assert drawn.images.shape == normal.shape
    assert drawn.images.dtype == np.uint8
    assert drawn.masks.shape == normal.shape[:3]
    assert drawn.masks.any((1, 2)).all()
    assert {kind: drawn.kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_shows_within_the_mask_more_than_around_it(drawn, normal, kind):
    change = abs(drawn.images.astype(float) - normal).max(3)[of_kind(drawn, kind)]
    masks = drawn.masks[of_kind(drawn, kind)]
    inside = np.array([values[mask].mean() for values, mask in zip(change, masks, strict=True)])
    outside = np.array([values[~mask].mean() for values, mask in zip(change, masks, strict=True)])
    assert inside.min() > LEAST_CHANGE / 4
    assert (inside > 3 * outside).mean() > 0.8


def test_they_go_from_specks_to_large_parts_of_the_image(drawn):
    share = drawn.masks.mean((1, 2))
    assert share.min() < 0.003
    assert share.max() > 0.2
    assert share.max() < 0.75


def test_some_are_faint_and_some_are_plain_to_see(drawn, normal):
    change = abs(drawn.images.astype(float) - normal).mean(3)
    strength = [values[mask].mean() for values, mask in zip(change, drawn.masks, strict=True)]
    assert np.quantile(strength, 0.2) < 20 < 40 < np.quantile(strength, 0.8)


def test_a_crack_is_long_and_thin(drawn):
    for mask in drawn.masks[of_kind(drawn, "crack")]:
        rows, columns = np.nonzero(mask)
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        assert mask.sum() <= 6 * max(extent, 10)


def test_an_edge_goes_missing_at_the_edge(drawn):
    masks = drawn.masks[of_kind(drawn, "missing edge")]
    at_edge = masks[:, [0, -1]].any((1, 2)) | masks[:, :, [0, -1]].any((1, 2))
    assert at_edge.mean() > 0.9


def test_a_blur_takes_detail_away_and_keeps_the_level(drawn, normal):
    chosen = of_kind(drawn, "blur")
    for old, new, mask in zip(normal[chosen], drawn.images[chosen], drawn.masks[chosen], strict=True):
        if mask.sum() > 100:
            level = [image.mean(2)[mask].mean() for image in (old, new)]
            assert abs(level[0] - level[1]) < 15
            step = [abs(np.diff(image.astype(float), axis=1)).mean(2)[mask[:, 1:]].mean() for image in (old, new)]
            assert step[1] < step[0]


def test_the_images_given_stay_as_they_are_and_a_seed_says_all(normal):
    few, before = normal[: len(KINDS)], normal[: len(KINDS)].copy()
    first, again, other = (draw_pseudo_anomalies(few, seed) for seed in (0, 0, 1))
    assert (few == before).all()
    assert (first.images == again.images).all()
    assert (first.images != other.images).any()


@pytest.mark.parametrize("grey", [0, 255, 128])
def test_images_of_one_grey_get_a_mask_too(grey):
    drawn = draw_pseudo_anomalies(np.full((len(KINDS), 32, 32, 3), grey, np.uint8))
    assert drawn.masks.any((1, 2)).all()
