"""Training images beyond what memory holds: a tensor in a file, whose pages the system brings in and drops."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdad.errors import UserError

LARGE = 2**29  # bytes from which images leave the main memory
ON_DISK = Path("/var/tmp")  # noqa: S108 - by convention; what is in /tmp may be in memory


def memmap_stack(images: Iterable[Tensor], shape: tuple[int, int, int, int]) -> Tensor:
    """`shape[0]` images, each uint8 of `shape[1:]`, as one tensor; of `LARGE` bytes or more, in a temporary file.

    The file has no name and goes with the tensor. It is where TMPDIR says, or in /var/tmp.

    Raises:
        UserError: there is no room for the file.
    """
    bytes_needed = int(np.prod(shape))
    stacked = _mapped(shape, bytes_needed) if bytes_needed >= LARGE else torch.empty(shape, dtype=torch.uint8)
    for place, image in zip(stacked, images, strict=True):
        place.copy_(image)
    return stacked


def _mapped(shape: tuple[int, int, int, int], bytes_needed: int) -> Tensor:
    folder = os.environ.get("TMPDIR") or (ON_DISK if os.access(ON_DISK, os.W_OK) else tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a disk that fills up later would end the process without a word
                os.posix_fallocate(file.fileno(), 0, bytes_needed)
            return torch.from_numpy(np.memmap(file, np.uint8, "w+", shape=shape))
    except OSError as error:
        gigabytes = bytes_needed / 2**30
        raise UserError(
            f"{folder}: no room for {gigabytes:.1f} GiB of training images ({error.strerror}); set TMPDIR to a folder "
            "on a larger disk"
        ) from None
