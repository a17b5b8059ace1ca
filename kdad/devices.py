"""Which device to compute on; apart from training, so that scoring does not wait for Lightning."""

import torch

from kdad.errors import UserError


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
