"""What a rebuild promises and what it costs: the guarantee with its assumptions, and the bill, also beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pybrush.assumptions import assumptions_of
from pybrush.change import Change
from pybrush.guarantee import Exact
from pybrush.plan.graph import Stage
from pybrush.record.artefacts import Purge, left
from pybrush.record.fingerprint import environment_differences
from pybrush.record.record import Record
from pybrush.record.resolve import Resolution
from pybrush.record.transaction import METHOD, Target, unfinished
from pybrush.result import UnlearnCost, UnlearnResult

REFERENCE = "training under the recorded plan, seed and initial state without the forgotten rows"
AMENDED = ", with the amended rows as they are now"
ADMITTED = ", with the admitted rows from the start"


def exact_guarantee(record: Record, stages: Iterable[Stage], change: Change | None = None) -> Exact:
    """Return the guarantee of a rebuilt record, with every difference and assumption named.

    Args:
        record: the record.
        stages: its stages.
        change: what a request changed; None where nothing was.
    """
    manifests = [record.store.manifest(stage.key) for stage in stages if record.store.has(stage.key)]
    differences = environment_differences(manifest.environment for manifest in manifests)
    found = [one for manifest in manifests for one in manifest.notes.get("assumptions", ())]
    amended, admitted = (False, False) if change is None else (change.amended > 0, change.admitted > 0)
    reference = REFERENCE + AMENDED * amended + ADMITTED * admitted
    return Exact(reference, differences, assumptions_of(record, found))


def cost_of(record: Record, stages: tuple[Stage, ...], rebuilt: list[Stage]) -> UnlearnCost:
    """Return what the rebuilt stages took, beside all stages of the record."""
    manifests = {stage.key: record.store.manifest(stage.key) for stage in stages if record.store.has(stage.key)}
    epochs = record.plan.epochs_per_slice
    done = [manifests[stage.key] for stage in rebuilt if stage.key in manifests]
    return UnlearnCost(
        stages_rebuilt=len(rebuilt),
        stages=len(stages),
        visits=sum(stage.rows for stage in rebuilt) * epochs,
        steps=sum(manifest.steps for manifest in done),
        seconds=sum(manifest.seconds for manifest in done),
        retrain_visits=sum(stage.rows for stage in stages) * epochs,
        retrain_seconds=sum(manifest.seconds for manifest in manifests.values()),
    )


def rebuilt(record: Record, target: Target) -> list[Stage]:
    """Return the stages that a request calls for: those it changes and those that were never built."""
    kept = {stage.key for stage in record.graph() if record.store.has(stage.key)}
    return [stage for stage in target.stages if stage.key not in kept]


def foretold(record: Record, resolution: Resolution, target: Target | None, purge: Purge = "delete") -> UnlearnResult:
    """Return what a request would do."""
    notes = ["dry run: nothing was touched"]
    notes += [f"request {request.number} is not finished and would be served first" for request in unfinished(record)]
    result = unchanged(record, resolution) if target is None else _priced(record, target, resolution)
    audit = {**result.audit, **_artefacts(record, target, purge)}
    return replace(result, audit=audit, notes=(*notes, *result.notes, *left_notes(audit)))


def _artefacts(record: Record, target: Target | None, purge: Purge) -> dict[str, list[str]]:
    """Return the files that a request would remove, or leave."""
    kept = {stage.key for stage in (record.graph() if target is None else target.stages)}
    doomed = {stage.key for stage in record.graph()} - kept
    found = {path for path, stage in record.artefacts().items() if stage in doomed}
    name = "artefacts" if purge == "delete" else "artefacts_left"
    return {name: sorted(found | left(record).keys())}


def _priced(record: Record, target: Target, resolution: Resolution) -> UnlearnResult:
    todo = rebuilt(record, target)
    last = {stage.shard for stage in target.stages}
    cells = [(stage.shard, stage.slice) for stage in todo]
    return UnlearnResult(
        model=None,
        guarantee=exact_guarantee(record, target.stages, resolution.change),
        method=METHOD,
        request=0,
        cost=cost_of(record, target.stages, todo),
        audit={"stages": cells, "equal_rows_left": resolution.equal},
        record=record.folder,
        shards=tuple(sorted(last)),
        left_out=tuple(shard for shard in range(record.plan.shards) if shard not in last),
        forgotten=resolution.change.forgotten,
        amended=resolution.change.amended,
        admitted=resolution.change.admitted,
        notes=(*full_retrain_note(todo, target.stages), *notes_on(resolution)),
    )


def unchanged(record: Record, resolution: Resolution, removed: Sequence[str] = ()) -> UnlearnResult:
    """Return the result of a wish that changes nothing; `removed` are files that earlier requests had left."""
    stages = record.graph()
    last = {stage.shard for stage in stages}
    audit = {"artefacts_unlinked": list(removed)} if removed else {}
    if waiting := left(record):
        audit["artefacts_left"] = list(waiting)
    return UnlearnResult(
        model=None,
        guarantee=exact_guarantee(record, stages),
        method="none",
        request=0,
        cost=replace(cost_of(record, stages, []), stages_rebuilt=0),
        audit=audit,
        record=record.folder,
        shards=tuple(sorted(last)),
        left_out=tuple(shard for shard in range(record.plan.shards) if shard not in last),
        notes=(f"{_why_nothing(resolution)}; nothing was left to do", *left_notes(audit)),
    )


def _why_nothing(resolution: Resolution) -> str:
    why = []
    if resolution.already:
        why.append(f"all {resolution.already} were forgotten before")
    if resolution.unchanged:
        why.append(f"the {resolution.unchanged} rows to amend are as they are recorded")
    if resolution.barred is not None:
        forgotten = f" ({resolution.barred} that are not recorded were forgotten)" if resolution.barred else ""
        why.append(f"no row of the data set is new{forgotten}")
    return "; ".join(why) or "no recorded row is absent"


def notes_on(resolution: Resolution) -> tuple[str, ...]:
    """Return what the caller should know about how a wish was resolved."""
    notes = []
    if resolution.already:
        notes.append(f"{resolution.already} rows were not in the model any more and were passed over")
    if resolution.equal:
        notes.append(f"{resolution.equal} rows equal to a forgotten one stay; duplicates='forget' takes them too")
    if resolution.unchanged:
        notes.append(f"{resolution.unchanged} rows to amend are as they are recorded and were passed over")
    if resolution.barred:
        notes.append(f"{resolution.barred} rows of the data set were forgotten, or are of people who were: left out")
    if resolution.copies:
        notes.append(
            f"{resolution.copies} of the admitted rows are equal to rows that are recorded; where one of several equal "
            "rows was forgotten, delete it from the data set before new rows join"
        )
    return tuple(notes)


def left_notes(audit: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note where files that hold what was forgotten stay."""
    count = len(audit.get("artefacts_left", ()))
    if not count:
        return ()
    return (
        f"incomplete: {count} files that hold what was forgotten are left, and verify fails until they are gone. "
        "Delete them, or let record.settle() or a request with purge='delete' do it",
    )


def full_retrain_note(todo: list[Stage], stages: tuple[Stage, ...]) -> tuple[str, ...]:
    """Return a note where a request hits every stage."""
    return ("this is a full retrain: the request hits every stage",) if len(todo) == len(stages) else ()
