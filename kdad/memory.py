"""Settings of the C library's allocator, for programs that do nothing but run kdad. No torch here."""

import ctypes
import os
from contextlib import suppress
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of <malloc.h>
KEPT_BYTES = 2**30
MALLOC_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


@cache
def keep_freed_memory() -> bool:
    """Let this process reuse freed memory; returns whether the C library can, and nobody has set it differently.

    glibc returns blocks as large as activations at once, and the kernel clears every page of them anew for the next
    layer: on a CPU, that takes as long as computing. And it keeps an arena for each thread, of which only the first can
    hold large blocks. The command line and the app call this; a library must not change its host's allocator.
    """
    if any(name in os.environ for name in MALLOC_SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    settings = ((M_MMAP_THRESHOLD, KEPT_BYTES), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_ARENA_MAX, 1))
    done = [mallopt(name, value) for name, value in settings]
    return all(done)


def give_memory_back() -> None:
    """Return freed memory to the system, where the C library can.

    Blocks that one part of the work has freed do not always fit the next: others lie between them.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).malloc_trim(0)
