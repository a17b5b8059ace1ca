"""Pieces of an image for the networks: all of it, or overlapping tiles, whose maps are put together again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kdad.data.preprocessing import Preprocessing, resample
from kdad.devices import concatenated

PIECES_AT_ONCE = 64


class Tiler(Protocol):
    """The way from images to the pieces that the networks see, and from maps over pieces to maps over images."""

    def split(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to pieces (B·n, 3, h, w), those of an image together."""

    def merge(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Maps over pieces (B·n, h, w) of images of height×width pixels to maps over the images (B, h', w')."""

    def resolution(self, merged: Sequence[Tensor]) -> tuple[int, int]:
        """The (height, width) at which merged maps of several layers are combined."""

    def to_image(self, merged: Tensor, height: int, width: int) -> Tensor:
        """A merged map (B, h, w), upsampled bilinearly over images of height×width pixels: (B, height, width)."""


def tiler_for(preprocessing: Preprocessing, tile_size: int) -> Tiler:
    """Tiles of `tile_size` pixels a side, or whole images for 0."""
    return Tiles(preprocessing, tile_size) if tile_size else WholeImages(preprocessing)


def in_chunks(look: Callable[[Tensor], tuple[Tensor, ...]], pieces: Tensor) -> tuple[Tensor, ...]:
    """Apply `look` to pieces (N, 3, h, w), a few of them at once, and put each of its tensors together again."""
    if torch.compiler.is_exporting():  # an exported network does not know how many images there will be
        return look(pieces)
    return concatenated([look(part) for part in pieces.split(PIECES_AT_ONCE)])


@dataclass(frozen=True)
class WholeImages:
    """Every image is its only piece; maps lie over the crop that the teacher sees."""

    preprocessing: Preprocessing

    def split(self, images: Tensor) -> Tensor:
        return images

    def merge(self, maps: Tensor, height: int, width: int) -> Tensor:
        return maps

    def resolution(self, merged: Sequence[Tensor]) -> tuple[int, int]:
        return self.preprocessing.crop

    def to_image(self, merged: Tensor, height: int, width: int) -> Tensor:
        return self.preprocessing.to_input(merged, height, width)


@dataclass(frozen=True)
class Tiles:
    """Tiles of `tile_size` pixels a side that overlap by half; maps lie over the whole image."""

    preprocessing: Preprocessing
    tile_size: int

    def split(self, images: Tensor) -> Tensor:
        return self._tiling(*images.shape[2:]).cut(images)

    def merge(self, maps: Tensor, height: int, width: int) -> Tensor:
        return self._tiling(height, width).stitch(self.preprocessing.to_input(maps, *self.preprocessing.resize))

    def resolution(self, merged: Sequence[Tensor]) -> tuple[int, int]:
        height, width = merged[0].shape[1:]  # the finest comes first
        return height, width

    def to_image(self, merged: Tensor, height: int, width: int) -> Tensor:
        return resample(merged[:, None], height, width, "bilinear")[:, 0]

    def _tiling(self, height: int, width: int) -> "Tiling":
        (size, _), (crop, _) = self.preprocessing.resize, self.preprocessing.crop  # tiles are square
        return Tiling(height, width, self.tile_size, size, size - crop)


@dataclass(frozen=True)
class Tiling:
    """Tiles of at most `tile_size` pixels a side that cover images of `height`×`width` pixels.

    Tiles overlap by half, and the last ones end where the image does. Maps over tiles are stitched
    on a canvas on which every tile has `image_size` points, of which `border` in all lie outside of what
    was looked at.
    """

    height: int
    width: int
    tile_size: int
    image_size: int
    border: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of a tile in pixels: an image that is smaller is one tile."""
        return min(self.tile_size, self.height), min(self.tile_size, self.width)

    @property
    def places(self) -> list[tuple[int, int]]:
        """The upper left corners (row, column) of the n tiles, in rows."""
        rows, columns = (
            _starts(length, piece) for length, piece in zip((self.height, self.width), self.shape, strict=True)
        )
        return [(row, column) for row in rows for column in columns]

    def cut(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tiles (B·n, 3, h, w), those of an image together."""
        height, width = self.shape
        tiles = [images[:, :, row : row + height, column : column + width] for row, column in self.places]
        return torch.stack(tiles, 1).flatten(0, 1)

    def stitch(self, maps: Tensor) -> Tensor:
        """Maps over tiles (B·n, image_size, image_size) to one map over each image (B, h, w).

        Where tiles overlap, each counts the less the nearer its border is.
        """
        places = [self._on_canvas(place) for place in self.places]
        maps = maps.unflatten(0, (-1, len(places)))
        window = self._window().to(maps)
        height, width = (max(place[axis] for place in places) + self.image_size for axis in (0, 1))
        total, weight = maps.new_zeros(maps.shape[0], height, width), maps.new_zeros(height, width)
        for index, (row, column) in enumerate(places):
            where = (..., slice(row, row + self.image_size), slice(column, column + self.image_size))
            total[where] += maps[:, index] * window
            weight[where] += window
        return total / weight.clamp(min=1e-6)

    def _window(self) -> Tensor:
        """The weight of each point (image_size, image_size) of a tile."""
        before = self.border // 2
        inside = torch.hann_window(self.image_size - self.border + 2, periodic=False)[1:-1]
        ramp = torch.nn.functional.pad(inside, (before, self.border - before))
        return ramp[:, None] * ramp

    def _on_canvas(self, place: tuple[int, int]) -> tuple[int, int]:
        height, width = self.shape
        return round(place[0] * self.image_size / height), round(place[1] * self.image_size / width)


def _starts(length: int, piece: int) -> list[int]:
    """Beginnings of pieces that overlap by half and cover `length`."""
    last, step = length - piece, max(1, piece // 2)
    return [*range(0, last, step), last]
