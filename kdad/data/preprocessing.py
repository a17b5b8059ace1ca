"""Preprocessing from uint8 images to network inputs, batched and on the images' device."""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kdad.data.sizes import Size, as_size, size_in_words
from kdad.errors import UserError, one_of

BAND = 16  # rows of a resize matrix
SIZES_KEPT = 16  # of those matrices: people bring images of a few sizes, or all of different ones


@dataclass(frozen=True)
class Preprocessing:
    """Resize to `resize`, centre-crop to `crop`, scale to 0…1, subtract mean, divide by std.

    Sizes are (height, width); a number is the side of a square. An image of another aspect ratio is resized as a whole:
    no part of it is excluded from the score.
    """

    resize: Size
    crop: Size
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "lanczos"

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            object.__setattr__(self, name, as_size(getattr(self, name)))
        if not all(1 <= inner <= outer for inner, outer in zip(self.crop, self.resize, strict=True)):
            raise UserError(f"cannot crop {size_in_words(self.crop)} pixels out of {size_in_words(self.resize)}")
        colours = len(self.mean) == len(self.std) == 3 and all(map(math.isfinite, (*self.mean, *self.std)))
        if not colours or min(self.std) <= 0:
            raise UserError(f"mean and std must be three numbers each, not {self.mean} and {self.std}")
        one_of("interpolation", self.interpolation, INTERPOLATIONS)

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 (B, 3, H, W) to normalised float32 (B, 3, *crop)."""
        (top, left), (height, width) = self.border, self.crop
        return self._normalise(self._resize(images)[..., top : top + height, left : left + width])

    @property
    def border(self) -> Size:
        """The rows above and the columns left of the crop."""
        rows, columns = ((outer - inner) // 2 for outer, inner in zip(self.resize, self.crop, strict=True))
        return rows, columns

    def augmented(self, images: Tensor, flip: bool, random_crop: bool) -> Tensor:
        """Like a call, with random horizontal flips (`flip`) or random crops (`random_crop`)."""
        offset = torch.tensor(self.border, device=images.device).expand(len(images), 2)
        if random_crop:
            room = torch.tensor(self.resize, device=images.device) - torch.tensor(self.crop, device=images.device)
            offset = torch.randint(0, int(room.max()) + 1, (len(images), 2), device=images.device) % (room + 1)
        if flip:
            images = random_mirror(images)
        return self._normalise(crop_at(self._resize(images), offset, self.crop))

    def to_input(self, heatmap: Tensor, height: int, width: int) -> Tensor:
        """Upsample a map of the crop (B, h, w) to the whole input (B, height, width), with 0 outside the crop."""
        scaled = resample(heatmap[:, None], *self.crop, "bilinear")[:, 0]
        (top, left), (rows, columns) = self.border, self.resize
        below, right = rows - self.crop[0] - top, columns - self.crop[1] - left
        framed = torch.nn.functional.pad(scaled, (left, right, top, below))
        return resample(framed[:, None], height, width, "bilinear")[:, 0]

    def cropped(self, maps: Tensor) -> Tensor:
        """The part of maps of the whole input (…, H, W), of any size, that lies in the crop."""
        rows, columns = (
            slice(size * before // outer, -(-size * (before + inner) // outer))
            for size, before, inner, outer in zip(maps.shape[-2:], self.border, self.crop, self.resize, strict=True)
        )
        return maps[..., rows, columns]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Preprocessing":
        """The inverse of `as_dict`; `interpolation` may have its earlier name, `kernel`."""
        fields = {{"kernel": "interpolation"}.get(name, name): value for name, value in fields.items()}
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})

    def _resize(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == self.resize:
            return images.float()
        height, width = self.resize
        # In training, autocast would round pixels to bfloat16, unlike in scoring and in the feature cache.
        with torch.autocast(images.device.type, enabled=False):
            # As in PIL: first the width, then the height, clipping overshoot at hard edges after each.
            across = _resize_rows(images, width, self.interpolation).clamp(0, 255)
            return _resize_rows(across.mT, height, self.interpolation).clamp(0, 255).mT.contiguous()

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return (pixels / 255 - mean) / std


def random_mirror(images: Tensor) -> Tensor:
    """Flip each image (B, C, H, W) horizontally with probability ½."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


def crop_at(images: Tensor, offset: Tensor, size: Size) -> Tensor:
    """Cut windows of (height, width) at (row, column) offsets (B, 2) out of images (B, C, H, W)."""
    if images.shape[-2:] == size:
        return images
    rows, columns = (offset[:, axis, None] + torch.arange(size[axis], device=images.device) for axis in (0, 1))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    # Advanced indexing around the channel axis puts that axis last: move it back.
    return images[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resample(images: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Antialiased resize of images (B, C, H, W) to float32, as in PIL."""
    return _resize_rows(_resize_rows(images, width, interpolation).mT, height, interpolation).mT


def _resize_rows(images: Tensor, width: int, interpolation: str) -> Tensor:
    """Resize the last axis of images (…, W) to float32 (…, width) by matrix products."""
    resized = [
        images[..., read].to(torch.float32, memory_format=torch.contiguous_format) @ weights.to(images.device).T
        for read, weights in _resize_bands(images.shape[-1], width, interpolation)
    ]
    return torch.cat(resized, -1) if len(resized) > 1 else resized[0]


@lru_cache(maxsize=SIZES_KEPT)
def _resize_bands(size_in: int, size_out: int, interpolation: str) -> list[tuple[slice, Tensor]]:
    """Bands of rows of `resize_matrix` without surrounding zeros, each with the slice of inputs it reads.

    A single band suffices unless the size is reduced a lot, where nearly all of the matrix is zero.
    """
    band, bands = BAND if size_in > 2 * size_out else size_out, []
    for first in range(0, size_out, band):
        rows = range(first, min(first + band, size_out))
        read = _inputs_of(rows, size_in, size_out, interpolation)
        bands.append((read, _weights(rows, read, size_in, size_out, interpolation)))
    return bands


def resize_matrix(size_in: int, size_out: int, interpolation: str) -> Tensor:
    """Matrix (size_out, size_in) of a one-dimensional resize; every row sums to one."""
    return _weights(range(size_out), slice(0, size_in), size_in, size_out, interpolation)


def _inputs_of(rows: range, size_in: int, size_out: int, interpolation: str) -> slice:
    """The inputs that rows of `resize_matrix` read."""
    scale = size_in / size_out
    reach = INTERPOLATIONS[interpolation][0] * max(scale, 1.0)
    first, last = (rows[0] + 0.5) * scale - reach, (rows[-1] + 0.5) * scale + reach
    return slice(max(0, math.floor(first + 0.5)), min(size_in, math.ceil(last - 0.5)))


def _weights(rows: range, read: slice, size_in: int, size_out: int, interpolation: str) -> Tensor:
    """Those rows of `resize_matrix`, of those inputs."""
    support, weight = INTERPOLATIONS[interpolation]
    scale = size_in / size_out
    centre = (torch.tensor(rows, dtype=torch.float64)[:, None] + 0.5) * scale
    distance = (torch.arange(read.start, read.stop, dtype=torch.float64) + 0.5 - centre) / max(scale, 1.0)
    matrix = weight(distance) * (distance.abs() < support)
    return (matrix / matrix.sum(1, keepdim=True)).float()


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


INTERPOLATIONS = {
    "bilinear": (1.0, lambda x: (1 - x.abs()).clamp(min=0)),
    "bicubic": (2.0, lambda x: _cubic(x.abs())),
    "lanczos": (3.0, lambda x: torch.sinc(x) * torch.sinc(x / 3) * (x.abs() < 3)),
}
