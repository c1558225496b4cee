"""The secret key of a record: where it is kept, how it is made once, and how it is told from others.

The key is the only way from a sample to its name on disk. It lies beside the record's folder, never in
it, so that a copy of the record alone reveals no names.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from pybrush.errors import SecretKeyError
from pybrush.hashing import KEY_BYTES
from pybrush.record.files import announced, sync_folder, unlink, write_new, writing_to

KEY_VARIABLE = "PYBRUSH_KEY_FILE"
"""Environment variable that names a file holding the key, in place of `<record>.key`."""

KeySource = bytes | Callable[[], bytes] | None


def key_path(record: Path) -> Path:
    """Return where the key of a record is kept when the user passes none."""
    named = os.environ.get(KEY_VARIABLE)
    return Path(named) if named else record.with_name(record.name + ".key")


def find_key(record: Path, source: KeySource) -> bytes | None:
    """Return the key from the argument, the environment or the file beside the record; None if there is none.

    Raises:
        SecretKeyError: where a key is there and is not 32 bytes.
    """
    if source is not None:
        return _checked(source() if callable(source) else source, "key=")
    path = key_path(record)
    if not path.exists():
        return None
    return _checked(path.read_bytes(), str(path))


def find_or_draw_key(record: Path, source: KeySource) -> bytes:
    """Return the key that is given or lies beside the record, else one from the OS's randomness; nothing is written.

    Raises:
        SecretKeyError: where a key is there and is not 32 bytes.
    """
    found = find_key(record, source)
    return secrets.token_bytes(KEY_BYTES) if found is None else found


def keep_key(record: Path, source: KeySource, key: bytes) -> bytes:
    """Write a key beside the record, unless one is given or lies there; return the one that counts.

    Called under the record's lock, before the ledger exists; who comes later finds the file. Records that
    share a key file have locks of their own, so the file is published only if there is none.

    Raises:
        SecretKeyError: where the file system cannot do that, or what is there is not 32 bytes.
        StorageError: where the disk is full or read-only.
    """
    if source is not None:
        return key
    path = key_path(record)
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    maker = hashlib.blake2b(str(record.resolve()).encode(), digest_size=8).hexdigest()
    temporary = path.with_name(f".{path.name}.{maker}.new")
    unlink(temporary)
    if not path.exists():
        write_new(temporary, key)
        _publish(temporary, path)
        unlink(temporary)
    return _checked(path.read_bytes(), str(path))


def _publish(temporary: Path, path: Path) -> None:
    """Give a file its final name, unless another process was faster."""
    with announced(f"link {path.name}"):
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError as error:
            raise SecretKeyError(
                f"no key could be made at {path} ({error}). Write {KEY_BYTES} random bytes to that file, set "
                f"{KEY_VARIABLE} to another place, or pass key=."
            ) from error
        sync_folder(path.parent)


def lost_key(record: Path) -> SecretKeyError:
    """Return the error for a record whose key cannot be found."""
    return SecretKeyError(
        f"the secret key of {record} was not found at {key_path(record)}. Its weights stay readable, but no sample "
        f"can be matched without the key, so no request can be served: restore the file, set {KEY_VARIABLE}, or "
        "pass key=."
    )


def _checked(key: bytes, where: str) -> bytes:
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        size = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise SecretKeyError(f"the key from {where} must be {KEY_BYTES} bytes; got {size}.")
    return key
