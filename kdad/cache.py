"""Paying for the frozen teacher once: its features, remembered by the content of the pixels."""

from collections.abc import Sequence

import psutil
import torch
from torch import Tensor

from kdad.teachers import Teacher

SHARE_OF_FREE_MEMORY = 0.5


def fingerprint(pixels: Tensor) -> Tensor:
    """A 64-bit key (B,) of each image (B, C, H, W) of float32 pixels: a random linear hash of its bits."""
    bits = pixels.float().contiguous().flatten(1).view(torch.int32).long()
    weights = torch.randint(-(2**62), 2**62, bits.shape[1:], generator=torch.Generator().manual_seed(0))
    return (bits * weights.to(bits.device)).sum(1)


class CachedTeacher:
    """Stands in for the teacher it wraps; pixels it has seen come from memory, others from the teacher.

    Args:
        teacher: the teacher.
        batches: the uint8 images (B, 3, H, W) whose features to remember.
    """

    def __init__(self, teacher: Teacher, batches: Sequence[Tensor]):
        self.teacher = teacher
        total = sum(len(batch) for batch in batches)
        blank = teacher(teacher.preprocessing(batches[0][:1]))
        self.layers = [layer.new_empty(total, *layer.shape[1:]) for layer in blank]
        keys, start = [], 0
        for batch in batches:
            pixels = teacher.preprocessing(batch)
            keys.append(fingerprint(pixels))
            for memory, layer in zip(self.layers, teacher(pixels), strict=True):
                memory[start : start + len(batch)] = layer
            start += len(batch)
        self.keys, self.rows = torch.cat(keys).sort()

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """As `Teacher.__call__`."""
        rows = self._rows_of(pixels)
        return self.teacher(pixels) if rows is None else [layer[rows] for layer in self.layers]

    def knows(self, images: Tensor) -> bool:
        """Whether the features of all of these uint8 images (B, 3, H, W) come from memory."""
        known = self._rows_of(self.teacher.preprocessing(images)) is not None
        return known or (isinstance(self.teacher, CachedTeacher) and self.teacher.knows(images))

    def _rows_of(self, pixels: Tensor) -> Tensor | None:
        wanted = fingerprint(pixels)
        place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return self.rows[place] if torch.equal(self.keys[place], wanted) else None

    def __getattr__(self, name: str):
        return getattr(self.teacher, name)

    def to(self, device: str) -> "CachedTeacher":
        """As `Teacher.to`; what is remembered moves too."""
        self.teacher.to(device)
        self.layers = [layer.to(device) for layer in self.layers]
        self.keys, self.rows = self.keys.to(device), self.rows.to(device)
        return self


def remember(teacher: Teacher, batches: Sequence[Tensor]) -> Teacher | CachedTeacher:
    """The teacher with the features of `batches` in memory, or as it is where they would take too much of it."""
    if isinstance(teacher, CachedTeacher):
        batches = [batch for batch in batches if not teacher.knows(batch)]
    if not batches:
        return teacher
    features = teacher(teacher.preprocessing(batches[0][:1]))
    needed = sum(layer.nbytes for layer in features) * sum(len(batch) for batch in batches)
    if needed > SHARE_OF_FREE_MEMORY * _free_bytes(batches[0].device):
        return teacher
    return CachedTeacher(teacher, batches)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
