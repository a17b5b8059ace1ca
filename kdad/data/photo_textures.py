"""`photo-textures`: crops of photographs of textures, with rendered defects and exact masks.

The three photographs are free and come with kdad (`photographs/SOURCES.txt`): 512 px a side, grey. A crop is a square
of about a quarter of a side, mirrored, of another light each and, where a texture has no upright, turned. Training
crops are of the left half of a photograph. Calibration and test crops are drawn alike from the right half, so that
p-values are exact for crops of this half; the other half may differ from it. Crops overlap within their half, and vary
less than as many photographs would. No torch here.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kdad.files import sha256_of

PHOTOGRAPHS = Path(__file__).parent / "photographs"
CLASSES = ("brick", "grass", "gravel")
UPRIGHT = ("brick",)
SIDE, HALF = 256, 256  # pixels: the side of a crop as it is given, and the width of half a photograph
CROP = (112.0, 128.0)  # pixels of a photograph
LEFT = {"train": 0, "calibration": HALF, "test": HALF}  # edge of the half that a part's crops are of
CONTRAST, BRIGHTNESS, NOISE = (0.9, 1.1), (-12.0, 12.0), 1.5  # of the light of a crop: factor, grey levels, deviation
FINER = 4  # by which lines are drawn larger, to have smooth edges
VERSION = 1  # of what is drawn: students of another have seen other images


def normals(name: str, part: str, n: int, seed: int) -> np.ndarray:
    """n crops of the texture `name`, of a part's half, uint8 (n, 3, 256, 256); deterministic."""
    rng = np.random.default_rng([seed, CLASSES.index(name)])
    return np.stack([_to_uint8(_crop(name, part, rng), rng) for _ in range(n)])


def defective(name: str, kind: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n test crops of the texture `name` with a defect each, and their exact masks.

    Args:
        kind: one of `DEFECTS`: a bright scratch, a dark stain, a hole, a splash of paint, or another texture.

    Returns:
        uint8 (n, 3, 256, 256) and bool (n, 256, 256).
    """
    rng = np.random.default_rng([seed, CLASSES.index(name), 1 + list(DEFECTS).index(kind)])
    cover, change = DEFECTS[kind]
    images, masks = [], []
    for _ in range(n):
        image, where = _crop(name, "test", rng), cover(rng)
        changed = change(image, name, rng)
        images.append(_to_uint8(image + (changed - image) * where, rng))
        masks.append(where > 0.5)
    return np.stack(images), np.stack(masks)


def fingerprint(what: str) -> str:
    """SHA-256 of the description `what`, the photographs, and the version of what is drawn from them."""
    files = sha256_of(PHOTOGRAPHS / f"{name}.png" for name in CLASSES)
    return hashlib.sha256(f"{what} {VERSION} {files}".encode()).hexdigest()


@cache
def _photograph(name: str) -> Image.Image:
    with Image.open(PHOTOGRAPHS / f"{name}.png") as file:
        return file.convert("F")


def _crop(name: str, part: str, rng: np.random.Generator) -> np.ndarray:
    """A crop of a part's half, float (3, 256, 256) in 0…255, not clipped."""
    side = rng.uniform(*CROP)
    x, y = LEFT[part] + rng.uniform(0, HALF - side), rng.uniform(0, 2 * HALF - side)
    crop = _photograph(name).resize((SIDE, SIDE), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
    grey = np.asarray(crop)[:: rng.choice([1, -1]), :: rng.choice([1, -1])]
    turned = np.rot90(grey, 0 if name in UPRIGHT else int(rng.integers(4)))
    lit = (turned - turned.mean()) * rng.uniform(*CONTRAST) + turned.mean() + rng.uniform(*BRIGHTNESS)
    return np.broadcast_to(lit, (3, SIDE, SIDE))


def _to_uint8(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (image + rng.normal(0, NOISE, image.shape)).clip(0, 255).round().astype(np.uint8)


def _line(rng: np.random.Generator) -> np.ndarray:
    """Coverage in 0…1 of each pixel by a thin, slightly bent line, (256, 256)."""
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.15, 8))
    steps = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(60, 180) / len(angles)
    points = np.cumsum(steps, 0)
    points += rng.uniform(0.3, 0.7, 2) * SIDE - points.mean(0)
    canvas = Image.new("L", (SIDE * FINER, SIDE * FINER))
    width = round(rng.uniform(2, 4) * FINER)
    ImageDraw.Draw(canvas).line([tuple(point) for point in points * FINER], 255, width, "curve")
    return np.asarray(canvas.reduce(FINER), np.float64) / 255


def _blob(share: tuple[float, float]) -> Callable[[np.random.Generator], np.ndarray]:
    """Coverage by a region of irregular outline and soft edge, of a share of the image between these two."""

    def cover(rng: np.random.Generator) -> np.ndarray:
        area = np.exp(rng.uniform(*np.log(share)))
        coarse = Image.fromarray(rng.normal(size=(8, 8)).astype(np.float32))
        noise = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
        y, x = rng.uniform(0.2, 0.8, 2)
        height = 0.35 * noise - np.hypot(rows - y, (columns - x) * rng.uniform(0.6, 1.6)) / np.sqrt(area)
        inside = Image.fromarray(((height >= np.quantile(height, 1 - area)) * 255).astype(np.uint8))
        return np.asarray(inside.filter(ImageFilter.GaussianBlur(1.5)), np.float64) / 255

    return cover


def _brightened(image: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    return image + (rng.uniform(220, 255) - image) * 0.8


def _darkened(image: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    return image * rng.uniform(0.4, 0.65)


def _black(image: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    return np.full_like(image, rng.uniform(5, 30))


def _painted(image: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """The image under a layer of paint of any hue, through which its relief shows."""
    colour = rng.permutation([rng.uniform(150, 220), rng.uniform(40, 120), rng.uniform(10, 60)])
    return colour[:, None, None] + 0.35 * (image - image.mean())


def _foreign(image: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """Another of the textures, in the light of this one."""
    other = _crop(rng.choice([each for each in CLASSES if each != name]), "test", rng)
    return other - other.mean() + image.mean()


DEFECTS = {
    "scratch": (_line, _brightened),
    "stain": (_blob((0.01, 0.06)), _darkened),
    "hole": (_blob((0.003, 0.03)), _black),
    "paint": (_blob((0.003, 0.04)), _painted),
    "foreign": (_blob((0.02, 0.08)), _foreign),
}
