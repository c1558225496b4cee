"""The stages of a record on disk: written aside, published whole under their key, then immutable."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pybrush.errors import CorruptRecordError
from pybrush.plan.graph import FORMAT
from pybrush.record import states
from pybrush.record.files import entries, erase, make_folder, move, remove_folder, sync_folder, write_new

MANIFEST = "manifest.json"
SECRET = "secret"


@dataclass(frozen=True)
class Manifest:
    """What is known about a stored state.

    Attributes:
        key: the stage's key; "initial" for the state that all shards start from.
        parent: key of the stage it started from, or the root of its shard.
        parent_sha256: hash of the parent state that was read.
        sha256: hash of its own state.
        shard: counted from 0; -1 for the initial state.
        slice: counted from 0; -1 for the initial state.
        rows: rows it was trained on, copies counted.
        steps: optimizer steps of this stage.
        seconds: seconds its training took.
        learning_rate_sum: learning rate summed over its steps, each lr / (1 - momentum).
        environment: versions, device, threads and processor features it was built under.
        differences: semantic differences to the record that the user accepted.
        notes: plain values of the adapter.
        encryption: None.
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
    encryption: None = None
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
    """The folders initial/, stages/, releases/ and tmp/ of a record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        if manifest.encryption is not None:
            raise CorruptRecordError(f"{path} says that its state is encrypted, which this version cannot read.")
        if manifest.key != key or manifest.format != FORMAT:
            raise CorruptRecordError(f"{path} belongs to stage {manifest.key!r} of format {manifest.format}.")
        return manifest

    def load(self, key: str) -> tuple[Any, Manifest]:
        """Return the state under a key, its hash checked, and its manifest.

        Raises:
            CorruptRecordError: where a file is missing, truncated or changed.
        """
        manifest = self._checked(key)
        if key == "initial":
            return states.load(self.initial), manifest
        if states.leans_on_initial(self.path(key)):
            self._checked("initial")
        return states.load(self.path(key), self.initial), manifest

    def load_secret(self, key: str) -> Any:
        """Return the secret state beside a release's state, its hash checked; None where there is none.

        Raises:
            CorruptRecordError: where a file is missing, truncated or changed.
        """
        manifest = self.manifest(key)
        if not isinstance(manifest, ReleaseManifest) or not manifest.secret_sha256:
            return None
        self.check_secret(manifest)
        return states.load(self.secret_path(key))

    def check_secret(self, manifest: ReleaseManifest) -> None:
        """Compare the secret state of a release with its manifest.

        Raises:
            CorruptRecordError: where a file is missing, truncated or changed.
        """
        place = self.secret_path(manifest.key)
        if states.state_sha256(place) != manifest.secret_sha256:
            raise CorruptRecordError(f"the secret state in {place} is not the one that its manifest names.")

    def write_aside(self, state: Any, manifest: Manifest, secret: Any = None) -> Path:
        """Write a state and its manifest into a temporary folder, synced, and return the folder.

        Args:
            state: a typed tree.
            manifest: what is known about it; hashes are filled in.
            secret: a second state for a folder of its own inside; None: none.
        """
        make_folder(self.tmp)
        aside = self.tmp / f"{manifest.key}.{_owner()}"
        make_folder(aside)
        states.save(aside, state, write_new, None if manifest.key == "initial" else self.initial)
        values = {**asdict(manifest), "sha256": states.state_sha256(aside)}
        if secret is not None:
            make_folder(aside / SECRET)
            values["secret_sha256"] = states.save(aside / SECRET, secret)
            sync_folder(aside / SECRET)
        write_new(aside / MANIFEST, json.dumps(values, sort_keys=True, indent=1).encode())
        sync_folder(aside)
        return aside

    def _checked(self, key: str) -> Manifest:
        manifest = self.manifest(key)
        if states.state_sha256(self.path(key)) != manifest.sha256:
            raise CorruptRecordError(f"the state in {self.path(key)} is not the one that its manifest names.")
        return manifest

    def publish(self, aside: Path, key: str) -> None:
        """Move a stage's temporary folder to its key, if nothing is there yet; call under the record's lock."""
        self._publish(aside, self.stages / key)

    def publish_release(self, aside: Path, key: str) -> None:
        """Move the temporary folder of a release's state to its key, as `publish` does."""
        self._publish(aside, self.releases / key)

    def _publish(self, aside: Path, place: Path) -> None:
        if place.is_dir():
            remove_folder(aside)
            return
        make_folder(place.parent)
        move(aside, place)

    def discard(self, key: str) -> None:
        """Remove a stage or a release's state: first out of its place in one step, then its files."""
        make_folder(self.tmp)
        aside = self.tmp / f"{key}.{_owner()}"
        move(self.path(key), aside)
        remove_folder(aside)

    def sweep(self, keep: set[str]) -> None:
        """Remove temporary folders of dead processes of this host, and all of keys not in `keep`."""
        for path in entries(self.tmp):
            key, _, owner = path.name.partition(".")
            if key not in keep or _is_dead(owner):
                erase(path)


_own: set[str] = set()
"""What this process called its temporary folders: a restarted container gives the same number to another process."""


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
