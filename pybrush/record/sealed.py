"""How the files of a stored state are read and written: as they are, or encrypted under a key of their own.

`pybrush.record.states` is handed `read` and `write` and knows nothing of keys. What is needed to decrypt besides
the key stands in the manifest, with the hashes of the files as they lie there, so that whoever has no keys can still
tell whether they were changed. Guide: docs/record_format.md, "Encryption".
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pybrush.errors import CorruptRecordError
from pybrush.record.cipher import ALGORITHM, NONCE_BYTES, decrypted, encrypted
from pybrush.record.files import write_new, write_pieces
from pybrush.record.trees import TENSOR_FILE, TREE_FILE

_PIECE = 1 << 24


class StateFiles(Protocol):
    """Reads and writes the files of one state."""

    def read(self, path: Path) -> bytes:
        """Return what was written; FileNotFoundError where there is no file."""
        ...

    def write(self, path: Path, data: bytes) -> None:
        """Write a new file, synced."""
        ...

    def note(self) -> dict[str, Any] | None:
        """Return what the manifest says of the encryption of the files that were written."""
        ...


class PlainFiles:
    """Files as they are."""

    def read(self, path: Path) -> bytes:
        """Return a file's bytes."""
        return path.read_bytes()

    def write(self, path: Path, data: bytes) -> None:
        """Write a new file, synced."""
        write_new(path, data)

    def note(self) -> None:
        """Return None: nothing is encrypted."""
        return


class SealedFiles:
    """Files encrypted under one key, each bound to the key of its state and to its own name.

    Args:
        state: the key of the state, as in its manifest.
        folder: where its files lie; a file in a folder below is named by its path from here.
        key_id: the name of the secret key in the ring.
        key: the secret key, 32 bytes.
        files: what the manifest says of the files that are there already, by name.
    """

    def __init__(
        self, state: str, folder: Path, key_id: str, key: bytes, files: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._state, self._folder, self._key_id, self._key = state, folder, key_id, key
        self._files = dict(files)

    def read(self, path: Path) -> bytes:
        """Return what was encrypted into a file.

        Raises:
            CorruptRecordError: where it was changed, or belongs to another state or name.
        """
        name = self._name(path)
        return decrypted(self._key, bytes.fromhex(self._files[name]["nonce"]), self._bound(name), path)

    def write(self, path: Path, data: bytes) -> None:
        """Encrypt into a new file, synced; no byte of `data` reaches the disk."""
        name, nonce, digest = self._name(path), secrets.token_bytes(NONCE_BYTES), hashlib.sha256()
        write_pieces(path, _digested(encrypted(self._key, nonce, self._bound(name), data), digest.update))
        self._files[name] = {"nonce": nonce.hex(), "bytes": path.stat().st_size, "sha256": digest.hexdigest()}

    def note(self) -> dict[str, Any]:
        """Return what the manifest says of the encryption of the files that were written."""
        return {"algorithm": ALGORITHM, "key_id": self._key_id, "files": self._files}

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _bound(self, name: str) -> bytes:
        return f"pybrush-state/1/{self._state}/{name}".encode()


def check_note(note: Any, manifest: Path) -> None:
    """Check the form of what a manifest says of its encryption.

    Raises:
        CorruptRecordError: where a member is missing, unknown or of another form.
    """
    if note is not None and not _is_note(note):
        raise CorruptRecordError(
            f"{manifest} names an encryption that this version does not know; expected algorithm {ALGORITHM}, key_id "
            "and files, each of these with nonce, bytes and sha256. Restore the stage from a backup."
        )


def check_stored(note: Mapping[str, Any], folder: Path) -> None:
    """Check encrypted files as they lie there, without their key.

    Raises:
        CorruptRecordError: where one is missing or changed.
    """
    check_sizes(note, folder)
    for name, file in note["files"].items():
        if _sha256(folder / name) != file["sha256"]:
            raise _not_named(folder / name)


def check_sizes(note: Mapping[str, Any], folder: Path) -> None:
    """Look that encrypted files are there and as long as their manifest says; none is read.

    Raises:
        CorruptRecordError: where one is missing or of another length.
    """
    for name, file in note["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            raise _not_named(path)


def _not_named(path: Path) -> CorruptRecordError:
    return CorruptRecordError(
        f"{path} is missing or not the encrypted file that its manifest names. Restore the stage from a backup."
    )


def _is_note(note: Any) -> bool:
    if not isinstance(note, dict) or note.keys() != {"algorithm", "key_id", "files"}:
        return False
    key_id, files = note["key_id"], note["files"]
    is_name = isinstance(key_id, str) and Path(key_id).name == key_id and not key_id.startswith(".")
    if note["algorithm"] != ALGORITHM or not is_name or not isinstance(files, dict):
        return False
    if not {TREE_FILE, TENSOR_FILE} <= files.keys() or any(".." in Path(name).parts for name in files):
        return False
    return all(map(_is_file_note, files.values()))


def _is_file_note(file: Any) -> bool:
    if not isinstance(file, dict) or file.keys() != {"nonce", "bytes", "sha256"}:
        return False
    return type(file["bytes"]) is int and _is_hex(file["nonce"], NONCE_BYTES) and _is_hex(file["sha256"], 32)


def _is_hex(text: Any, size: int) -> bool:
    try:
        return isinstance(text, str) and len(bytes.fromhex(text)) == size
    except ValueError:
        return False


def _digested(pieces: Iterable[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    for piece in pieces:
        update(piece)
        yield piece


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
