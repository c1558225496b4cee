"""Releases: what a fit or a request hands out, and the states that approximate methods leave of shards.

A rebuild's release is a row of the ledger, since its states are the stages themselves. A method that does not
train again leaves a state of its own for each shard it changed, under `releases/`; until the shard is rebuilt
this state stands for the shard's last stage. Guide: docs/record_format.md, "Commitments, events, releases".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pybrush.chain import Link
from pybrush.errors import CorruptRecordError
from pybrush.hashing import chained, u64
from pybrush.plan.graph import Stage, constituents
from pybrush.record.ledger import now
from pybrush.record.record import Record
from pybrush.record.store import ReleaseManifest

FIT = "fit"
"""The method of the release that a fit makes."""

REBUILD = "rebuild"
"""The stages that a request hits are trained again."""

REBUILD_ALL = "rebuild-all"
"""These, and every stage for which a state of a release stands."""

OWN_METHODS = frozenset({FIT, REBUILD, REBUILD_ALL})


def release_key(above: str, method: str, commitment: bytes) -> str:
    """Return the key of a release.

    Args:
        above: key of the release that it replaces; the root of shard 0 for the first.
        method: how it was made, with settings.
        commitment: that of its request; no bytes for a fit.
    """
    meaning = chained("pybrush-meaning", method.encode())
    return chained("pybrush-release", bytes.fromhex(above), meaning, commitment).hex()


def state_keys(release: str, shards: Iterable[int]) -> dict[int, str]:
    """Return shard -> key of the state that a release has of it."""
    return {shard: chained("pybrush-release", bytes.fromhex(release), u64(shard)).hex() for shard in shards}


def next_release(record: Record, method: str, commitment: bytes) -> str:
    """Return the key of the release that would replace the current one."""
    return release_key(current_key(record) or record.plan.roots[0], method, commitment)


def current_key(record: Record) -> str | None:
    """Return the key of the current release; None before the first."""
    rows = record.ledger.rows("SELECT key FROM releases")
    return rows[0][0] if rows else None


def commitment_of(record: Record, request: int) -> bytes:
    """Return what stands for the rows of a request."""
    rows = record.ledger.rows("SELECT commitment FROM requests WHERE number = ?", (request,))
    return bytes(rows[0][0]) if rows else b""


def write_release(
    record: Record, request: int | None, method: str, commitment: bytes, guarantee: Any, stages: Iterable[Stage],
    held: Mapping[int, str],
) -> None:  # fmt: skip
    """Write the release that a fit or a request produces, in place of the one before, inside a transaction.

    Args:
        record: the record.
        request: its number; None for a fit.
        method: how it was made, with settings.
        commitment: that of the request.
        guarantee: plain values.
        stages: what the samples call for from now on.
        held: shard -> key of the release's state that serves it.
    """
    ledger, parent = record.ledger, current_key(record)
    key = next_release(record, method, commitment)
    last = {
        shard: {
            "key": held.get(shard, stage.key),
            "sha256": record.store.manifest(held.get(shard, stage.key)).sha256,
            "folder": "releases" if shard in held else "stages",
        }
        for shard, stage in constituents(stages).items()
    }
    ledger.change("DELETE FROM releases")
    ledger.change(
        "INSERT INTO releases VALUES (?, ?, ?, ?, ?, ?, ?)",
        (key, parent, request, method, json.dumps(guarantee), json.dumps(last), now()),
    )


def release_manifest(record: Record, key: str) -> ReleaseManifest:
    """Return the manifest of a release's state.

    Raises:
        CorruptRecordError: where it is missing, with what can be done.
    """
    manifest = record.store.manifest(key) if record.store.has(key) else None
    if not isinstance(manifest, ReleaseManifest):
        raise CorruptRecordError(
            f"the state {key} of a release is missing from {record.store.releases}. Restore it from a backup, or call "
            "unlearn with guarantee='exact', which rebuilds the shard that it served."
        )
    return manifest


def links_of(record: Record, held: Mapping[int, str]) -> list[Link]:
    """Return the chains of the shards that states of releases serve, each oldest first.

    Args:
        record: the record.
        held: shard -> key of such a state.
    """
    manifests = [release_manifest(record, key) for _, key in sorted(held.items())]
    return [Link.of(link) for manifest in manifests for link in manifest.links]


def short_name(method: str) -> str:
    """Return the name of a method that stands with its settings in a record."""
    return method.partition(" ")[0]


def is_rebuild(method: str) -> bool:
    """Whether a method that stands in a record trains stages again."""
    return method in (REBUILD, REBUILD_ALL)
