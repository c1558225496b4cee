"""Whether the current release hands out what it was made of, and the states of approximate methods are whole.

Each function raises CorruptRecordError at the first thing that does not fit.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pybrush.chain import weakest
from pybrush.errors import CorruptRecordError
from pybrush.guarantee import Certified, Exact, Guarantee, from_plain
from pybrush.plan.graph import Stage, constituents
from pybrush.record.check_stages import check_place
from pybrush.record.record import Record
from pybrush.record.releases import commitment_of, links_of, release_key, release_manifest, state_keys
from pybrush.record.store import ReleaseManifest


def check_releases(record: Record, stages: tuple[Stage, ...]) -> None:
    """Check the current release, its key, and the manifest of every state that it hands out; no state is read."""
    for key, parent, request, method in record.ledger.rows("SELECT key, parent, request, method FROM releases"):
        if key != release_key(parent or record.plan.roots[0], method, commitment_of(record, request)):
            raise CorruptRecordError(f"the key of the release in {record.ledger.path} is not that of its request.")
    for shard, key in record.stand_ins().items():
        _check_manifest(record, release_manifest(record, key), _last(constituents(stages), shard))
    _check_guarantee(record)
    _check_handed_out(record)
    foreign = sorted(record.store.release_keys() & {stage.key for stage in stages})
    if foreign:
        raise CorruptRecordError(f"{record.store.releases} holds stages ({', '.join(foreign)}); remove them.")


def check_serving(record: Record, keys: Mapping[int, str]) -> None:
    """Check some of what serves shards now, byte for byte: what a request keeps, or a method begins with.

    Args:
        record: the record.
        keys: shard -> key of what serves it.
    """
    states, last = record.stand_ins(), constituents(record.graph())
    rows = record.ledger.rows("SELECT constituents FROM releases")
    released = json.loads(rows[0][0]) if rows else {}
    for shard, key in keys.items():
        if states.get(shard) == key:
            _check_manifest(record, release_manifest(record, key), _last(last, shard))
        else:
            check_place(record, _last(last, shard))
        sha256 = record.store.check(key).sha256
        if str(shard) in released and sha256 != released[str(shard)]["sha256"]:
            raise CorruptRecordError(f"{record.store.path(key)} holds another state than was released; restore it.")


def secrets_of(record: Record) -> tuple[str, ...]:
    """Return the keys of the release's states beside which a secret one lies."""
    keys = sorted(record.stand_ins().values())
    return tuple(key for key in keys if record.store.has(key) and release_manifest(record, key).secret_sha256)


def _check_manifest(record: Record, manifest: ReleaseManifest, stage: Stage) -> None:
    """Check the manifest of a release's state against its request and the stage for which it stands."""
    place = record.store.path(manifest.key)
    release = release_key(manifest.parent, manifest.method, commitment_of(record, manifest.request))
    if manifest.release != release or manifest.key != state_keys(release, [stage.shard])[stage.shard]:
        raise CorruptRecordError(f"{place} is not of the release that its manifest names.")
    links = [(link["request"], link["shard"], link["method"]) for link in manifest.links]
    shards = {shard for _, shard, _ in links}
    if links[-1:] != [(manifest.request, stage.shard, manifest.method)] or shards != {stage.shard}:
        raise CorruptRecordError(f"the chain in {place} is not that of shard {stage.shard}.")
    if (manifest.shard, manifest.slice, manifest.rows) != (stage.shard, stage.slice, stage.rows):
        raise CorruptRecordError(f"{place} does not stand for the last stage of shard {stage.shard}.")
    secret = record.store.secret_path(manifest.key)
    if manifest.secret_sha256:
        _check_private(secret)
    elif secret.exists():
        raise CorruptRecordError(f"{secret} is a secret state of which its manifest says nothing; remove it.")


def _last(last: Mapping[int, Stage], shard: int) -> Stage:
    if shard not in last:
        raise CorruptRecordError(f"the release serves shard {shard}, which has too few rows to be trained.")
    return last[shard]


def _check_guarantee(record: Record) -> None:
    """Look that the current release guarantees what the chains of its states say, and no more."""
    told = weakest(Exact(""), links_of(record, record.stand_ins()))
    for (text,) in record.ledger.rows("SELECT guarantee FROM releases"):
        if _bound(from_plain(json.loads(text))) != _bound(told):
            raise CorruptRecordError(f"the release in {record.ledger.path} guarantees other than its states do.")


def _bound(guarantee: Guarantee) -> tuple[Any, ...]:
    """Return what a guarantee says of strength; declarations and differences may have changed since."""
    if isinstance(guarantee, Certified):
        return "Certified", guarantee.epsilon, guarantee.delta, guarantee.composed
    return type(guarantee).__name__, getattr(guarantee, "findings", ())


def _check_private(secret: Path) -> None:
    """Look that a secret state is there and that nobody but the owner may read it."""
    if not secret.is_dir():
        raise CorruptRecordError(f"{secret} is missing; restore it from a backup.")
    others = stat.S_IRWXG | stat.S_IRWXO
    readable = [path for path in (secret, *secret.iterdir()) if path.stat().st_mode & others]
    if readable:
        raise CorruptRecordError(f"others than its owner may read the secret state in {readable[0]}; take that away.")


def _check_handed_out(record: Record) -> None:
    """Look that what the current release hands out is what is stored: a state and its manifest could agree."""
    for (text,) in record.ledger.rows("SELECT constituents FROM releases"):
        released, served = json.loads(text), record.stand_ins()
        held = {
            str(shard): {
                "key": key,
                "sha256": record.store.manifest(key).sha256,
                "folder": "releases" if shard in served else "stages",
            }
            for shard, key in record.constituents().items()
            if record.store.has(key)  # one that is missing is told of as missing
        }
        released = {shard: state for shard, state in released.items() if record.store.has(state["key"])}
        if released != held:
            wrong = sorted(shard for shard in released.keys() | held.keys() if released.get(shard) != held.get(shard))
            raise CorruptRecordError(f"the constituents of shards {', '.join(wrong)} are not those that were released.")
