"""Which states of a record are encrypted, and the life of their keys: made before a state, destroyed with it.

A key's name is the state's key, a dot, and the random part of the temporary folder in which the state was written.
Guide: docs/record_format.md, "Encryption".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pybrush.errors import CorruptRecordError, RecordError, SecretKeyError
from pybrush.record.cipher import check_installed
from pybrush.record.keyring import KeyRing
from pybrush.record.ledger import Ledger
from pybrush.record.sealed import PlainFiles, SealedFiles, StateFiles

Note = Mapping[str, Any] | None
"""What a manifest says of the encryption; None for plain files."""

_PLAIN = "initial"
"""The one state that is never encrypted: it is never collected, so its key would never be destroyed."""


def key_id_of(aside: Path) -> str:
    """Return the name of the secret key of what is written in a temporary folder `<key>.<host>.<pid>.<random>`."""
    key, _, owner = aside.name.partition(".")
    return f"{key}.{owner.rpartition('.')[2]}"


class Vault:
    """Hands out what reads and writes the files of a state.

    Args:
        ring: the keys of encrypted states; None where the record encrypts none.
    """

    def __init__(self, ring: KeyRing | None) -> None:
        self.ring = ring

    def check(self) -> None:
        """Check that states can be read, written and collected.

        Raises:
            SecretKeyError: where the key ring is not there, or another record's.
            MissingExtraError: where what encrypts is not installed.
        """
        if self.ring is not None:
            self.ring.check()
            check_installed()

    def check_current(self, ledger: Ledger) -> None:
        """Check that a ledger is not older than the key ring.

        One from a backup would make leftovers of the keys of all stages that it does not know, and train again on
        what was forgotten since.

        Raises:
            RecordError: where events are missing that the ring has seen.
            SecretKeyError: where the ring is another record's.
        """
        if self.ring is None or not self.ring.is_here:
            return
        self.ring.check()
        latest = self.ring.latest()
        if latest is None:
            return
        number, _, digest = latest.partition(" ")
        if ledger.rows("SELECT lower(hex(digest)) FROM events WHERE number = ?", (number,)) != [(digest,)]:
            raise RecordError(
                f"{ledger.path} is older than its key ring: it lacks event {number}, which the ring has seen. If it "
                "was restored from a backup, it lacks the requests that were served since, and their stages are gone. "
                f"Put the later record back. If there is none, delete {self.ring.folder / 'latest'} and serve those "
                "requests again before anything else."
            )

    def note_latest(self, ledger: Ledger) -> None:
        """Let the key ring know how far the record has come; call under its lock, before keys are destroyed."""
        if self.ring is not None:
            self.ring.check()
            ((number, digest),) = ledger.rows("SELECT number, digest FROM events ORDER BY number DESC LIMIT 1")
            self.ring.note_latest(f"{number} {digest.hex()}")

    def new_files(self, state: str, aside: Path) -> StateFiles:
        """Return what writes a new state into a temporary folder; its key is durable before its first byte."""
        if self.ring is None or state == _PLAIN:
            return PlainFiles()
        key_id = key_id_of(aside)
        return SealedFiles(state, aside, key_id, self.ring.make(key_id), {})

    def files(self, state: str, note: Note, folder: Path) -> StateFiles:
        """Return what reads a stored state.

        Raises:
            SecretKeyError: where its secret key is not there.
            CorruptRecordError: where it is encrypted and must not be, or the other way round.
        """
        if note is None and (self.ring is None or state == _PLAIN):
            return PlainFiles()
        if note is None or self.ring is None or state == _PLAIN:
            raise CorruptRecordError(
                f"{folder / 'manifest.json'} says that the state is {'not ' if note is None else ''}encrypted, unlike "
                "this record. Restore the stage from a backup."
            )
        check_installed()
        secret = self.ring.key(note["key_id"])
        if secret is None:
            raise SecretKeyError(
                f"the key of the state in {folder} is not in {self.ring.folder}, so the state is gone as if it had "
                f"been erased. Restore {note['key_id']} from a copy of the ring; or delete {folder} and fit again, "
                "which trains it anew from the state before it."
            )
        return SealedFiles(state, folder, note["key_id"], secret, note["files"])

    def can_open(self, note: Note) -> bool:
        """Whether a state is not encrypted, or the key ring is in its place."""
        return note is None or self.ring is None or self.ring.is_here

    def destroy(self, key_id: str) -> None:
        """Destroy one secret key, if it is there."""
        if self.ring is not None:
            self.ring.destroy(key_id)

    def destroy_all(self, state: str) -> int:
        """Destroy every secret key that was made for a state; return how many there were."""
        doomed = [] if self.ring is None else [n for n in self.ring.names() if _state_of(n) == state]
        for key_id in doomed:
            self.destroy(key_id)
        return len(doomed)

    def sweep(self, being_written: set[str], is_used: Callable[[str, str], bool]) -> None:
        """Destroy keys of states that were never published.

        Args:
            being_written: names of the keys of states on their way.
            is_used: (state, name of a key) -> whether the stored state is encrypted under that key.

        Raises:
            SecretKeyError: where the key ring is not there, or another record's.
        """
        for key_id in [] if self.ring is None else self.ring.names():
            if key_id not in being_written and not is_used(_state_of(key_id), key_id):
                self.destroy(key_id)


def _state_of(key_id: str) -> str:
    return key_id.partition(".")[0]
