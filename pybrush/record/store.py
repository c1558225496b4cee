"""The stages of a record on disk: written aside, published whole under their key, then immutable.

Where the record has a key ring, each stage is encrypted under a key of its own, which goes with it.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pybrush.errors import CorruptRecordError, StorageError
from pybrush.plan.graph import FORMAT
from pybrush.record import states
from pybrush.record.files import entries, erase, make_folder, move, remove_folder, sync_folder, write_new
from pybrush.record.keyring import KeyRing
from pybrush.record.sealed import StateFiles, check_note, check_sizes, check_stored
from pybrush.record.trees import Arrays
from pybrush.record.vault import Vault, key_id_of

MANIFEST = "manifest.json"
SECRET = "secret"


@dataclass(frozen=True)
class Manifest:
    """What is known about a stored state.

    Attributes:
        key: the stage's key; "initial" for the state that all shards start from.
        parent: key of the stage it started from, or the root of its shard.
        parent_sha256: hash of the parent state that was read.
        sha256: hash of its own state, before it is encrypted.
        shard: counted from 0; -1 for the initial state.
        slice: counted from 0; -1 for the initial state.
        rows: rows it was trained on, copies counted.
        steps: optimizer steps of this stage.
        seconds: seconds its training took.
        learning_rate_sum: learning rate summed over its steps, each lr / (1 - momentum).
        environment: versions, device, threads and processor features it was built under.
        differences: semantic differences to the record that the user accepted.
        notes: plain values of the adapter.
        encryption: how its files are encrypted (docs/record_format.md, "Encryption"); None for plain files.
        format: version of the record format.
    """

    key: str
    parent: str = ""
    parent_sha256: str = ""
    sha256: str = ""
    shard: int = -1
    slice: int = -1
    rows: int = 0
    steps: int = 0
    seconds: float = 0.0
    learning_rate_sum: float = 0.0
    environment: Mapping[str, Any] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    encryption: Mapping[str, Any] | None = None
    format: int = FORMAT


@dataclass(frozen=True)
class ReleaseManifest(Manifest):
    """What is known about the state of a release, which an approximate method left of one shard.

    `key` is the state's own, `parent` the release that was replaced, `parent_sha256` the hash of the state that the
    method began with, `slice` that of the stage for which the state stands, `rows` the rows that the shard has left.

    Attributes:
        release: key of the release that it was made for.
        request: number of the request.
        method: the method, with its settings.
        links: the shard's chain since it was last trained, oldest first, each as `pybrush.chain.Link.plain`.
        visits: rows that the method visited.
        secret_sha256: hash of the secret state beside it; empty where there is none.
    """

    release: str = ""
    request: int = 0
    method: str = ""
    links: tuple[Mapping[str, Any], ...] = ()
    visits: int = 0
    secret_sha256: str = ""


class StageStore:
    """The folders initial/, stages/, releases/ and tmp/ of a record.

    Args:
        folder: the record's folder.
        ring: the keys of its stages; None where they are not encrypted.
    """

    def __init__(self, folder: Path, ring: KeyRing | None = None) -> None:
        self.folder, self.vault = folder, Vault(ring)
        self.stages, self.tmp, self.initial = folder / "stages", folder / "tmp", folder / "initial"
        self.releases = folder / "releases"

    def path(self, key: str) -> Path:
        """Return the folder of a stage or of a release's state; "initial" is the initial state's key."""
        if key == "initial":
            return self.initial
        return self.releases / key if (self.releases / key).is_dir() else self.stages / key

    def secret_path(self, key: str) -> Path:
        """Return the folder of the secret state that a method left beside a release's state."""
        return self.releases / key / SECRET

    def has(self, key: str) -> bool:
        """Whether a state is stored under a key."""
        return self.path(key).is_dir()

    def keys(self) -> set[str]:
        """Return the keys of all published stages."""
        return {path.name for path in entries(self.stages)}

    def release_keys(self) -> set[str]:
        """Return the keys of all published states of releases."""
        return {path.name for path in entries(self.releases)}

    def manifest(self, key: str) -> Manifest:
        """Read a manifest, of a stage or of a release's state.

        Raises:
            CorruptRecordError: where it is missing, unreadable or another stage's.
        """
        path = self.path(key) / MANIFEST
        kind = ReleaseManifest if path.is_relative_to(self.releases) else Manifest
        try:
            values = json.loads(path.read_bytes())
            listed = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
            manifest = kind(**{**values, **listed, "differences": tuple(values["differences"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CorruptRecordError(f"{path} cannot be read ({error}); restore the stage from a backup.") from error
        check_note(manifest.encryption, path)
        if manifest.key != key or manifest.format != FORMAT:
            raise CorruptRecordError(f"{path} belongs to stage {manifest.key!r} of format {manifest.format}.")
        return manifest

    def load(self, key: str) -> tuple[Any, Manifest]:
        """Return the state under a key, its hash checked, and its manifest.

        Raises:
            CorruptRecordError: where a file is missing, truncated or changed.
            SecretKeyError: where the secret key of an encrypted state is not there.
        """
        manifest, read = self._opened(key)
        if key == "initial":
            return states.load(self.initial, read_file=read), manifest
        if states.leans_on_initial(self.path(key), read):
            self._opened("initial")
        return states.load(self.path(key), self.initial, read), manifest

    def packed(self, key: str) -> tuple[bytes, Arrays]:
        """Return tree.json and the tensors that were stored under a key, decrypted; raises what `load` raises."""
        return states.read(self.path(key), self._opened(key)[1])

    def check(self, key: str) -> Manifest:
        """Check the files of a state against its manifest, and return that.

        Without the key ring an encrypted state is checked as it lies there.

        Raises:
            CorruptRecordError: where a file is missing, truncated or changed.
            SecretKeyError: where the ring is there and the state's key is not in it.
        """
        manifest = self.manifest(key)
        if manifest.encryption is not None:
            check_stored(manifest.encryption, self.path(key))
        if self.can_open(key):
            self._opened(key)
            self._check_secret(manifest)
        return manifest

    def load_secret(self, key: str) -> Any:
        """Return the secret state beside a release's state, its hash checked; None where there is none.

        Raises:
            CorruptRecordError: where a file is missing, truncated or changed.
            SecretKeyError: where the secret key of an encrypted state is not there.
        """
        manifest = self.manifest(key)
        if not _has_secret(manifest):
            return None
        self._check_secret(manifest)
        return states.load(self.secret_path(key), read_file=self._reader(manifest))

    def check_complete(self, key: str) -> None:
        """Look that the files of a state are there and none is cut short, and its secret key; no tensor is read.

        Raises:
            CorruptRecordError: naming the file that is missing or cut short.
            SecretKeyError: where the ring is there and the state's key is not in it.
        """
        manifest = self.manifest(key)
        if manifest.encryption is None:
            states.check_complete(self.path(key))
            if _has_secret(manifest):
                states.check_complete(self.secret_path(key))
            return
        check_sizes(manifest.encryption, self.path(key))
        if self.can_open(key):
            self._reader(manifest)

    def leans_on_initial(self, key: str) -> bool:
        """Whether a state, its files checked before, names tensors of the initial state."""
        return states.leans_on_initial(self.path(key), self._reader(self.manifest(key)))

    def can_open(self, key: str) -> bool:
        """Whether a state is not encrypted, or the key ring is in its place."""
        return self.vault.can_open(self.manifest(key).encryption)

    def write_aside(self, state: Any, manifest: Manifest, secret: Any = None) -> Path:
        """Write a state and its manifest into a temporary folder, synced, and return the folder.

        Until `let_go` it is kept from every sweep.

        Args:
            state: a typed tree.
            manifest: what is known about it; hashes and encryption are filled in.
            secret: a second state, for a folder of its own inside; None: none.
        """
        make_folder(self.tmp)
        aside = self.tmp / f"{manifest.key}.{_owner()}"
        try:
            make_folder(aside)
            files = self.vault.new_files(manifest.key, aside)
            initial = None if manifest.key == "initial" else self.initial
            values = {**asdict(manifest), "sha256": _saved(aside, state, files, initial)}
            if secret is not None:
                make_folder(aside / SECRET)
                values["secret_sha256"] = _saved(aside / SECRET, secret, files, None)
                sync_folder(aside / SECRET)
            values["encryption"] = files.note()
            write_new(aside / MANIFEST, json.dumps(values, sort_keys=True, indent=1).encode())
            sync_folder(aside)
        except BaseException:  # half of a state must not lie about until this process has ended
            with suppress(OSError, StorageError):  # the first error tells why
                self.drop(aside)
            self.let_go(aside)
            raise
        return aside

    def let_go(self, aside: Path) -> None:
        """Leave a temporary folder, if it is still there, to the next sweep: it may be impossible to remove now."""
        _own.discard(aside.name.partition(".")[2])

    def _opened(self, key: str) -> tuple[Manifest, states.ReadFile]:
        """Return the manifest of a state whose hash was checked, and what reads its files."""
        manifest = self.manifest(key)
        read = self._reader(manifest)
        if states.state_sha256(self.path(key), read) != manifest.sha256:
            raise CorruptRecordError(f"the state in {self.path(key)} is not the one that its manifest names.")
        return manifest, read

    def _check_secret(self, manifest: Manifest) -> None:
        """Compare the secret state beside a release's state, where there is one, with the manifest."""
        if not isinstance(manifest, ReleaseManifest) or not manifest.secret_sha256:
            return
        place = self.secret_path(manifest.key)
        if states.state_sha256(place, self._reader(manifest)) != manifest.secret_sha256:
            raise CorruptRecordError(f"the secret state in {place} is not the one that its manifest names.")

    def _reader(self, manifest: Manifest) -> states.ReadFile:
        return self.vault.files(manifest.key, manifest.encryption, self.path(manifest.key)).read

    def publish(self, aside: Path, key: str) -> None:
        """Move a stage's temporary folder to its key, if nothing is there yet; call under the record's lock."""
        self._publish(aside, self.stages / key)

    def publish_release(self, aside: Path, key: str) -> None:
        """Move the temporary folder of a release's state to its key, as `publish` does."""
        self._publish(aside, self.releases / key)

    def _publish(self, aside: Path, place: Path) -> None:
        if place.is_dir():
            self.drop(aside)
            return
        make_folder(place.parent)
        move(aside, place)

    def drop(self, aside: Path) -> None:
        """Remove a temporary folder, and the secret key that was made for it."""
        remove_folder(aside)
        self.vault.destroy(key_id_of(aside))

    def discard(self, key: str) -> int:
        """Remove a stage or a release's state: its secret key, then it out of its place in one step, then its files.

        Returns:
            How many secret keys were destroyed.
        """
        destroyed = self.vault.destroy_all(key)
        make_folder(self.tmp)
        aside = self.tmp / f"{key}.{_owner()}"
        try:
            move(self.path(key), aside)
            remove_folder(aside)
        finally:
            self.let_go(aside)
        return destroyed

    def sweep(self, keep: set[str]) -> None:
        """Remove temporary folders of dead processes of this host, and all of keys not in `keep`.

        Secret keys of states that were never published go too.

        Raises:
            SecretKeyError: where the record's key ring is not there.
        """
        self.vault.check()
        for path in entries(self.tmp):
            key, _, owner = path.name.partition(".")
            if key not in keep or _is_dead(owner):
                erase(path)
        self.vault.sweep({key_id_of(path) for path in entries(self.tmp)}, self._is_encrypted_under)

    def _is_encrypted_under(self, key: str, key_id: str) -> bool:
        """Whether a stored state is encrypted under a secret key; one whose manifest is damaged keeps its keys."""
        if not self.has(key):
            return False
        try:
            note = self.manifest(key).encryption
        except CorruptRecordError:
            return True
        return note is not None and note["key_id"] == key_id


def _saved(folder: Path, state: Any, files: StateFiles, initial: Path | None) -> str:
    """Save a state into a folder and return its hash, once it was read back from the disk as it was written."""
    sha256 = states.save(folder, state, files.write, initial)
    if states.state_sha256(folder, files.read) != sha256:
        raise CorruptRecordError(f"what was read back from {folder} is not what was written; look at the disk.")
    return sha256


def _has_secret(manifest: Manifest) -> bool:
    """Whether a secret state lies beside a release's state."""
    return isinstance(manifest, ReleaseManifest) and bool(manifest.secret_sha256)


_own: set[str] = set()
"""The temporary folders that this process has in hand.

The number of the process does not say so: a restarted container gives it to another.
"""


def _owner() -> str:
    """Return a new name for a temporary folder of this process."""
    owner = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    _own.add(owner)
    return owner


def _is_dead(owner: str) -> bool:
    """Whether `host.pid.random` names a process of this host that is gone."""
    host, pid, _ = owner.rsplit(".", 2)
    if host != socket.gethostname():
        return False
    if int(pid) == os.getpid():
        return owner not in _own
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
