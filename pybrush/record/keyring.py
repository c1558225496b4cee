"""The key ring: one secret key for each encrypted state, beside the record's folder and never in it.

A stage whose key was destroyed is unreadable in every copy of the record, so the ring must not travel with the
record: not in its backups, not in its snapshots. A ring belongs to one record, which knows it by an id; keys of
another record would otherwise be taken for leftovers and destroyed. Guide: docs/security.md.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from pybrush.errors import RecordError, SecretKeyError
from pybrush.hashing import KEY_BYTES
from pybrush.record.files import announced, entries, make_folder, move, sync_folder, unlink, write_new, writing_to

_ID = "ring"
"""The file that tells one ring from others."""

_KEY_NAME = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{8}")

_LATEST = "latest"
"""The file that says how far the record had come when keys were last destroyed."""


def ring_path(record: Path) -> Path:
    """Return where the key ring of a record lies; it may be a link to a folder elsewhere."""
    return record.with_name(record.name + ".keys")


def make_ring(record: Path) -> KeyRing:
    """Make the empty ring of a record that is being made; one that a crash left behind is used.

    Raises:
        RecordError: where a ring with keys is there already.
    """
    folder = ring_path(record)
    held = [path for path in entries(folder) if _is_key(path)]
    if held:
        raise RecordError(
            f"{folder} holds {len(held)} keys of another record. If that record is gone, delete the folder; else name "
            "another folder for this record."
        )
    make_folder(folder)
    if not (folder / _ID).is_file():
        _replace(folder / _ID, secrets.token_bytes(16).hex())
        sync_folder(folder.parent)
    return KeyRing(folder, (folder / _ID).read_text(encoding="ascii"))


class KeyRing:
    """The keys of one record's encrypted states, each a file of 32 bytes that only its owner may read.

    Args:
        folder: where the keys lie.
        ring: the ring's id, as the record knows it.
    """

    def __init__(self, folder: Path, ring: str) -> None:
        self.folder, self.ring = folder, ring

    @property
    def is_here(self) -> bool:
        """Whether a ring lies in its place."""
        return (self.folder / _ID).is_file()

    def check(self) -> None:
        """Check that the ring is here and the record's own.

        Raises:
            SecretKeyError: where it is not.
        """
        if not self.is_here:
            raise SecretKeyError(
                f"the key ring {self.folder} is not there, and without it no encrypted stage can be read, built or "
                "collected. Put it back, or make a link there to where it is."
            )
        if (self.folder / _ID).read_bytes() != self.ring.encode():
            raise SecretKeyError(f"{self.folder} is the key ring of another record; put this record's own there.")

    def make(self, name: str) -> bytes:
        """Make a key and keep it, durably, under a name that is not taken."""
        self.check()
        key = secrets.token_bytes(KEY_BYTES)
        write_new(self.folder / name, key)
        sync_folder(self.folder)
        return key

    def key(self, name: str) -> bytes | None:
        """Return a key; None where it was destroyed or lost.

        Raises:
            SecretKeyError: where the ring is not here, or the key is damaged.
        """
        self.check()
        path = self.folder / name
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            return None
        if len(key) != KEY_BYTES:
            raise SecretKeyError(f"{path} must hold {KEY_BYTES} bytes; it holds {len(key)}. Restore it from a backup.")
        return key

    def names(self) -> list[str]:
        """Return the names of all keys.

        Raises:
            SecretKeyError: where the ring is not here or another record's.
        """
        self.check()
        return [path.name for path in entries(self.folder) if _is_key(path)]

    def latest(self) -> str | None:
        """Return what `note_latest` wrote, None where nothing was."""
        path = self.folder / _LATEST
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def note_latest(self, text: str) -> None:
        """Keep a text that says how far the record has come; call under the record's lock."""
        if text != self.latest():
            _replace(self.folder / _LATEST, text)

    def destroy(self, name: str) -> None:
        """Overwrite a key and remove it, durably; one that is gone already is no error.

        Raises:
            StorageError: where the disk is read-only or failing.
        """
        path = self.folder / name
        with announced("destroy key"), writing_to(path):
            try:
                with path.open("r+b") as stream:
                    stream.write(bytes(KEY_BYTES))
                    stream.flush()
                    os.fsync(stream.fileno())
            except FileNotFoundError:
                return
            path.unlink(missing_ok=True)
            sync_folder(self.folder)


def _is_key(path: Path) -> bool:
    """Whether a file is a key by its name; what else somebody put there is none of ours to destroy."""
    return _KEY_NAME.fullmatch(path.name) is not None


def _replace(path: Path, text: str) -> None:
    """Write a text under one temporary name, which a crash may leave and the next call removes; then move it."""
    temporary = path.with_name(f".{path.name}.new")
    unlink(temporary)
    write_new(temporary, text.encode())
    move(temporary, path)
