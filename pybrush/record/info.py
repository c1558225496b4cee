"""What a record holds, in plain numbers: for a privacy officer, an engineer, or a monitor.

It needs neither the key nor a framework, and tells of counts, days and places alone: no name of a sample or a
person, and no path of a file that user code wrote, since such a path may hold one. Counting is left to SQLite,
so that a million samples never lie in memory. Whether all of it is true is asked of `Record.verify`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from pybrush.errors import CorruptRecordError
from pybrush.record.artefacts import left
from pybrush.record.ledger import days_since
from pybrush.record.queue import QueueEntry, entries_of
from pybrush.record.record import Record
from pybrush.record.releases import commitment_of, is_rebuild, links_of, next_release, release_manifest, state_keys
from pybrush.record.requests import RequestInfo, RequestLine
from pybrush.record.transaction import UNFINISHED

Way = Literal["unlearn", "cancel"]


@dataclass(frozen=True)
class DiskBytes:
    """Bytes on disk, as the sizes of files add up.

    Attributes:
        stages: of all trained stages that are published.
        releases: of the states that approximate methods left.
        initial: of the initial state.
        ledger: of the ledger.
        everything: of every file in the record's folder, these included.
    """

    stages: int
    releases: int
    initial: int
    ledger: int
    everything: int


@dataclass(frozen=True)
class HeldArtefacts:
    """Registered files and folders of user code, such as checkpoints.

    Attributes:
        count: how many are registered, a folder and a file inside it as two.
        bytes: of those that exist, wherever they lie, each file once.
        absent: how many no longer exist.
        left: how many exist that a request with purge="list" left: they hold what was forgotten.
    """

    count: int
    bytes: int
    absent: int
    left: int


@dataclass(frozen=True)
class HeldRequest(RequestLine):
    """One request, with what can be done about it.

    Attributes:
        days: whole days since it was accepted; None once it is sealed or cancelled.
        ways_out: how it comes to an end: "unlearn" finishes it, "cancel" withdraws it, which is possible until it is
            committed; empty once it has ended.
    """

    days: int | None
    ways_out: tuple[Way, ...]


@dataclass(frozen=True)
class HeldRelease:
    """A state that an approximate method left, and that serves a shard until the shard is rebuilt.

    Attributes:
        shard: counted from 0.
        key: the state's.
        request: number of the request that made it.
        method: the method, with its settings.
        guarantee: "Certified" or "Empirical", of this shard.
        has_secret: whether a second state lies beside it that nobody but the record's owner may read.
    """

    shard: int
    key: str
    request: int
    method: str
    guarantee: str
    has_secret: bool


@dataclass(frozen=True)
class Suppressions:
    """Marks of what was forgotten, so that it is not trained on again.

    Attributes:
        count: how many are marked: names of samples and subjects and, where ids were given, contents of samples.
        oldest: the first day of any, as 2026-01-31; None where there are none.
    """

    count: int
    oldest: str | None


@dataclass(frozen=True)
class RecordInfo:
    """What a record holds.

    Attributes:
        folder: where it lies.
        adapter: which adapter made it.
        made: time in UTC at which it was planned.
        has_key: whether a secret key was found for it.
        is_encrypted: whether its stages are encrypted, each under a key of its own.
        has_key_ring: whether the ring of these keys was found; False where stages are not encrypted.
        rows: rows in the model, copies counted.
        samples: different samples among them.
        subjects: people whose rows are among them, where subjects were named.
        shards: S. slices: R.
        epochs: the e that was asked for.
        fewest_rows: rows of the smallest shard. most_rows: rows of the largest.
        stages_built: stages on disk, of those that are wanted.
        stages_wanted: stages that the samples call for, and those that an unfinished request does.
        stages_replaced: of these, stages without a state for which that of an approximate release stands.
        guarantee: kind of the guarantee of the record as a whole, as of its last release; None before the fit ended.
        releases: what approximate methods left, one entry a shard.
        constituents: shard -> key of what serves it, its last stage or a release's state, where that is stored.
        disk: bytes on disk.
        artefacts: files that user code wrote.
        suppressions: marks of what was forgotten.
        request_states: state -> number of requests in it.
        requests: all requests, in the order in which they came.
        queue: all entries of the queue, in the order in which they came; those that wait have their age in days.
    """

    folder: str
    adapter: str
    made: str
    has_key: bool
    is_encrypted: bool
    has_key_ring: bool
    rows: int
    samples: int
    subjects: int
    shards: int
    slices: int
    epochs: int
    fewest_rows: int
    most_rows: int
    stages_built: int
    stages_wanted: int
    stages_replaced: int
    guarantee: str | None
    releases: tuple[HeldRelease, ...]
    constituents: Mapping[int, str]
    disk: DiskBytes
    artefacts: HeldArtefacts
    suppressions: Suppressions
    request_states: Mapping[str, int]
    requests: tuple[HeldRequest, ...]
    queue: tuple[QueueEntry, ...]


def info(record: Record) -> RecordInfo:
    """Return what a record holds (see `Record.info`)."""
    plan, ledger, ring = record.plan, record.ledger, record.store.vault.ring
    with ledger.snapshot():
        made = _made(record)
        ((samples,),) = ledger.rows("SELECT count(*) FROM samples")
        ((subjects,),) = ledger.rows("SELECT count(DISTINCT subject) FROM subjects")
        shard_rows = _shard_rows(record)
        wanted, constituents, held = _wanted_stages(record), record.constituents(), record.stand_ins()
        replaced = {stage.key for stage in record.graph() if stage.shard in held}
        released = ledger.rows("SELECT guarantee FROM releases")
        artefacts, were_left = list(record.artefacts()), len(left(record))
        (marks,) = ledger.rows("SELECT count(*), min(since) FROM suppressions")
        requests = tuple(map(_held_request, record.requests))
        queue = entries_of(ledger)
    # Looked at afterwards: whoever wants to write to the ledger waits for as long as it is read.
    return RecordInfo(
        folder=str(record.folder),
        adapter=plan.adapter,
        made=made,
        has_key=record.namer is not None,
        is_encrypted=ring is not None,
        has_key_ring=ring is not None and ring.is_here,
        rows=sum(shard_rows),
        samples=samples,
        subjects=subjects,
        shards=plan.shards,
        slices=plan.slices,
        epochs=plan.epochs,
        fewest_rows=min(shard_rows),
        most_rows=max(shard_rows),
        stages_built=len(wanted & record.store.keys()),
        stages_wanted=len(wanted),
        stages_replaced=len(replaced - record.store.keys()),
        guarantee=json.loads(released[0][0])["kind"] if released else None,
        releases=tuple(
            _held_release(record, shard, key) for shard, key in sorted(held.items()) if record.store.has(key)
        ),
        constituents={shard: key for shard, key in constituents.items() if record.store.has(key)},
        disk=_disk_bytes(record),
        artefacts=_held_artefacts(artefacts, were_left),
        suppressions=Suppressions(*marks),
        request_states=dict(Counter(request.state for request in requests)),
        requests=requests,
        queue=queue,
    )


def _made(record: Record) -> str:
    planned = record.ledger.rows("SELECT time FROM events WHERE kind = 'planned'")
    if not planned:
        raise CorruptRecordError(f"events are missing from {record.ledger.path}: planned. Restore it from a backup.")
    return str(planned[0][0])


def _shard_rows(record: Record) -> list[int]:
    """Return the rows of each shard; one without rows has no cell in the ledger."""
    counts = dict(record.ledger.rows("SELECT shard, sum(rows) FROM cells GROUP BY shard"))
    return [counts.get(shard, 0) for shard in range(record.plan.shards)]


def _wanted_stages(record: Record) -> set[str]:
    """Return the keys of the stages that are wanted, without those of releases' states."""
    wanted = record.ledger.wanted() - set(record.stand_ins().values())
    for request in record.requests:
        if request.state == "pending" and not is_rebuild(request.method):
            coming = next_release(record, request.method, commitment_of(record, request.number))
            wanted -= set(state_keys(coming, range(record.plan.shards)).values())
    return wanted


def _held_release(record: Record, shard: int, key: str) -> HeldRelease:
    manifest, (link, *_) = release_manifest(record, key), links_of(record, {shard: key})[::-1]
    kind = type(link.guarantee).__name__
    return HeldRelease(shard, key, manifest.request, manifest.method, kind, bool(manifest.secret_sha256))


def _held_request(request: RequestInfo) -> HeldRequest:
    ways: tuple[Way, ...] = ()
    if request.state in UNFINISHED:
        ways = ("unlearn", "cancel") if request.state == "pending" else ("unlearn",)
    told = {field.name: getattr(request, field.name) for field in fields(RequestLine)}
    return HeldRequest(**told, days=days_since(request.accepted) if ways else None, ways_out=ways)


def _disk_bytes(record: Record) -> DiskBytes:
    store = record.store
    return DiskBytes(
        stages=_bytes_of(store.stages),
        releases=_bytes_of(store.releases),
        initial=_bytes_of(store.initial),
        ledger=_bytes_of(record.ledger.path),
        everything=_bytes_of(record.folder.resolve()),
    )


def _held_artefacts(paths: list[str], were_left: int) -> HeldArtefacts:
    found = {Path(path) for path in paths if Path(path).exists()}
    # A folder may be registered beside files inside it, which count once.
    size = sum(_bytes_of(path) for path in found if found.isdisjoint(path.parents))
    return HeldArtefacts(len(paths), size, len(paths) - len(found), were_left)


def _bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files in a folder; where a link leads is not followed."""
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(map(_bytes_of, path.iterdir()))
        return path.lstat().st_size
    except FileNotFoundError:  # another process may collect meanwhile, and what is gone takes no place
        return 0
