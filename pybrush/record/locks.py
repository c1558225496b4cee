"""The two locks of a record. They are locks of the operating system and die with their process.

A lease with a heartbeat would block the rerun after a kill. Order: request lock first, then the lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pybrush.errors import LockedError
from pybrush.record.files import writing_to

_PATIENCE = 60.0
"""Seconds that a process waits for another one's writing."""


@contextmanager
def coordinator_lock(folder: Path) -> Iterator[None]:
    """Hold the lock under which ledger and folders are changed; never held while a stage trains.

    Raises:
        LockedError: where another process holds it for longer than a minute.
        StorageError: where the folder is read-only.
    """
    busy = (
        f"another process has been writing to {folder} for more than {_PATIENCE:.0f} seconds; "
        "wait for it, or end it, and call again."
    )
    with _held(folder / "lock", _PATIENCE, busy):
        yield


@contextmanager
def request_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a request, for its whole life.

    Raises:
        LockedError: at once where another process serves a request on this record.
        StorageError: where the folder is read-only.
    """
    busy = f"another process serves a request on {folder}; wait until it has finished and call again."
    with _held(folder / "request.lock", 0, busy):
        yield


@contextmanager
def _held(path: Path, seconds: float, busy: str) -> Iterator[None]:
    lock = FileLock(path, timeout=seconds, mode=0o600, thread_local=False)
    try:
        with writing_to(path):
            lock.acquire()
    except Timeout as error:
        raise LockedError(busy) from error
    try:
        yield
    finally:
        lock.release()
