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


class StageStore:
    """The folders initial/, stages/ and tmp/ of a record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages, self.tmp, self.initial = folder / "stages", folder / "tmp", folder / "initial"

    def path(self, key: str) -> Path:
        """Return the folder of a stage; "initial" is the initial state's key."""
        return self.initial if key == "initial" else self.stages / key

    def has(self, key: str) -> bool:
        """Whether a state is stored under a key."""
        return self.path(key).is_dir()

    def keys(self) -> set[str]:
        """Return the keys of all published stages."""
        return {path.name for path in entries(self.stages)}

    def manifest(self, key: str) -> Manifest:
        """Read a manifest.

        Raises:
            CorruptRecordError: where it is missing, unreadable or another stage's.
        """
        path = self.path(key) / MANIFEST
        try:
            values = json.loads(path.read_bytes())
            manifest = Manifest(**{**values, "differences": tuple(values["differences"])})
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

    def write_aside(self, state: Any, manifest: Manifest) -> Path:
        """Write a state and its manifest into a temporary folder, synced, and return the folder.

        Until `let_go` it is kept from every sweep.
        """
        make_folder(self.tmp)
        aside = self.tmp / f"{manifest.key}.{_owner()}"
        try:
            make_folder(aside)
            states.save(aside, state, write_new, None if manifest.key == "initial" else self.initial)
            values = {**asdict(manifest), "sha256": states.state_sha256(aside)}
            write_new(aside / MANIFEST, json.dumps(values, sort_keys=True, indent=1).encode())
            sync_folder(aside)
        except BaseException:
            self.let_go(aside)
            raise
        return aside

    def let_go(self, aside: Path) -> None:
        """Leave a temporary folder, if it is still there, to the next sweep: it may be impossible to remove now."""
        _own.discard(aside.name.partition(".")[2])

    def _checked(self, key: str) -> Manifest:
        manifest = self.manifest(key)
        if states.state_sha256(self.path(key)) != manifest.sha256:
            raise CorruptRecordError(f"the state in {self.path(key)} is not the one that its manifest names.")
        return manifest

    def publish(self, aside: Path, key: str) -> None:
        """Move a temporary folder to its key, if nothing is there yet; call under the record's lock."""
        if self.has(key):
            remove_folder(aside)
            return
        make_folder(self.path(key).parent)
        move(aside, self.path(key))

    def discard(self, key: str) -> None:
        """Remove a stage: first out of its place in one step, then its files."""
        make_folder(self.tmp)
        aside = self.tmp / f"{key}.{_owner()}"
        try:
            move(self.path(key), aside)
            remove_folder(aside)
        finally:
            self.let_go(aside)

    def sweep(self, keep: set[str]) -> None:
        """Remove temporary folders of dead processes of this host, and all of keys not in `keep`."""
        for path in entries(self.tmp):
            key, _, owner = path.name.partition(".")
            if key not in keep or _is_dead(owner):
                erase(path)


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
