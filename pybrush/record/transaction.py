"""The life of a request in the ledger: accept, commit, cancel, and what is found after a crash.

Accepted is durable before work starts: the pending file is synced before the ledger's row. After the
commit only forward. Every function here is called with the request lock held.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pybrush.change import Change
from pybrush.errors import CorruptRecordError, RecordError
from pybrush.hashing import chained
from pybrush.names import Names, among, as_names, rows_of
from pybrush.plan.graph import Stage, constituents
from pybrush.record.artefacts import Purge, remove_but_left
from pybrush.record.collect import remove_unwanted, seal
from pybrush.record.files import entries, erase, make_folder, replace, unlink
from pybrush.record.ledger import now
from pybrush.record.locks import coordinator_lock, request_lock
from pybrush.record.record import Record, RequestInfo
from pybrush.record.samples import Samples, change_samples

UNFINISHED = ("pending", "committed", "collected")
METHOD = "rebuild"


@dataclass(frozen=True)
class OpenRequest:
    """A request that is not sealed: its number, its state and what it changes."""

    number: int
    state: str
    change: Change


@dataclass(frozen=True)
class Target:
    """The record as a request leaves it: samples, digests of the cells with rows, stages."""

    samples: Samples
    digests: dict[tuple[int, int], bytes]
    stages: tuple[Stage, ...]


def pending_path(record: Record, number: int) -> Path:
    """Return the file that says what a request changes, until it is sealed."""
    return record.folder / "pending" / str(number)


def target_of(record: Record, samples: Samples, change: Change) -> Target:
    """Return what the record becomes; only the slices that are hit are hashed again."""
    after, plan = samples.after(change), record.plan
    hit = _cells_hit(record, samples, change)
    counts = after.cell_rows(plan.shards, plan.slices)
    digests = {cell: digest for cell, digest in record.digests() if cell not in hit}
    digests |= after.digests(cell for cell in sorted(hit) if counts[cell] > 0)
    return Target(after, digests, record.graph_of(after, digests))


def _cells_hit(record: Record, samples: Samples, change: Change) -> set[tuple[int, int]]:
    """Return the cells whose digest a change may change."""
    plan, added, at = record.plan, change.additions, samples.find(change.strikes.names)
    if len(added.places):  # every row has a new place, and where rows changed places the digest is another
        return {(s, r) for s in range(plan.shards) for r in range(plan.slices)}
    hit = set(zip(samples.shards[at].tolist(), samples.slices[at].tolist(), strict=True))
    hit |= set(zip(added.shards.tolist(), added.slices.tolist(), strict=True))
    if plan.order == "sequential":
        return {(s, later) for s, r in hit for later in range(r, plan.slices)}
    return hit


def orphans_of(record: Record, samples: Samples, change: Change) -> Names:
    """Return the pseudonyms of subjects, besides those that asked, of whom no row is left after a request."""
    strikes = change.strikes
    last_copy = strikes.copies == samples.copies[samples.find(strikes.names)]
    gone = {row.tobytes() for row in strikes.names[last_copy]}
    pairs = record.ledger.rows("SELECT subject, name FROM subjects")
    held = {subject for subject, name in pairs if name not in gone} | set(rows_of(change.additions.subjects))
    asked = {row.tobytes() for row in strikes.subjects}
    return as_names(sorted({subject for subject, _ in pairs} - held - asked))


def unfinished(record: Record) -> list[RequestInfo]:
    """Return the requests that are not sealed yet; there is one at most."""
    return [request for request in record.requests if request.state in UNFINISHED]


def open_request(record: Record) -> OpenRequest | None:
    """Return the request that is not sealed yet, if there is one; call after `tidy`.

    Raises:
        CorruptRecordError: where its pending file is missing, damaged or another request's.
    """
    waiting = unfinished(record)
    if not waiting:
        return None
    request, path = waiting[0], pending_path(record, waiting[0].number)
    if not path.is_file():
        way_out = f", or withdraw it with cancel({request.number})" if request.state == "pending" else ""
        raise CorruptRecordError(
            f"{path} is missing, and request {request.number} cannot be finished without it. "
            f"Restore the file from a backup{way_out}."
        )
    change = Change.from_bytes(path.read_bytes())
    query = "SELECT salt, commitment FROM salts JOIN requests ON number = request WHERE request = ?"
    for salt, commitment in record.ledger.rows(query, (request.number,)):  # none once it is collected
        if change.commitment(salt) != commitment:
            raise CorruptRecordError(f"{path} is not what request {request.number} was accepted with; restore it.")
    return OpenRequest(request.number, request.state, change)


def tidy(record: Record) -> None:
    """Remove what dead processes left, and close a request of which only the seal is missing."""
    record.ledger.check_settings()
    with coordinator_lock(record.folder):
        waiting = unfinished(record)
        known = {str(request.number) for request in waiting}
        for path in entries(record.folder / "pending"):
            if path.name not in known:
                erase(path)
        for request in waiting:
            if request.state == "collected" and not pending_path(record, request.number).is_file():
                seal(record, request.number)
        record.store.sweep(record.ledger.wanted() | {"initial"})
        record.ledger.remove_journal()


def accept(record: Record, change: Change, target: Target, purge: Purge = "delete") -> OpenRequest:
    """Write a request down before anything is done for it; from here it will be finished or cancelled."""
    salt = secrets.token_bytes(16)
    with coordinator_lock(record.folder):
        number = max((request.number for request in record.requests), default=0) + 1
        make_folder(record.folder / "pending")
        commitment = change.commitment(salt)
        with _pending_written(record, number, change), record.ledger.writing("accept"):
            record.ledger.change(
                "INSERT INTO requests (number, state, method, commitment, rows, accepted, purge) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, "pending", METHOD, commitment, change.rows, now(), purge),
            )
            record.ledger.change("INSERT INTO salts VALUES (?, ?)", (number, salt))
            record.ledger.set_wanted(record.ledger.wanted() | {stage.key for stage in target.stages})
            record.ledger.append_event(
                "accepted", request=number, commitment=commitment.hex(), rows=change.rows, method=METHOD
            )
    return OpenRequest(number, "pending", change)


@contextmanager
def _pending_written(record: Record, number: int, change: Change) -> Iterator[None]:
    """Write a pending file, and remove it where what the block does with it fails.

    An interrupt may also come just after the request was accepted: then it needs its file.
    """
    path = pending_path(record, number)
    replace(path, change.to_bytes())
    try:
        yield
    except BaseException:
        if not record.ledger.rows("SELECT 1 FROM requests WHERE number = ?", (number,)):
            unlink(path)
        raise


def commit(record: Record, request: OpenRequest, before: Samples, target: Target, outcome: dict[str, Any]) -> None:
    """Make the rebuilt record the record, in one transaction: rows out and in, suppressions in, release written."""
    strikes, plan = request.change.strikes, record.plan
    is_gone = target.samples.find(strikes.names) < 0
    contents = _gone_contents(record, strikes.contents[is_gone], target.samples)
    suppressed = record.names.suppressed(np.vstack([strikes.names[is_gone], strikes.subjects, contents]))
    marks = [(row.tobytes(), now()[:10]) for row in suppressed]
    counts = target.samples.cell_rows(plan.shards, plan.slices)
    record.samples_are(None)
    with coordinator_lock(record.folder), record.ledger.writing("commit"):
        ledger = record.ledger
        change_samples(ledger, before, target.samples, request.change)
        ledger.change_many("INSERT OR IGNORE INTO suppressions VALUES (?, ?)", marks)
        ledger.change("DELETE FROM cells")
        ledger.change_many(
            "INSERT INTO cells VALUES (?, ?, ?, ?)",
            ((s, r, int(counts[s, r]), digest) for (s, r), digest in sorted(target.digests.items())),
        )
        ledger.set_wanted(stage.key for stage in target.stages)
        ledger.change(
            "UPDATE requests SET state = 'committed', committed = ?, outcome = ? WHERE number = ?",
            (now(), json.dumps(outcome, sort_keys=True), request.number),
        )
        (commitment,) = ledger.rows("SELECT commitment FROM requests WHERE number = ?", (request.number,))[0]
        write_release(record, request.number, METHOD, commitment, outcome["guarantee"], target.stages)
        ledger.append_event("committed", request=request.number, commitment=commitment.hex())
    record.samples_are(target.samples)


def _gone_contents(record: Record, contents: Names, left: Samples) -> Names:
    """Return the contents that no sample has any more, where names are given ids that do not say them.

    Not those of amended rows, which were replaced rather than forgotten.
    """
    known = contents[contents.any(axis=1)]
    if record.plan.naming == "content":
        return known[:0]
    held = left.contents[among(left.contents, known)]
    return np.unique(known[~among(known, held)], axis=0)


def write_release(
    record: Record, request: int | None, method: str, commitment: bytes, guarantee: Any, stages: Iterable[Stage]
) -> None:
    """Write the release that a fit or a rebuild produces, in place of the one before, inside a transaction."""
    ledger = record.ledger
    parent = [key for (key,) in ledger.rows("SELECT key FROM releases")]
    above = bytes.fromhex(parent[0] if parent else record.plan.roots[0])
    key = chained("pybrush-release", above, chained("pybrush-meaning", method.encode()), commitment).hex()
    last = {
        shard: {"key": stage.key, "sha256": record.store.manifest(stage.key).sha256}
        for shard, stage in constituents(stages).items()
    }
    ledger.change("DELETE FROM releases")
    ledger.change(
        "INSERT INTO releases VALUES (?, ?, ?, ?, ?, ?, ?)",
        (key, parent[0] if parent else None, request, method, json.dumps(guarantee), json.dumps(last), now()),
    )


def cancel(record: Record, number: int) -> None:
    """Withdraw a pending request, or finish a withdrawal that was killed (see `Record.cancel`)."""
    with request_lock(record.folder):
        found = [request for request in record.requests if request.number == number]
        state = found[0].state if found else "unknown"
        if state not in ("pending", "cancelled"):
            raise RecordError(f"request {number} is {state}; only a pending request can be cancelled.")
        with coordinator_lock(record.folder):
            if state == "pending":
                _withdraw(record, number)
            unlink(pending_path(record, number))
            remove_unwanted(record, remove_but_left)
            record.ledger.vacuum()


def _withdraw(record: Record, number: int) -> None:
    with record.ledger.writing("cancel"):
        record.ledger.change("UPDATE requests SET state = 'cancelled' WHERE number = ?", (number,))
        record.ledger.change("DELETE FROM salts WHERE request = ?", (number,))
        record.ledger.set_wanted(stage.key for stage in record.graph())
        record.ledger.append_event("cancelled", request=number)
