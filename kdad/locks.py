"""Cross-process exclusive locks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdad.errors import UserError


@contextmanager
def exclusive_lock(lock: Path, refusal: str) -> Iterator[None]:
    """Cross-process exclusive lock on the file `lock`; the kernel releases it when the process ends.

    Raises:
        UserError: with the message `refusal`, if the lock is held elsewhere.
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
