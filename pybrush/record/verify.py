"""What must be true of a record, and whether it is, in two depths.

`manifests` looks at the ledger, the graph and the manifests, and reads no state; `digests` reads every byte besides.
The third depth, replay, trains a stage again (`pybrush.replay`). Guide: docs/guarantees.md, "Verify, in three depths".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pybrush.errors import ConfigurationError, CorruptRecordError
from pybrush.record.check_ledger import check_cells, check_declarations, check_history, check_plan
from pybrush.record.check_leftovers import check_artefacts, check_files, check_open_request
from pybrush.record.check_releases import check_releases, secrets_of
from pybrush.record.check_stages import check_digests, check_initial, check_manifests, check_sizes
from pybrush.record.ledger import check_events, days_since
from pybrush.record.queue import check_queue, waiting_entries
from pybrush.record.record import Record
from pybrush.record.transaction import unfinished

Depth = Literal["manifests", "digests"]

_NOT_LOOKED_AT = {
    "manifests": (
        "whether the states have the bytes that their manifests name",
        "whether files still hold names of an unfinished request",
        "whether training leads to these states",
    ),
    "digests": ("whether training leads to these states",),
}


@dataclass(frozen=True)
class Verification:
    """What was found to be true.

    Attributes:
        stages: stages whose files match their manifests; at depth "manifests", whose manifests match the graph.
        missing: stages that are still to be built: the fit or a request is not finished.
        rows: recorded rows, copies counted.
        events: events in the unbroken chain.
        pending: unfinished requests, "number: state, n days old".
        unwanted: stages and states of releases on disk that the plan does not want; the next collection takes them.
        artefacts: registered files of user code that exist.
        depth: how much was looked at.
        unopened: stages, of those, whose encrypted files match their manifests and were not opened, since the key ring
            is not in its place.
        queued: entries of the queue that wait, "number: kind, rows, n days old": what was asked is not done yet.
        replaced: stages without a state for which a state of an approximate release stands, so they are not missing.
        releases: states of approximate releases, checked as the stages are.
        secrets: keys of such states beside which a secret one lies.
    """

    stages: int
    missing: tuple[str, ...]
    rows: int
    events: int
    pending: tuple[str, ...]
    unwanted: tuple[str, ...]
    artefacts: int
    depth: Depth = "digests"
    unopened: int = 0
    queued: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    releases: int = 0
    secrets: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing is missing, pending, unwanted or waiting in the queue."""
        return not (self.missing or self.pending or self.unwanted or self.queued)

    @property
    def not_looked_at(self) -> tuple[str, ...]:
        """What this depth says nothing of."""
        return _NOT_LOOKED_AT[self.depth]


def verify(record: Record, depth: Depth = "digests") -> Verification:
    """Check a record (see `Record.verify`)."""
    _check_depth(depth)
    events = check_events(record.ledger)
    check_history(record)
    check_declarations(record)
    check_queue(record.ledger)
    check_plan(record)
    check_cells(record)
    record.store.vault.check_current(record.ledger)
    if depth == "digests":
        check_initial(record)  # first, since every stage descends from it
    stages, held = record.graph(), record.stand_ins()
    built, lacking = check_manifests(record, stages)
    replaced = tuple(stage.key for stage in stages if stage.key in lacking and stage.shard in held)
    check_releases(record, stages)
    check_open_request(record)
    _check_states(record, [*built, *held.values()], depth)
    pending = tuple(
        f"{request.number}: {request.state}, {days_since(request.accepted)} days old" for request in unfinished(record)
    )
    wanted = record.ledger.wanted()
    if not pending and wanted != {stage.key for stage in stages} | set(held.values()):
        raise CorruptRecordError(f"the stages that {record.ledger.path} wants are not those of its samples.")
    return Verification(
        stages=len(built),
        missing=tuple(key for key in lacking if key not in replaced),
        rows=sum(count for (count,) in record.ledger.rows("SELECT rows FROM cells")),  # compared with the samples above
        events=events,
        pending=pending,
        unwanted=tuple(sorted((record.store.keys() | record.store.release_keys()) - wanted)),
        artefacts=check_artefacts(record, wanted),
        depth=depth,
        unopened=sum(not record.store.can_open(key) for key in [*built, *held.values()]),
        queued=tuple(
            f"{entry.number}: {entry.kind}, {entry.rows} rows, {entry.days} days old"
            for entry in waiting_entries(record.ledger)
        ),
        replaced=replaced,
        releases=len(held),
        secrets=secrets_of(record),
    )


def _check_depth(depth: str) -> None:
    if depth not in get_args(Depth):
        raise ConfigurationError(
            f"depth must be 'manifests' or 'digests'; got {depth!r}. The third depth trains stages again and needs "
            "model and data: call the adapter's replay(trainer, ...) or replay(sisa, ...), or `pybrush verify "
            "record=FOLDER depth=replay`."
        )


def _check_states(record: Record, keys: list[str], depth: Depth) -> None:
    """Look at the files of the states as far as a depth goes."""
    if depth == "manifests":
        check_sizes(record, ["initial", *keys])
        return
    check_digests(record, ["initial", *keys])
    check_files(record)
