"""What must be true of a record, and whether it is: manifest by manifest, digest by digest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pybrush.errors import CorruptRecordError, ErasureError
from pybrush.plan.graph import Stage
from pybrush.record import states
from pybrush.record.collect import check_gone, files_but, gone_names
from pybrush.record.declarations import commitment
from pybrush.record.fingerprint import semantic_digest
from pybrush.record.ledger import check_events, days_since
from pybrush.record.record import Record
from pybrush.record.samples import read_samples
from pybrush.record.transaction import open_request, pending_path, unfinished


@dataclass(frozen=True)
class Verification:
    """What was found to be true.

    Attributes:
        stages: stages whose files match their manifests.
        missing: stages that are still to be built: the fit or a request is not finished.
        rows: recorded rows, copies counted.
        events: events in the unbroken chain.
        pending: unfinished requests, "number: state, n days old".
        unwanted: stages on disk that the plan does not want; the next collection takes them.
        artefacts: registered files of user code that exist.
        unopened: stages, of those, whose encrypted files match their manifests and were not opened, since the key ring
            is not in its place.
    """

    stages: int
    missing: tuple[str, ...]
    rows: int
    events: int
    pending: tuple[str, ...]
    unwanted: tuple[str, ...]
    artefacts: int
    unopened: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is missing, pending or unwanted."""
        return not (self.missing or self.pending or self.unwanted)


def verify(record: Record) -> Verification:
    """Check a record (see `Record.verify`)."""
    events = check_events(record.ledger)
    _check_history(record)
    _check_declarations(record)
    _check_plan(record)
    stages = record.graph()
    _check_cells(record)
    shas = {"": _check_state(record, "initial")}
    missing = []
    for stage in stages:
        if record.store.has(stage.key):
            shas[stage.key] = _check_stage(record, stage, shas)
        else:
            missing.append(stage.key)
    pending = tuple(
        f"{request.number}: {request.state}, {days_since(request.accepted)} days old" for request in unfinished(record)
    )
    _check_release(record)
    _check_open_request(record)
    wanted = record.ledger.wanted()
    if not pending and wanted != {stage.key for stage in stages}:
        raise CorruptRecordError(f"the stages that {record.ledger.path} wants are not those of its samples.")
    return Verification(
        len(stages) - len(missing),
        tuple(missing),
        read_samples(record.ledger).rows,
        events,
        pending,
        tuple(sorted(record.store.keys() - wanted)),
        _check_artefacts(record, wanted),
        sum(not record.store.can_open(stage.key) for stage in stages if record.store.has(stage.key)),
    )


_HISTORY = {
    "pending": ("accepted",),
    "committed": ("accepted", "committed"),
    "collected": ("accepted", "committed"),
    "sealed": ("accepted", "committed", "sealed"),
    "cancelled": ("accepted", "cancelled"),
}


def _check_history(record: Record) -> None:
    """Look that the events tell of every request: a chain that was cut at its end is still a chain."""
    bodies = record.ledger.rows("SELECT kind, body FROM events")
    told = {(kind, json.loads(body).get("request")) for kind, body in bodies}
    expected = {(kind, request.number) for request in record.requests for kind in _HISTORY[request.state]}
    lacking = sorted(f"{kind} of request {number}" for kind, number in expected - told)
    if ("planned", None) not in told:
        lacking.append("planned")
    if lacking:
        raise CorruptRecordError(f"events are missing from {record.ledger.path}: {', '.join(lacking)}.")


def _check_declarations(record: Record) -> None:
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


def _check_release(record: Record) -> None:
    """Look that what the current release hands out is what the stages hold: a state and its manifest could agree."""
    for (text,) in record.ledger.rows("SELECT constituents FROM releases"):
        released = json.loads(text)
        held = {
            str(shard): {"key": key, "sha256": record.store.manifest(key).sha256}
            for shard, key in record.constituents().items()
            if record.store.has(key)  # one that is missing is told of as missing
        }
        released = {shard: state for shard, state in released.items() if record.store.has(state["key"])}
        if released != held:
            wrong = sorted(shard for shard in released.keys() | held.keys() if released.get(shard) != held.get(shard))
            raise CorruptRecordError(f"the constituents of shards {', '.join(wrong)} are not those that were released.")


def _check_open_request(record: Record) -> None:
    """Look that an unfinished request can be finished and, after its commit, that no file holds its names.

    The ledger itself may hold them in free pages until it is rewritten.
    """
    waiting = unfinished(record)
    if not waiting or (waiting[0].state == "collected" and not pending_path(record, waiting[0].number).is_file()):
        return
    request = open_request(record)
    if request is not None and request.state != "pending":
        files = files_but(record, pending_path(record, request.number), record.ledger.path)
        check_gone(files, gone_names(read_samples(record.ledger), request.strikes))


def _check_plan(record: Record) -> None:
    plan = record.plan
    if semantic_digest(plan.semantic).hex() != plan.semantic_digest:
        raise CorruptRecordError(f"the fingerprint in {record.ledger.path} does not have the digest beside it.")
    # The fingerprint says most of the plan again, and training reads the plan.
    changed = sorted(name for name, value in plan.semantic.get("plan", {}).items() if getattr(plan, name) != value)
    if changed:
        raise CorruptRecordError(f"{', '.join(changed)} in {record.ledger.path} are not what its fingerprint says.")
    if record.store.manifest("initial").key != "initial":
        raise CorruptRecordError(f"{record.store.initial} does not hold the initial state.")
    if states.digest_of(*states.read(record.store.initial)) != plan.initial_digest:
        raise CorruptRecordError(f"the initial state in {record.store.initial} is not the one that was recorded.")


def _check_cells(record: Record) -> None:
    """Compare the recorded rows and digests of each cell with those of its samples."""
    samples, plan = read_samples(record.ledger), record.plan
    counts = samples.cell_rows(plan.shards, plan.slices)
    recorded = {(s, r): (n, d) for s, r, n, d in record.ledger.rows("SELECT shard, slice, rows, digest FROM cells")}
    cells = [(s, r) for s in range(plan.shards) for r in range(plan.slices) if counts[s, r]]
    found = {cell: (int(counts[cell]), digest) for cell, digest in samples.digests(cells).items()}
    if found != recorded:
        wrong = sorted(cell for cell in found.keys() | recorded.keys() if found.get(cell) != recorded.get(cell))
        raise CorruptRecordError(f"cells {wrong} of {record.ledger.path} do not match their samples.")


def _check_state(record: Record, key: str) -> str:
    """Check the files of a state against its manifest; return its hash."""
    return record.store.check(key).sha256


def _check_stage(record: Record, stage: Stage, shas: dict[str, str]) -> str:
    """Check a stage against its place in the graph; return its hash."""
    manifest = record.store.manifest(stage.key)
    expected = (stage.parent, stage.shard, stage.slice, stage.rows)
    came = (manifest.parent, manifest.shard, manifest.slice, manifest.rows)
    if came != expected:
        raise CorruptRecordError(f"stage {stage.key} should be (parent, shard, slice, rows) {expected}; it is {came}.")
    parent = shas.get("" if stage.starts_shard else stage.parent)
    if parent is not None and manifest.parent_sha256 != parent:
        raise CorruptRecordError(f"stage {stage.key} was not built from the state of its parent.")
    return _check_state(record, stage.key)


def _check_artefacts(record: Record, wanted: set[str]) -> int:
    left = [path for path, stage in record.artefacts().items() if stage not in wanted and Path(path).exists()]
    if left:
        raise ErasureError(
            f"files of stages that are forgotten still exist: {json.dumps(left)}. Delete them; record.settle() removes "
            "those that a request with purge='list' left."
        )
    return sum(Path(path).exists() for path in record.artefacts())
