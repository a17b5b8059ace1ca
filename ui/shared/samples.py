"""Sample images that come with the app: textures, drawn and photographed, with defects, and a few photographs."""

import numpy as np
import streamlit as st
from PIL import Image

from kdad.data import patterns, photo_textures
from ui.shared.pictures import Picture, channels_last

SAMPLE_SEED = 100  # data sets of `kdad.data.sources` use lower seeds only
PHOTOGRAPHS = "photographs"
SMALL = 32  # pixels, of the images that CIFAR's students know
# Photographs by name, each with the square that is cut out of it: left, top and side in pixels.
SQUARES = {"cat": (100, 0, 300), "coffee": (90, 20, 370), "rocket": (213, 0, 427), "astronaut": (0, 0, 512)}
NAMES = (*photo_textures.CLASSES, *patterns.CLASSES, PHOTOGRAPHS)


def label(name: str) -> str:
    """The name on the page of one of `NAMES`."""
    if name == PHOTOGRAPHS:
        return f"photographs: {', '.join(SQUARES)}"
    return f"{name} ({'photographed' if name in photo_textures.CLASSES else 'drawn'})"


def pictures(name: str, draw: int) -> list[Picture]:
    """The samples of one of `NAMES`; another `draw` makes other images of a texture."""
    if name == PHOTOGRAPHS:
        return _photographs()
    return _of_photo_texture(name, draw) if name in photo_textures.CLASSES else of_pattern(name, draw)


@st.cache_data(max_entries=16, show_spinner=False)
def of_pattern(texture: str, draw: int) -> list[Picture]:
    """Samples of a drawn texture: normals of one texture, each kind of defect on it, and two other textures."""
    seed = SAMPLE_SEED + draw
    pictures = [
        Picture.of(f"normal {i + 1}", channels_last(image), "normal")
        for i, image in enumerate(patterns.normals(texture, 3, seed))
    ]
    for kind in patterns.DEFECTS:
        images, masks = patterns.defects(texture, kind, 1, seed)
        pictures.append(Picture.of(kind, channels_last(images[0]), "defect", masks[0]))
    others = [name for name in patterns.CLASSES if name != texture]
    for name in np.random.default_rng(seed).choice(others, 2, replace=False):
        pictures.append(Picture.of(str(name), channels_last(patterns.normals(name, 1, seed)[0]), "other texture"))
    return pictures


@st.cache_data(max_entries=16, show_spinner=False)
def _of_photo_texture(name: str, draw: int) -> list[Picture]:
    """Normals of one photographed texture, each kind of defect on it, and two other textures."""
    seed = SAMPLE_SEED + draw
    normals = photo_textures.normals(name, "test", 3, seed)
    made = [Picture.of(f"normal {i + 1}", channels_last(image), "normal") for i, image in enumerate(normals)]
    for kind in photo_textures.DEFECTS:
        images, masks = photo_textures.defective(name, kind, 1, seed)
        made.append(Picture.of(kind, channels_last(images[0]), "defect", masks[0]))
    for other in photo_textures.CLASSES:
        if other != name:
            (image,) = photo_textures.normals(other, "test", 1, seed)
            made.append(Picture.of(other, channels_last(image), "other texture"))
    return made


@st.cache_data(max_entries=1, show_spinner=False)
def _photographs() -> list[Picture]:
    """Each photograph in full, and a square of it at the size of CIFAR images."""
    made = []
    for name, (left, top, side) in SQUARES.items():
        with Image.open(photo_textures.PHOTOGRAPHS / f"{name}.jpg") as file:
            image = file.convert("RGB")
        square = image.crop((left, top, left + side, top + side))
        made.append(Picture.of(name, np.asarray(image)))
        made.append(
            Picture.of(f"{name}, {SMALL} px", np.asarray(square.resize((SMALL, SMALL), Image.Resampling.LANCZOS)))
        )
    return made
