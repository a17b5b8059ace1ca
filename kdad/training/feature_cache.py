"""A cache of the frozen teacher's features, keyed by the content of the pixels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kdad.data.images import in_batches
from kdad.data.task import Images
from kdad.devices import SHARE_OF_FREE_MEMORY, free_bytes
from kdad.networks.teachers.loading import Teacher
from kdad.progress import FEATURES, advance


def fingerprint(pixels: Tensor) -> Tensor:
    """Hash each image (B, C, H, W) of float32 pixels to a 64-bit key (B,): a random linear hash of its bits."""
    bits = pixels.float().contiguous().flatten(1).view(torch.int32).long()
    return (bits * _hash_weights(bits.shape[1]).to(bits.device)).sum(1)


@cache
def _hash_weights(count: int) -> Tensor:
    return torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(0))


class Views(Sequence[Tensor]):
    """Batches of images as a teacher will see them, some of them mirrored on access.

    Args:
        images: any number of uint8 (N, 3, H, W).
        to_mirror: more of the same, whose mirror images will be shown.
        device: where to.
    """

    def __init__(self, images: Iterable[Images], to_mirror: Iterable[Images], device: str | torch.device):
        parts = [(images, False), (to_mirror, True)]
        self._batches = [
            (batch, mirrored) for of_kind, mirrored in parts for each in of_kind for batch in in_batches(each)
        ]
        self._device = device

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]  # no slices
        batch, mirrored = self._batches[index]
        return batch.to(self._device).flip(-1) if mirrored else batch.to(self._device)


@dataclass(frozen=True)
class FeatureCache:
    """A teacher's features of N images: `keys` (N,), sorted, the `rows` they belong to, and `layers` (N, T, D)."""

    keys: Tensor
    rows: Tensor
    layers: list[Tensor]

    @classmethod
    def of(cls, teacher: Teacher, batches: Sequence[Tensor]) -> "FeatureCache":
        """The features of uint8 images, in batches (B, 3, H, W)."""
        total = sum(len(batch) for batch in batches)
        layers = [layer.new_empty(total, *layer.shape[1:]) for layer in teacher(teacher.preprocessing(batches[0][:1]))]
        keys, start = [], 0
        for batch in batches:
            pixels = teacher.preprocessing(batch)
            keys.append(fingerprint(pixels))
            for memory, layer in zip(layers, teacher(pixels), strict=True):
                memory[start : start + len(batch)] = layer
            start += len(batch)
            advance(FEATURES, len(batch))
        ordered, rows = torch.cat(keys).sort()
        return cls(ordered, rows, layers)

    def lookup(self, wanted: Tensor) -> list[Tensor] | None:
        """The features of the images with these keys (B,), or None unless all of them are remembered."""
        place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        if not torch.equal(self.keys[place], wanted):
            return None
        return [layer[self.rows[place]] for layer in self.layers]

    def to(self, device: str | torch.device) -> "FeatureCache":
        """The same on another device."""
        return FeatureCache(self.keys.to(device), self.rows.to(device), [layer.to(device) for layer in self.layers])


@dataclass(frozen=True)
class CachedTeacher(Teacher):
    """A teacher that returns the features of known images from memory, and runs its network on others."""

    caches: tuple[FeatureCache, ...]

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """As `Teacher.__call__`."""
        recalled = self._lookup(pixels)
        return super().__call__(pixels) if recalled is None else recalled

    def targets(self, pixels: Tensor) -> list[Tensor]:
        """As `Teacher.targets`."""
        recalled = self._lookup(pixels)
        return super().targets(pixels) if recalled is None else recalled

    def knows(self, images: Tensor) -> bool:
        """Whether the features of all of these uint8 images (B, 3, H, W) come from memory."""
        return self._lookup(self.preprocessing(images)) is not None

    def to(self, device: str | torch.device) -> "CachedTeacher":
        """As `Teacher.to`; what is remembered moves too."""
        super().to(device)
        return CachedTeacher(**_fields(self), caches=tuple(memory.to(device) for memory in self.caches))

    def _lookup(self, pixels: Tensor) -> list[Tensor] | None:
        wanted = fingerprint(pixels)
        return next((found for memory in self.caches if (found := memory.lookup(wanted)) is not None), None)


def cache_features(teacher: Teacher, batches: Sequence[Tensor]) -> Teacher:
    """Return the teacher with the features of `batches` in memory, or unchanged where they would not fit."""
    caches: tuple[FeatureCache, ...] = ()
    if isinstance(teacher, CachedTeacher):
        caches, batches = teacher.caches, [batch for batch in batches if not teacher.knows(batch)]
    if not batches:
        return teacher
    features = teacher(teacher.preprocessing(batches[0][:1]))
    needed = sum(layer.nbytes for layer in features) * sum(len(batch) for batch in batches)
    if needed > SHARE_OF_FREE_MEMORY * free_bytes(batches[0].device):
        return teacher
    return CachedTeacher(**_fields(teacher), caches=(*caches, FeatureCache.of(teacher, batches)))


def _fields(teacher: Teacher) -> dict[str, Any]:
    """The fields that every teacher has."""
    return {name: getattr(teacher, name) for name in Teacher.__dataclass_fields__}
