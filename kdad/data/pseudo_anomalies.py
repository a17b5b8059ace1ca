"""Pseudo-anomalies: normal images with a defect drawn into them, to learn from without any labelled anomaly.

After Li et al. 2021, *CutPaste* (arXiv 2104.04015), which pastes patches and thin scars, but as varied as real defects:
each of `KINDS` is a place, such as a thin crack or a corner, and a change, such as another colour or a blur. They go
from a thousandth of the image to half of it, from plain to see to faint, and most keep the hues of the images: large,
opaque regions of a different hue are found by whatever looks at them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Place = Callable[[tuple[int, int], np.random.Generator], np.ndarray]
Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]

SMALL, LARGE = (0.001, 0.05), (0.01, 0.5)  # share of the image, log-uniform
LOG_ASPECT = (0.0, 2.5)  # length over width of a patch, natural logarithm
CRACK_LENGTH = (0.1, 1.0)  # share of the shorter side
CRACK_TURN = 0.25  # radians a step
OPACITY = (0.15, 1.0)
SOFTNESS = (0.0, 0.6)  # share of the half-width of a patch over which its edge fades
THINNEST = 0.75  # half-width in pixels
CONTRAST = (0.7, 1.3)  # of another image
BRIGHTNESS = (0.3, 1.7)  # of a colour, as a multiple of one from the image
BLUR = (0.01, 0.04)  # share of the shorter side
ENLARGEMENT = (1.5, 3.0)  # of a texture
LEAST_CHANGE = 8.0  # grey levels; where nothing nearby changes as much, nothing is anomalous
NEARBY = 1 / 32  # of the shorter side
TRIES = 8


class PseudoAnomalies(NamedTuple):
    """Images with one pseudo-anomaly each.

    Args:
        images: uint8 (N, H, W, 3).
        masks: where they are anomalous, bool (N, H, W).
        kinds: the name in `KINDS` of each.
    """

    images: np.ndarray
    masks: np.ndarray
    kinds: list[str]


def draw_pseudo_anomalies(images: np.ndarray, seed: int = 0) -> PseudoAnomalies:
    """Draw one pseudo-anomaly into each of uint8 images (N, H, W, 3), of all kinds alike."""
    rng = np.random.default_rng(seed)
    drawn, masks, kinds = images.copy(), np.zeros(images.shape[:3], bool), []
    names = list(KINDS)
    for index, image in enumerate(drawn):
        kind = names[index % len(names)]
        image[:], masks[index] = _drawn(kind, image, images[rng.integers(len(images))], rng)
        kinds.append(kind)
    return PseudoAnomalies(drawn, masks, kinds)


def _drawn(kind: str, image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image with a pseudo-anomaly, and its mask; of several tries the first that shows, or the last."""
    from scipy.ndimage import maximum_filter

    place, change = KINDS[kind]
    nearby = max(3, round(NEARBY * min(image.shape[:2])))
    for _ in range(TRIES):
        cover = place(image.shape[:2], rng)
        old = image.astype(np.float32)
        changed = change(old, other.astype(np.float32), rng).astype(np.float32).clip(0, 255)
        new = (old + (changed - old) * cover[..., None].astype(np.float32)).round().astype(np.uint8)
        covered = cover >= cover.max() / 2
        difference = (np.maximum(new, image) - np.minimum(new, image)).max(2)
        mask = covered & (maximum_filter(difference * covered, nearby) >= LEAST_CHANGE)
        if mask.any():
            return new, mask
    return new, covered


def _patch(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Coverage in 0…1 of each pixel by a small rectangle of random aspect, angle, position, softness and opacity."""
    height, width = shape
    area = _log_uniform(SMALL, rng) * height * width
    stretch = np.exp(rng.uniform(*LOG_ASPECT) / 2)
    half_length, half_breadth = (max(side / 2, THINNEST) for side in (np.sqrt(area) * stretch, np.sqrt(area) / stretch))
    angle, (y, x) = rng.uniform(0, np.pi), rng.uniform(0.1, 0.9, 2) * shape
    rows, columns = _pixels(shape)
    along = abs(np.cos(angle) * (columns - x) + np.sin(angle) * (rows - y)) / half_length
    across = abs(np.cos(angle) * (rows - y) - np.sin(angle) * (columns - x)) / half_breadth
    softness = max(rng.uniform(*SOFTNESS), 1e-6)
    return rng.uniform(*OPACITY) * ((1 - np.maximum(along, across)) / softness).clip(0, 1)


def _crack(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A thin line that wanders through the image, one to four pixels of 256 wide."""
    from scipy.ndimage import distance_transform_edt

    shorter = min(shape)
    steps = max(2, round(rng.uniform(*CRACK_LENGTH) * shorter))
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, CRACK_TURN, steps))
    start = rng.uniform(0.1, 0.9, (2, 1)) * np.array(shape)[:, None]
    points = (start + np.cumsum([np.sin(angles), np.cos(angles)], 1)).astype(int)
    inside = ((points >= 0) & (points < np.array(shape)[:, None])).all(0)
    line = np.ones(shape, bool)
    line[tuple(points[:, inside] if inside.any() else start.astype(int))] = False
    half_width = max(THINNEST, rng.uniform(0.5, 2) * shorter / 256)
    return rng.uniform(*OPACITY) * (half_width + 0.5 - distance_transform_edt(line)).clip(0, 1)


def _border(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A cut-off corner, or a bite from an edge: whatever a rough line beyond a corner or an edge leaves outside."""
    height, width = shape
    share, angle = _log_uniform(SMALL, rng), rng.uniform(0, 2 * np.pi)
    rows, columns = _pixels(shape)
    beyond = np.cos(angle) * (rows / height - 0.5) + np.sin(angle) * (columns / width - 0.5)
    beyond += 0.03 * _noise(shape, rng)
    if rng.random() < 1 / 2:  # a bite: cut off along the line, too
        along = np.cos(angle) * (columns / width - 0.5) - np.sin(angle) * (rows / height - 0.5)
        beyond -= 0.5 * abs(along - rng.uniform(-0.3, 0.3))
    return (beyond >= np.quantile(beyond, 1 - share)).astype(np.float64)


def _region(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A region of any size and of irregular outline, with an edge that fades more or less."""
    share, softness = _log_uniform(LARGE, rng), rng.uniform(0.02, 1)
    rows, columns = _pixels(shape)
    y, x = rng.uniform(0.1, 0.9, 2) * shape
    height = 0.5 * _noise(shape, rng) - np.hypot((rows - y) / shape[0], (columns - x) / shape[1]) / np.sqrt(share)
    edge = np.quantile(height, 1 - share)
    return ((height - edge) / (softness * max(height.max() - edge, 1e-9))).clip(0, 1)


def _noise(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1, (H, W)."""
    from PIL import Image

    coarse = Image.fromarray(rng.normal(size=(6, 6)).astype(np.float32))
    smooth = np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))
    return (smooth - smooth.mean()) / max(smooth.std(), 1e-9)


def _pixels(shape: tuple[int, int]) -> np.ndarray:
    """Rows and columns of the centres of pixels, (2, H, W)."""
    return np.mgrid[0 : shape[0], 0 : shape[1]] + 0.5


def _log_uniform(limits: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))


def _filled(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One colour, or a shifted other image; half of them in new hues."""
    channels = 3 if rng.random() < 1 / 2 else 1
    if rng.random() < 1 / 2:
        moved = np.roll(other, rng.integers(0, other.shape[:2]), (0, 1))
        return moved * rng.uniform(*CONTRAST, channels) + rng.uniform(-25, 25)
    colour = rng.uniform(0, 255, 3) if channels == 3 else _colour_of(other, rng) * rng.uniform(*BRIGHTNESS)
    return np.broadcast_to(colour, image.shape)


def _darkened(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image darker or, one time of four, brighter, as a crack or a stain leaves it."""
    return image * (rng.uniform(1.2, 2) if rng.random() < 1 / 4 else rng.uniform(0.1, 0.8))


def _gone(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The background of the object, as the border of the image shows it."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return np.broadcast_to(np.median(border, 0) * rng.uniform(*BRIGHTNESS), image.shape)


def _unevenly_lit(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with more light on one side of it than on the other."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = _pixels(image.shape[:2])
    across = np.cos(angle) * rows / image.shape[0] + np.sin(angle) * columns / image.shape[1]
    return image * (1 + rng.uniform(0.2, 0.8) * (across - across.mean()) / np.ptp(across) * 2)[..., None]


def _blurred(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    sigma = max(1.0, rng.uniform(*BLUR) * min(image.shape[:2]))
    return gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def _retextured(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The texture of the image at another scale."""
    by, (y, x) = rng.uniform(*ENLARGEMENT), rng.integers(0, image.shape[:2])
    rows, columns = ((np.arange(side) / by).astype(int) for side in image.shape[:2])
    return np.roll(image, (-y, -x), (0, 1))[rows[:, None], columns]


def _swapped(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another part of the image, turned upside down or mirrored."""
    turned = image[:: rng.choice([1, -1]), :: rng.choice([1, -1])]
    return np.roll(turned, rng.integers(0, image.shape[:2]), (0, 1))


def _recoloured(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image in another hue; of a grey one, as a negative or tinted."""
    if np.ptp(image, 2).max() < 8 and rng.random() < 1 / 2:
        return 255 - image
    return image.mean(2, keepdims=True) + (_colour_of(other, rng) - 128) * rng.uniform(0.5, 1, 3) * rng.choice([-1, 1])


def _colour_of(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[rng.integers(image.shape[0]), rng.integers(image.shape[1])]


KINDS: dict[str, tuple[Place, Change]] = {
    "spot": (_patch, _filled),
    "crack": (_crack, _darkened),
    "missing edge": (_border, _gone),
    "stain": (_region, _darkened),
    "uneven light": (_region, _unevenly_lit),
    "blur": (_region, _blurred),
    "texture": (_region, _retextured),
    "swapped part": (_region, _swapped),
    "wrong colour": (_region, _recoloured),
}
