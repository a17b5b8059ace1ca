"""Which device to compute on, and what to do where its memory ends."""

import platform
from collections.abc import Callable

import torch
from torch import Tensor

from kdad.errors import UserError, WorkFailed


def accelerator(device: str) -> str:
    """The device that `device` (auto, cpu, cuda or mps) means on this machine; a `UserError` if it is not here."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if device not in available:
        raise UserError(f"unknown device {device!r}; choose one of: auto, cpu, cuda, mps")
    if not available[device]:
        raise UserError(f"device {device!r} is not available on this machine; use --device auto or cpu")
    # Else a GPU's convolutions round float32 to ten bits, and scores differ from those that a CPU calibrated.
    torch.backends.cudnn.allow_tf32 = False
    return device


def in_halves(work: Callable[[Tensor], tuple[Tensor, ...]], batch: Tensor) -> tuple[Tensor, ...]:
    """What `work` returns for a batch (B, …), put together from its halves where memory runs out.

    Raises:
        WorkFailed: memory does not even suffice for one image.
    """
    try:
        return work(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise WorkFailed("the device ran out of memory on a single image; use --device cpu") from None
    halves = [in_halves(work, half) for half in batch.chunk(2)]
    return tuple(torch.cat(column) for column in zip(*halves, strict=True))


def hardware(device: str) -> str:
    """What a run's seconds were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{device}, {platform.machine()}, {torch.get_num_threads()} threads"
