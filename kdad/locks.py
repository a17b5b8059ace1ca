"""Being the only one at some work, also among processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdad.errors import UserError


@contextmanager
def exclusive_lock(lock: Path, refusal: str) -> Iterator[None]:
    """Nobody else holds the file `lock` for the length of the block; the kernel ends that with the process.

    Raises:
        UserError: `refusal`, where somebody does.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        raise UserError(refusal) from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        held.release()
