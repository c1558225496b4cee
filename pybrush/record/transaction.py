"""The life of a request in the ledger: accept, commit, cancel, and what is found after a crash.

Accepted is durable before work starts: the pending file is synced before the ledger's row. After the
commit only forward. Every function here is called with the request lock held.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pybrush.change import Change
from pybrush.errors import CorruptRecordError, RecordError
from pybrush.names import Names, among, as_names, rows_of
from pybrush.plan.graph import Stage
from pybrush.record.artefacts import Purge, remove_but_left
from pybrush.record.collect import remove_unwanted, seal
from pybrush.record.files import entries, erase, make_folder, replace, unlink
from pybrush.record.ledger import now
from pybrush.record.locks import coordinator_lock, request_lock
from pybrush.record.queue import put_back, queued_subjects, settle, take
from pybrush.record.record import Record
from pybrush.record.releases import REBUILD, commitment_of, next_release, state_keys, write_release
from pybrush.record.requests import RequestInfo
from pybrush.record.samples import Samples, change_samples

UNFINISHED = ("pending", "committed", "collected")


@dataclass(frozen=True)
class OpenRequest:
    """A request that is not sealed: its number, its state, its method with settings, and what it changes."""

    number: int
    state: str
    method: str
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
    return OpenRequest(request.number, request.state, request.method, change)


def tidy(record: Record) -> None:
    """Remove what dead processes left, and close a request of which only the seal is missing."""
    record.ledger.check_settings()
    record.store.vault.check_current(record.ledger)
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


def accept(
    record: Record, change: Change, target: Target, entries: Sequence[int] = (), purge: Purge = "delete",
    method: str = REBUILD, edited: Iterable[int] = (),
) -> OpenRequest:  # fmt: skip
    """Write a request down before anything is done for it; from here it will be finished or cancelled.

    Args:
        record: the record.
        change: what is struck and recorded.
        target: what the record becomes.
        entries: the entries of the queue that it serves.
        purge: how it deals with files of user code.
        method: how it is served, with settings.
        edited: shards of which the method makes new states.
    """
    salt = secrets.token_bytes(16)
    with coordinator_lock(record.folder):
        number = max((request.number for request in record.requests), default=0) + 1
        make_folder(record.folder / "pending")
        commitment = change.commitment(salt)
        with _pending_written(record, number, change), record.ledger.writing("accept"):
            take(record.ledger, entries, number)
            record.ledger.change(
                "INSERT INTO requests (number, state, method, commitment, rows, accepted, purge) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, "pending", method, commitment, change.rows, now(), purge),
            )
            record.ledger.change("INSERT INTO salts VALUES (?, ?)", (number, salt))
            coming = state_keys(next_release(record, method, commitment), edited)
            needed = {stage.key for stage in target.stages} | set(coming.values())
            record.ledger.set_wanted(record.ledger.wanted() | needed)
            record.ledger.append_event(
                "accepted", request=number, commitment=commitment.hex(), rows=change.rows, method=method
            )
    return OpenRequest(number, "pending", method, change)


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


def commit(
    record: Record, request: OpenRequest, before: Samples, target: Target, outcome: dict[str, Any],
    held: Mapping[int, str],
) -> None:  # fmt: skip
    """Make the new record the record, in one transaction: rows out and in, suppressions in, release written.

    Args:
        record: the record.
        request: which request, and the method by which it was served in the end.
        before: the samples until now.
        target: what the record becomes.
        outcome: cost, guarantee and counts, plain values.
        held: shard -> key of the release's state that serves it from now on.
    """
    strikes, plan = request.change.strikes, record.plan
    is_gone = target.samples.find(strikes.names) < 0
    gone, contents = strikes.names[is_gone], _gone_contents(record, strikes.contents[is_gone], target.samples)
    lost = np.vstack([gone, strikes.subjects, strikes.orphans])
    counts = target.samples.cell_rows(plan.shards, plan.slices)
    record.samples_are(None)
    with coordinator_lock(record.folder), record.ledger.writing("commit"):
        ledger = record.ledger
        change_samples(ledger, before, target.samples, request.change)
        queued = among(strikes.orphans, as_names(queued_subjects(ledger)))  # they asked too, and wait no longer
        marked = record.names.suppressed(np.vstack([gone, contents, strikes.subjects, strikes.orphans[queued]]))
        since = now()[:10]
        ledger.change_many(
            "INSERT OR IGNORE INTO suppressions VALUES (?, ?)", ((row, since) for row in rows_of(marked))
        )
        settle(ledger, request.number, lost)
        ledger.change("DELETE FROM cells")
        ledger.change_many(
            "INSERT INTO cells VALUES (?, ?, ?, ?)",
            ((s, r, int(counts[s, r]), digest) for (s, r), digest in sorted(target.digests.items())),
        )
        ledger.set_wanted([*(stage.key for stage in target.stages), *held.values()])
        ledger.change(
            "UPDATE requests SET state = 'committed', method = ?, committed = ?, outcome = ? WHERE number = ?",
            (request.method, now(), json.dumps(outcome, sort_keys=True), request.number),
        )
        commitment = commitment_of(record, request.number)
        write_release(record, request.number, request.method, commitment, outcome["guarantee"], target.stages, held)
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
        put_back(record.ledger, number)
        record.ledger.set_wanted([*(stage.key for stage in record.graph()), *record.stand_ins().values()])
        record.ledger.append_event("cancelled", request=number)
