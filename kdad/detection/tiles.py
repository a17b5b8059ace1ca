"""Large images in overlapping tiles: cut, judged one by one, and stitched, so that memory stays bounded."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdad.data.preprocessing import Preprocessing
from kdad.devices import joined

TILES_AT_ONCE = 64


@dataclass(frozen=True)
class Tiling:
    """How images of `height`×`width` pixels are covered by tiles of at most `tile` pixels a side.

    Tiles overlap by half, and the last ones end where the image does. Maps over tiles are stitched
    on a canvas on which every tile has `side` points, of which `border` in all lie outside of what
    was looked at.
    """

    height: int
    width: int
    tile: int
    side: int
    border: int = 0

    @classmethod
    def over(cls, images: Tensor, tile: int, preprocessing: Preprocessing) -> "Tiling":
        """The tiling of images (B, 3, H, W) whose tiles a network sees through `preprocessing`."""
        side = preprocessing.resize
        return cls(images.shape[2], images.shape[3], tile, side, side - preprocessing.crop)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of a tile in pixels: an image that is smaller is one tile."""
        return min(self.tile, self.height), min(self.tile, self.width)

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
        """Maps over tiles (B·n, side, side) to one map over each image (B, h, w).

        Where tiles overlap, each counts the less the nearer its border is.
        """
        places = [self._on_canvas(place) for place in self.places]
        maps = maps.unflatten(0, (-1, len(places)))
        window = self._window().to(maps)
        height, width = (max(place[axis] for place in places) + self.side for axis in (0, 1))
        total, weight = maps.new_zeros(maps.shape[0], height, width), maps.new_zeros(height, width)
        for index, (row, column) in enumerate(places):
            where = (..., slice(row, row + self.side), slice(column, column + self.side))
            total[where] += maps[:, index] * window
            weight[where] += window
        return total / weight.clamp(min=1e-6)

    def _window(self) -> Tensor:
        """How much each point (side, side) of a tile counts."""
        before = self.border // 2
        inside = torch.hann_window(self.side - self.border + 2, periodic=False)[1:-1]
        ramp = torch.nn.functional.pad(inside, (before, self.border - before))
        return ramp[:, None] * ramp

    def _on_canvas(self, place: tuple[int, int]) -> tuple[int, int]:
        height, width = self.shape
        return round(place[0] * self.side / height), round(place[1] * self.side / width)


def _starts(length: int, piece: int) -> list[int]:
    """Where pieces that overlap by half begin, so that they cover `length`."""
    last, step = length - piece, max(1, piece // 2)
    return [*range(0, last, step), last]


def map_tiles(look: Callable[[Tensor], tuple[Tensor, ...]], tiles: Tensor) -> tuple[Tensor, ...]:
    """What `look` says of tiles (N, 3, h, w), some at once, each of its answers put together again."""
    if torch.compiler.is_exporting():  # see `in_parts`
        return look(tiles)
    return joined([look(part) for part in tiles.split(TILES_AT_ONCE)])
