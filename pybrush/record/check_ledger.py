"""Whether the ledger of a record agrees with itself: events, requests, declarations, plan and cells.

Each function raises CorruptRecordError at the first thing that does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from pybrush.errors import CorruptRecordError
from pybrush.record.declarations import commitment
from pybrush.record.fingerprint import semantic_digest
from pybrush.record.record import Record
from pybrush.record.samples import Samples, read_samples

_HISTORY = {
    "pending": ("accepted",),
    "committed": ("accepted", "committed"),
    "collected": ("accepted", "committed"),
    "sealed": ("accepted", "committed", "sealed"),
    "cancelled": ("accepted", "cancelled"),
}


def check_history(record: Record) -> None:
    """Look that the events tell of every request: a chain that was cut at its end is still a chain."""
    bodies = record.ledger.rows("SELECT kind, body FROM events")
    told = {(kind, json.loads(body).get("request")) for kind, body in bodies}
    expected = {(kind, request.number) for request in record.requests for kind in _HISTORY[request.state]}
    lacking = sorted(f"{kind} of request {number}" for kind, number in expected - told)
    if ("planned", None) not in told:
        lacking.append("planned")
    if lacking:
        raise CorruptRecordError(f"events are missing from {record.ledger.path}: {', '.join(lacking)}.")


def check_declarations(record: Record) -> None:
    """Look that each declaration is one that was made, and that none was taken out."""
    events = record.ledger.rows("SELECT body FROM events WHERE kind = 'declared' ORDER BY number")
    told = [json.loads(body) for (body,) in events]
    held = record.ledger.rows("SELECT name, statement, salt FROM declarations")
    made = {body["commitment"] for body in told}
    changed = sorted(name for name, text, salt in held if commitment(salt, name, text).hex() not in made)
    if changed or len(held) != (told[-1]["declarations"] if told else 0):
        raise CorruptRecordError(
            f"the declarations in {record.ledger.path} are not those that its events tell of"
            + (f": {', '.join(changed)}." if changed else f": there are {len(held)}.")
        )


def check_plan(record: Record) -> None:
    """Look that the fingerprint has its digest, and that the plan says the same as it does."""
    plan = record.plan
    if semantic_digest(plan.semantic).hex() != plan.semantic_digest:
        raise CorruptRecordError(f"the fingerprint in {record.ledger.path} does not have the digest beside it.")
    # The fingerprint says most of the plan again, and training reads the plan.
    changed = sorted(name for name, value in plan.semantic.get("plan", {}).items() if getattr(plan, name) != value)
    if changed:
        raise CorruptRecordError(f"{', '.join(changed)} in {record.ledger.path} are not what its fingerprint says.")


def check_cells(record: Record) -> None:
    """Compare the recorded rows and digests of each cell with those of its samples."""
    check_some_cells(record, read_samples(record.ledger), set(range(record.plan.shards)))


def check_some_cells(record: Record, samples: Samples, shards: Collection[int]) -> None:
    """Compare the recorded rows of all cells, and the digests of those of some shards, with the record's samples."""
    plan = record.plan
    counts = samples.cell_rows(plan.shards, plan.slices)
    rows = record.ledger.rows("SELECT shard, slice, rows, digest FROM cells")
    recorded = {(s, r): (n, d if s in shards else b"") for s, r, n, d in rows}
    cells = [(s, r) for s in range(plan.shards) for r in range(plan.slices) if counts[s, r]]
    digests = samples.digests(cell for cell in cells if cell[0] in shards)
    found = {cell: (int(counts[cell]), digests.get(cell, b"")) for cell in cells}
    if found != recorded:
        wrong = sorted(cell for cell in found.keys() | recorded.keys() if found.get(cell) != recorded.get(cell))
        raise CorruptRecordError(f"cells {wrong} of {record.ledger.path} do not match their samples.")
