"""Sizes of images, and the one at which a folder of them is read. No torch here."""

import math
from collections.abc import Sequence
from statistics import median

Size = tuple[int, int]  # (height, width) in pixels
MULTIPLE = 32  # pixels: the stride of the coarsest features
# Times the size at which they are read: above that, a whole image would lose any defect's details. Photographs of 12
# million pixels are below it: the score of whole images finds far more than that of tiles (see docs/defects.md).
TILED_ABOVE = 10
MIN_AREA, MAX_AREA = 256**2, 384**2  # pixels; beyond that, time grows and the receptive field covers less of a defect


def as_size(size: int | Sequence[int]) -> Size:
    """(height, width) from either, or from the side of a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def size_in_words(size: Size) -> str:
    """`256` for a square of 256 pixels a side, `160×416` for another size."""
    height, width = size
    return str(height) if height == width else f"{height}×{width}"


def need_tiles(sizes: Sequence[Size], image_size: Size) -> bool:
    """Whether images of these sizes are too large to be read as a whole at `image_size`."""
    return median(map(math.prod, sizes)) > TILED_ABOVE**2 * math.prod(image_size)


def whole_size(sizes: Sequence[Size]) -> Size | None:
    """The size at which to read images of these sizes as a whole; None where they need tiles."""
    fitting = fitting_size(sizes)
    return None if need_tiles(sizes, fitting) else fitting


def fitting_size(sizes: Sequence[Size]) -> Size:
    """The size at which to read images of these sizes: their median, within `MIN_AREA` and `MAX_AREA`, in its aspect.

    Each side is a multiple of `MULTIPLE`. The rule looks at sizes alone, never at figures.
    """
    height, width = (median(size[axis] for size in sizes) for axis in (0, 1))
    area = min(max(height * width, MIN_AREA), MAX_AREA)
    scale = math.sqrt(area / (height * width))
    rows, columns = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))
    return rows, columns
