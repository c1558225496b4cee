"""Writing, moving and removing the files of a record so that a crash at any instant loses nothing.

Whatever is written goes under a temporary name, is synced and then moved. Each step announces itself
to `observer`, before and after: the tests kill the process at every one of them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pybrush.errors import StorageError

observer: Callable[[str], None] | None = None
"""Called with "before <step>" and "after <step>" at each change on disk; None outside tests."""


_UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
}
"""What the system says of a disk that is full, read-only or failing."""


def not_writable(path: object, reason: object) -> StorageError:
    """Return the error for a place at which nothing can be written."""
    return StorageError(
        f"{path} could not be written ({reason}). Nothing that was recorded before is lost: make room on its disk, or "
        "make it writable for you, and call again."
    )


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Tell of a full, read-only or failing disk in our words.

    Raises:
        StorageError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise not_writable(path, error.strerror) from error


@contextmanager
def announced(step: str) -> Iterator[None]:
    """Tell the observer that a step begins and that it ended."""
    if observer is not None:
        observer(f"before {step}")
    yield
    if observer is not None:
        observer(f"after {step}")


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, whatever the umask; parents as usual."""
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            return
        path.chmod(0o700)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that does not exist yet, readable by its owner alone, and sync it; on error none is left."""
    write_pieces(path, (data,))


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file as `write_new` does, of bytes that come in pieces."""
    with announced(f"write {path.name}"), writing_to(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as stream:
                os.fchmod(stream.fileno(), 0o600)
                for piece in pieces:
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            with suppress(OSError):  # the first error tells why
                path.unlink()
            raise


def replace(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, sync it and move it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with writing_to(path):
        temporary.unlink(missing_ok=True)
    write_new(temporary, data)
    move(temporary, path)


def move(source: Path, target: Path) -> None:
    """Rename within one file system and sync the folder, so that the name survives a power loss."""
    with announced(f"rename {target.name}"), writing_to(target):
        source.replace(target)
        sync_folder(target.parent)


def unlink(path: Path) -> None:
    """Remove a file if it is there and sync its folder."""
    with announced(f"unlink {path.name}"), writing_to(path):
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)


def entries(folder: Path) -> list[Path]:
    """Return what lies in a folder; nothing where it is not there, since copying tools drop empty folders."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def erase(path: Path) -> None:
    """Remove a file, or a folder and all it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        remove_folder(path)
    else:
        unlink(path)


def remove_folder(path: Path) -> None:
    """Remove a folder and all it holds, if it is there."""
    with announced(f"remove {path.name}"), writing_to(path):
        if path.is_dir():
            shutil.rmtree(path)
        if path.parent.is_dir():
            sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    with writing_to(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
