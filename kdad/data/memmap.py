"""Memory-mapped tensors for training images that do not fit in memory."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdad.errors import UserError

LARGE = 2**29  # bytes from which images are stored on disk
ON_DISK = Path("/var/tmp")  # noqa: S108 - by convention; /tmp may be in memory


def memmap_stack(images: Iterable[Tensor], shape: tuple[int, int, int, int]) -> Tensor:
    """Stack `shape[0]` uint8 images of `shape[1:]` to one tensor, in a temporary file from `LARGE` bytes on.

    The file has no name and is deleted with the tensor. It is created in $TMPDIR, or else in /var/tmp.

    Raises:
        UserError: there is no space for the file.
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
            if hasattr(os, "posix_fallocate"):  # otherwise a disk that fills up later would crash the process
                os.posix_fallocate(file.fileno(), 0, bytes_needed)
            return torch.from_numpy(np.memmap(file, np.uint8, "w+", shape=shape))
    except OSError as error:
        gigabytes = bytes_needed / 2**30
        raise UserError(
            f"{folder}: no room for {gigabytes:.1f} GiB of training images ({error.strerror}); set TMPDIR to a folder "
            "on a larger disk"
        ) from None
