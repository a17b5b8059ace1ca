"""The device to compute on, its precision and its free memory."""

import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from kdad.errors import UserError, WorkFailed

Result = TypeVar("Result")
SHARE_OF_FREE_MEMORY = 0.5  # how much of it what is kept for speed may take


def accelerator(device: str) -> str:
    """The device that `device` (auto, cpu, cuda or mps) means on this machine; a `UserError` if it is not here."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if device not in available:
        raise UserError(f"unknown device {device!r}; choose one of: auto, cpu, cuda, mps")
    if not available[device]:
        raise UserError(f"device {device!r} is not available on this machine; use --device auto or cpu")
    return device


@contextmanager
def full_float32(device: torch.device | str) -> Iterator[None]:
    """Inside the block everything is computed in float32, whatever surrounds it.

    Autocast would round features to bfloat16, and a GPU's convolutions round float32 to ten bits: scores would differ
    from those that a CPU calibrated.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block torch computes with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_bytes(device: torch.device) -> int:
    """The free memory of a device in bytes; of main memory, what this process and its container may use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *_free_in_cgroups()])


def _free_in_cgroups(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """The memory that each limited control group of this process leaves to it, in bytes; see cgroups(7).

    The system does not tell: to a process in a container, the memory of the whole machine looks free.
    """
    try:
        groups = [line.split(":", 2)[1:] for line in proc.read_text().splitlines()]
    except (OSError, ValueError):
        return
    for controllers, path in groups:
        if controllers == "":
            folder, limit, used = root / path.lstrip("/"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            folder, limit, used = root / "memory" / path.lstrip("/"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        with suppress(OSError, ValueError):  # "max", or a group of another container
            yield max(0, int((folder / limit).read_text()) - int((folder / used).read_text()) + _given_back(folder))


def _given_back(folder: Path) -> int:
    """The bytes of cached files in a control group, which the system takes back when they are needed."""
    entries = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(entries.get("total_inactive_file", entries.get("inactive_file", 0)))


def move_if_it_fits(device: torch.device, tensor: Tensor) -> Tensor:
    """Move a tensor to `device`, unless it would take too much of the memory there."""
    fits = tensor.device == device or tensor.nbytes <= SHARE_OF_FREE_MEMORY * free_bytes(device)
    return tensor.to(device) if fits else tensor


def halving_on_out_of_memory(work: Callable[[Tensor], Result], batch: Tensor) -> list[Result]:
    """Results of `work` for a batch (B, …), or for its halves, and so on, where memory runs out.

    Raises:
        WorkFailed: memory does not even suffice for one image.
    """
    try:
        return [work(batch)]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise WorkFailed("the device ran out of memory on a single image; use --device cpu") from None
    return [result for half in batch.chunk(2) for result in halving_on_out_of_memory(work, half)]


def concatenated(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Concatenate tensors computed from parts of a batch; a lone part is not copied, since its maps may be large."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))


def hardware(device: str) -> str:
    """A description of the hardware that a run's seconds were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{device}, {platform.machine()}, {torch.get_num_threads()} threads"


def threads_of(hardware: str) -> int | None:
    """The number of threads in a description by `hardware`; None for a GPU's."""
    found = re.fullmatch(r"\w+, .*, (\d+) threads", hardware)
    return int(found[1]) if found else None
