"""The queue: requests that were noted and wait to be served together, in one rebuild.

An entry holds pseudonyms in the ledger, one row each, and needs neither model nor data. What it names stays in the
model until `unlearn(queued=True)` serves it. What another request forgets meanwhile leaves the queue in that one's
commit, so that no entry outlives its names and none is dropped. Guide: docs/record_format.md, "The queue".
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pybrush.days import day_of, text_of
from pybrush.errors import CorruptRecordError, ForgetError, RecordError
from pybrush.hashing import chained
from pybrush.names import Names, as_names, rows_of
from pybrush.record.ledger import Ledger, days_since, now
from pybrush.record.locks import coordinator_lock
from pybrush.record.record import Record
from pybrush.record.resolve import Wish, check_amendable, empty_set, nothing_to_amend, unknown_names
from pybrush.record.suppressions import suppressed

Kind = Literal["ids", "subjects", "before", "amend", "admit"]
State = Literal["waiting", "accepted", "served", "withdrawn"]

_RECORDED = {
    "subjects": "SELECT 1 FROM subjects WHERE subject = ? LIMIT 1",
    "ids": "SELECT 1 FROM samples WHERE name = ?",
    "amend": "SELECT 1 FROM samples WHERE name = ?",
}


_WAITING = "SELECT name FROM queued JOIN queue ON number = entry WHERE state = 'waiting' AND kind "

_STRANGERS = (
    "SELECT count(*) FROM queued LEFT JOIN queue ON number = entry LEFT JOIN samples USING (name) "
    "WHERE kind IS NULL OR (samples.name IS NULL AND kind != 'subjects')",
    "SELECT count(*) FROM queued JOIN queue ON number = entry "
    "WHERE kind = 'subjects' AND queued.name NOT IN (SELECT subject FROM subjects)",
)


@dataclass(frozen=True)
class QueueEntry:
    """One entry of the queue.

    Attributes:
        number: counted from 1.
        kind: "ids", "subjects", "before" or "amend" as it was named; "admit" for new rows, which it does not name.
        rows: rows in the model that it named when it came, copies counted; 0 for "admit".
        enqueued: time in UTC.
        days: whole days since then; None once it was served or withdrawn.
        state: "waiting"; "accepted" while the request that takes it is pending; "served" or "withdrawn".
        request: the request that takes or took it; None while it waits, and where there was nothing to do for it.
    """

    number: int
    kind: Kind
    rows: int
    enqueued: str
    days: int | None
    state: State
    request: int | None


def entries_of(ledger: Ledger) -> tuple[QueueEntry, ...]:
    """Return all entries, in the order in which they came."""
    rows = ledger.rows("SELECT number, kind, rows, enqueued, state, request FROM queue ORDER BY number")
    return tuple(
        QueueEntry(
            number, kind, count, enqueued, days_since(enqueued) if state in ("waiting", "accepted") else None, state,
            request,
        )
        for number, kind, count, enqueued, state, request in rows
    )  # fmt: skip


def waiting_entries(ledger: Ledger) -> tuple[QueueEntry, ...]:
    """Return the entries that no request has taken yet."""
    return tuple(entry for entry in entries_of(ledger) if entry.state == "waiting")


# What comes in


def enqueue(record: Record, ids: Sequence[Any] | None, subjects: Sequence[Any] | None, before: Any) -> int:
    """Note what is to be forgotten (see `Record.enqueue`)."""
    if sum(given is not None for given in (ids, subjects, before)) != 1:
        raise ForgetError("say in one way what to forget: ids=, subjects= or before=.")
    if before is not None:
        return _enqueue_older(record, day_of(before))
    if subjects is not None:
        return _enqueue_names(record, "subjects", record.names.subjects(_listed("subjects", subjects, empty_set())))
    if record.plan.naming != "ids":
        raise ForgetError(
            f"this record names samples by {record.plan.naming}, so no id tells one; enqueue subjects= or before=, or "
            "pass the rows to unlearn."
        )
    return _enqueue_names(record, "ids", record.names.samples(_listed("ids", ids, empty_set())))


def amend(record: Record, ids: Sequence[Any]) -> int:
    """Note whose content is to be read anew (see `Record.amend`)."""
    check_amendable(record)
    return _enqueue_names(record, "amend", record.names.samples(_listed("ids", ids, nothing_to_amend())))


def admit(record: Record) -> int:
    """Note that new rows may join (see `Record.admit`)."""
    return _enqueue_names(record, "admit", as_names([]))


def _listed(name: str, given: Sequence[Any] | None, empty: ForgetError) -> list[Any]:
    if isinstance(given, (str, bytes)):
        raise ForgetError(f"{name}= takes a list; got {given!r}. For a single one pass [{given!r}].")
    found = list(given if given is not None else ())
    if not found:
        raise empty
    return found


def _enqueue_names(record: Record, kind: Kind, asked: Names) -> int:
    """Write an entry of some names; looked up under the lock, so that nothing forgotten is written down again."""
    names = np.unique(asked, axis=0)
    with coordinator_lock(record.folder):
        if kind != "admit":
            known = [bool(record.ledger.rows(_RECORDED[kind], (row,))) for row in rows_of(names)]
            strangers = names[~np.array(known)]
            if not (gone := suppressed(record, strangers)).all():
                what, aim = "subjects" if kind == "subjects" else "samples", "amend" if kind == "amend" else "forget"
                raise unknown_names(strangers[~gone], len(names), what, aim)
            names = names[known]
            if not len(names):
                raise ForgetError(f"all {len(strangers)} were forgotten before; there is nothing to wait for.")
        with record.ledger.writing("queue"):
            number = _write_entry(record.ledger, kind)
            record.ledger.change_many("INSERT INTO queued VALUES (?, ?)", ((number, row) for row in rows_of(names)))
            _count_rows(record.ledger, number, kind)
            _tell(record.ledger, number, kind)
    return number


def _enqueue_older(record: Record, day: int) -> int:
    with coordinator_lock(record.folder), record.ledger.writing("queue"):
        if not record.ledger.rows("SELECT 1 FROM samples WHERE day < ? LIMIT 1", (day,)):
            raise ForgetError(f"no recorded row is older than {text_of(day)}; there is nothing to wait for.")
        number = _write_entry(record.ledger, "before")
        record.ledger.change("INSERT INTO queued SELECT ?, name FROM samples WHERE day < ?", (number, day))
        _count_rows(record.ledger, number, "before")
        _tell(record.ledger, number, "before")
    return number


def _write_entry(ledger: Ledger, kind: Kind) -> int:
    values = (kind, now(), "waiting")
    return ledger.change("INSERT INTO queue (kind, rows, enqueued, state) VALUES (?, 0, ?, ?)", values)


def _count_rows(ledger: Ledger, number: int, kind: Kind) -> None:
    names = "SELECT name FROM queued WHERE entry = ?"
    if kind == "subjects":
        names = f"SELECT name FROM subjects WHERE subject IN ({names})"
    count = f"SELECT coalesce(sum(copies), 0) FROM samples WHERE name IN ({names})"
    ledger.change(f"UPDATE queue SET rows = ({count}) WHERE number = ?", (number, number))


def _tell(ledger: Ledger, number: int, kind: Kind) -> None:
    """Commit to what an entry names now, by a new salt, and note that in the events."""
    salt = secrets.token_bytes(16)
    ledger.change("UPDATE queue SET salt = ? WHERE number = ?", (salt, number))
    told = commitment(salt, kind, _names_in(ledger, number)).hex()
    ledger.append_event("queued", entry=number, what=kind, commitment=told)


def _names_in(ledger: Ledger, number: int) -> list[bytes]:
    return [name for (name,) in ledger.rows("SELECT name FROM queued WHERE entry = ? ORDER BY name", (number,))]


def commitment(salt: bytes, kind: str, names: Iterable[bytes]) -> bytes:
    """Return what stands for an entry and its names, in ascending order, in the events, 32 bytes."""
    return chained("pybrush-commit", salt, kind.encode(), b"".join(names))


def check_queue(ledger: Ledger) -> None:
    """Check that the queue is what its events tell, and that it names nobody who is not recorded.

    Raises:
        CorruptRecordError: at the first entry that is not.
    """
    told: dict[int, tuple[str, dict[str, Any]]] = {}
    query = "SELECT kind, body FROM events WHERE kind IN ('queued', 'served', 'withdrawn') ORDER BY number"
    for kind, body in ledger.rows(query):
        told[json.loads(body)["entry"]] = kind, json.loads(body)
    held = {entry.number: entry for entry in entries_of(ledger)}
    wrong = sorted(n for n in told.keys() | held.keys() if n not in held or not _is_told(ledger, held[n], told.get(n)))
    if wrong:
        listed = ", ".join(map(str, wrong))
        raise CorruptRecordError(f"entries of the queue in {ledger.path} are not what its events tell: {listed}.")
    for query in _STRANGERS:
        ((strangers,),) = ledger.rows(query)
        if strangers:
            raise CorruptRecordError(f"the queue in {ledger.path} holds {strangers} names that are not recorded.")


def _is_told(ledger: Ledger, entry: QueueEntry, told: tuple[str, dict[str, Any]] | None) -> bool:
    """Whether the last event about an entry says what its row says."""
    kind, body = told if told is not None else ("", {})
    if entry.state in ("served", "withdrawn"):
        return kind == entry.state and body.get("request") == entry.request
    query = "SELECT salt FROM queue WHERE number = ? AND salt IS NOT NULL"
    names = _names_in(ledger, entry.number)
    made = [commitment(salt, entry.kind, names).hex() for (salt,) in ledger.rows(query, (entry.number,))]
    pending = "SELECT 1 FROM requests WHERE number = ? AND state = 'pending'"
    taken = bool(ledger.rows(pending, (entry.request,)))
    return kind == "queued" and made == [body["commitment"]] and taken == (entry.state == "accepted")


# What goes out


def drawn(record: Record, wish: Wish) -> Wish:
    """Return the batch that a wish for what waits, or is too old, comes to; the wish itself where that is nothing."""
    ledger = record.ledger
    if wish.before is not None:
        older = _copied(ledger, "SELECT name, copies FROM samples WHERE day < ?", wish.before)
        return replace(wish, before=None, names=older) if len(older) else wish
    waiting = waiting_entries(ledger) if wish.queued else ()
    if not waiting:
        return wish
    kinds = {entry.kind for entry in waiting}
    copied = f"SELECT name, copies FROM samples WHERE name IN ({_WAITING} IN ('ids', 'before'))"
    subjects, amended = ({name for (name,) in ledger.rows(_WAITING + "= ?", (kind,))} for kind in ("subjects", "amend"))
    return replace(
        wish,
        queued=False,
        entries=tuple(entry.number for entry in waiting),
        names=_copied(ledger, copied) if kinds & {"ids", "before"} else None,
        subjects=as_names(sorted(subjects)) if "subjects" in kinds else None,
        amended=as_names(sorted(amended)) if "amend" in kinds else None,
        admits="admit" in kinds,
    )


def _copied(ledger: Ledger, query: str, *values: Any) -> Names:
    """Return the names that a query finds, each as often as the record counts it."""
    rows = ledger.rows(query, values)
    return np.repeat(as_names(name for name, _ in rows), [copies for _, copies in rows], axis=0)


def is_served_by(ledger: Ledger, request: int) -> bool:
    """Whether a request took entries of the queue, or forgot all that one named."""
    return bool(ledger.rows("SELECT 1 FROM queue WHERE request = ? LIMIT 1", (request,)))


def waiting_note(ledger: Ledger) -> tuple[str, ...]:
    """Return what to say of the entries that wait; nothing where none does."""
    waiting = waiting_entries(ledger)
    if not waiting:
        return ()
    oldest = max(entry.days or 0 for entry in waiting)
    count = "1 entry waits" if len(waiting) == 1 else f"{len(waiting)} entries wait"
    return (f"{count} in the queue, the oldest for {oldest} days; unlearn(queued=True) serves what waits",)


def withdraw(record: Record, entry: int) -> None:
    """Take an entry out unserved (see `Record.withdraw`)."""
    with coordinator_lock(record.folder):
        found = {held.number: held for held in entries_of(record.ledger)}.get(entry)
        if found is None or found.state != "waiting":
            state = "unknown" if found is None else found.state
            way_out = f"; cancel request {found.request} first" if found and found.state == "accepted" else ""
            raise RecordError(f"entry {entry} of the queue is {state}; only a waiting one can be withdrawn{way_out}.")
        with record.ledger.writing("queue"):
            _end(record.ledger, [entry], "withdrawn", None)


def take(ledger: Ledger, entries: Sequence[int], request: int) -> None:
    """Let a request take entries, in the transaction in which it is accepted.

    Raises:
        RecordError: where one of them does not wait any more.
    """
    lost = set(entries) - {entry.number for entry in waiting_entries(ledger)}
    if lost:
        raise RecordError(
            f"{len(lost)} entries of the queue were withdrawn or served while the request was worked out "
            f"({', '.join(map(str, sorted(lost)))}). Nothing was touched; call again."
        )
    rows = ((request, entry) for entry in entries)
    ledger.change_many("UPDATE queue SET state = 'accepted', request = ? WHERE number = ?", rows)


def put_back(ledger: Ledger, request: int) -> None:
    """Let the entries of a request that is cancelled wait again, inside its transaction."""
    query = "UPDATE queue SET state = 'waiting', request = NULL WHERE request = ? AND state = 'accepted'"
    ledger.change(query, (request,))


def settle(ledger: Ledger, request: int, gone: Names) -> None:
    """End what a request served, and take what it forgot out of all other entries, inside its commit.

    Args:
        ledger: the ledger.
        request: the request.
        gone: pseudonyms of samples and subjects that the record holds no more, shape (n, 16).
    """
    taken = ledger.rows("SELECT number FROM queue WHERE request = ? AND state = 'accepted'", (request,))
    _end(ledger, [number for (number,) in taken], "served", request)
    with ledger.listed(rows_of(gone)) as forgotten:
        hit = ledger.rows(f"SELECT DISTINCT entry FROM queued WHERE name IN {forgotten} ORDER BY entry")
        ledger.change(f"DELETE FROM queued WHERE name IN {forgotten}")
    for (number,) in hit:
        left = ledger.rows("SELECT 1 FROM queued WHERE entry = ? LIMIT 1", (number,))
        ((kind,),) = ledger.rows("SELECT kind FROM queue WHERE number = ?", (number,))
        if left:
            _tell(ledger, number, kind)
        else:
            _end(ledger, [number], "served", request)


def close_unneeded(record: Record, entries: Sequence[int]) -> None:
    """End entries for which there was nothing to do: mended rows that are as recorded, no new rows."""
    with coordinator_lock(record.folder), record.ledger.writing("queue"):
        held = {entry.number for entry in waiting_entries(record.ledger)}
        _end(record.ledger, sorted(held & set(entries)), "served", None)


def queued_subjects(ledger: Ledger) -> set[bytes]:
    """Return the names of the subjects that wait to be forgotten."""
    query = "SELECT DISTINCT name FROM queued JOIN queue ON number = entry WHERE kind = 'subjects'"
    return {name for (name,) in ledger.rows(query)}


def _end(ledger: Ledger, entries: Iterable[int], state: State, request: int | None) -> None:
    for number in entries:
        ledger.change("DELETE FROM queued WHERE entry = ?", (number,))
        ledger.change("UPDATE queue SET state = ?, request = ?, salt = NULL WHERE number = ?", (state, request, number))
        ledger.append_event(state, entry=number, **({"request": request} if state == "served" else {}))
