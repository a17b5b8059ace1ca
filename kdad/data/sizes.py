"""Sizes of images, and the one at which a folder of them is read. No torch here."""

from collections.abc import Sequence

Size = tuple[int, int]  # (height, width) in pixels


def as_size(size: int | Sequence[int]) -> Size:
    """(height, width) from either, or from the side of a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def size_in_words(size: Size) -> str:
    """`256` for a square of 256 pixels a side, `160×416` for another size."""
    height, width = size
    return str(height) if height == width else f"{height}×{width}"
