"""The two locks of a record. They are locks of the operating system and die with their process.

A lease with a heartbeat would block the rerun after a kill. Order: request lock first, then the lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pybrush.errors import LockedError

WAIT_SECONDS = 60.0


@contextmanager
def coordinator_lock(folder: Path, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock under which ledger and folders are changed; never held while a stage trains.

    Raises:
        LockedError: where another process holds it for longer than `wait` seconds.
    """
    try:
        with FileLock(folder / "lock", timeout=wait, mode=0o600, thread_local=False):
            yield
    except Timeout as error:
        raise LockedError(
            f"another process has been writing to {folder} for more than {wait:.0f} seconds; "
            "wait for it, or end it, and call again."
        ) from error


@contextmanager
def request_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a request, for its whole life.

    Raises:
        LockedError: at once where another process serves a request on this record.
    """
    try:
        with FileLock(folder / "request.lock", timeout=0, mode=0o600, thread_local=False):
            yield
    except Timeout as error:
        raise LockedError(
            f"another process serves a request on {folder}; wait until it has finished and call again."
        ) from error
