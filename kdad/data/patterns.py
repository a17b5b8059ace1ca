"""`patterns` and `patterns-defects`: procedural 32 px textures, to run everything without downloads.

Every image is a grey-level function of rotated, scaled and shifted coordinates, mapped to a range between
two random colours, with a little sensor noise. Images are generated from a seed.
"""

import hashlib
from functools import cache

import numpy as np

SIZE = 32
DEFECTS = ("scratch", "spot", "hole", "patch")


def _stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sin(u) > 0


def _checkerboard(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sin(u) * np.sin(v) > 0


def _dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.cos(u) + np.cos(v) > 0.9


def _rings(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sin(np.hypot(u, v) * 1.3) > 0


def _waves(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sin(u + 1.6 * np.sin(0.7 * v)) > 0


def _bricks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = np.floor(v / np.pi)
    along = (u / (2 * np.pi) + 0.5 * (row % 2)) % 1
    return (v / np.pi % 1 > 0.22) & (along > 0.12)


def _crosses(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = (u / (2 * np.pi)) % 1 - 0.5, (v / (2 * np.pi)) % 1 - 0.5
    arm, thick = 0.38, 0.12
    inside = (np.abs(x) < arm) & (np.abs(y) < arm)
    return inside & ((np.abs(x) < thick) | (np.abs(y) < thick))


def _triangles(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = (u / (2 * np.pi)) % 1, (v / (2 * np.pi)) % 1
    return np.abs(x - 0.5) < 0.5 * y


def _gradient(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(0.35 * u)


def _clouds(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    waves = [np.sin(a * u + b * v + c) for a, b, c in ((0.6, 0.2, 0), (-0.3, 0.7, 1), (0.4, -0.5, 2))]
    return 0.5 + np.sum(waves, axis=0) / 6


TEXTURES = {
    "stripes": _stripes,
    "checkerboard": _checkerboard,
    "dots": _dots,
    "rings": _rings,
    "waves": _waves,
    "bricks": _bricks,
    "crosses": _crosses,
    "triangles": _triangles,
    "gradient": _gradient,
    "clouds": _clouds,
}
CLASSES = tuple(TEXTURES)


def _coordinates(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random similarity transforms of the pixel grid: two arrays (n, 64, 64), oversampled by two."""
    y, x = np.mgrid[0 : 2 * SIZE, 0 : 2 * SIZE] / 2 - SIZE / 2
    angle, wavelength, shift_u, shift_v = rng.uniform(
        [-0.4, 7, 0, 0], [0.4, 11, 2 * np.pi, 2 * np.pi], (n, 4)
    ).T.reshape(4, n, 1, 1)
    k = 2 * np.pi / wavelength
    return k * (np.cos(angle) * x - np.sin(angle) * y) + shift_u, k * (np.sin(angle) * x + np.cos(angle) * y) + shift_v


def _two_colours(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A dark and a bright random colour per image, each (n, 3, 1, 1) in 0…1."""
    return rng.uniform(0.02, 0.45, (n, 3, 1, 1)), rng.uniform(0.55, 0.98, (n, 3, 1, 1))


def _to_uint8(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noisy = images + rng.normal(0, 0.02, images.shape)
    return (noisy.clip(0, 1) * 255).round().astype(np.uint8)


def _paint(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """n clean images of one texture, float (n, 3, 32, 32) in 0…1."""
    grey = TEXTURES[name](*_coordinates(n, rng)).astype(np.float64)
    grey = grey.reshape(n, SIZE, 2, SIZE, 2).mean((2, 4))[:, None]
    dark, bright = _two_colours(n, rng)
    return dark + (bright - dark) * grey


def normals(name: str, n: int, seed: int) -> np.ndarray:
    """n images of the texture `name`, uint8 (n, 3, 32, 32); deterministic."""
    rng = np.random.default_rng([seed, CLASSES.index(name)])
    return _to_uint8(_paint(name, n, rng), rng)


@cache
def fingerprint(what: str) -> str:
    """SHA-256 of the description `what` and of samples of every texture, which change with the generator."""
    digest = hashlib.sha256(what.encode())
    for name in CLASSES:
        digest.update(normals(name, 2, 0).tobytes())
    return digest.hexdigest()


def _defect_masks(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Masks of random defects, bool (n, 32, 32), of at least four pixels each."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    cy, cx, angle = rng.uniform([7, 7, 0], [SIZE - 7, SIZE - 7, np.pi], (n, 3)).T.reshape(3, n, 1, 1)
    dy, dx = y - cy, x - cx
    along, across = np.cos(angle) * dx + np.sin(angle) * dy, -np.sin(angle) * dx + np.cos(angle) * dy
    size = rng.uniform(2.5, 4.5, (n, 1, 1))
    if kind == "scratch":
        return (np.abs(along) < 2.2 * size) & (np.abs(across) < 1.0)
    if kind == "patch":
        return (np.abs(along) < size) & (np.abs(across) < size)
    return np.hypot(dy, dx) < size


def _apply_defect(
    kind: str, images: np.ndarray, mask: np.ndarray, other: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Change `images` (n, 3, 32, 32) inside `mask` (n, 1, 32, 32) only."""
    n = len(images)
    if kind == "patch":
        inside = other
    elif kind == "hole":
        inside = np.broadcast_to(rng.uniform(0, 0.08, (n, 1, 1, 1)), images.shape)
    elif kind == "spot":
        inside = 1 - images
    else:
        inside = np.broadcast_to(rng.uniform(0.9, 1.0, (n, 1, 1, 1)), images.shape)
    return np.where(mask, inside, images)


def defects(name: str, kind: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n defective images of the texture `name` and their exact masks.

    Returns uint8 (n, 3, 32, 32) and bool (n, 32, 32). `kind` is one of `DEFECTS`: a bright
    scratch, a colour-inverted spot, a dark hole, or a patch of another texture.
    """
    rng = np.random.default_rng([seed, CLASSES.index(name), DEFECTS.index(kind)])
    other = CLASSES[(CLASSES.index(name) + rng.integers(1, len(CLASSES))) % len(CLASSES)]
    images, foreign = _paint(name, n, rng), _paint(other, n, rng)
    mask = _defect_masks(kind, n, rng)
    return _to_uint8(_apply_defect(kind, images, mask[:, None], foreign, rng), rng), mask
