"""What a request costs beside a retrain, and what a caller is told of it, also beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pybrush.method import Terms
from pybrush.plan.graph import Stage
from pybrush.record.artefacts import Purge, left
from pybrush.record.record import Record
from pybrush.record.releases import REBUILD_ALL, release_manifest, short_name
from pybrush.record.resolve import Resolution
from pybrush.record.transaction import Target, unfinished
from pybrush.result import UnlearnCost, UnlearnResult
from pybrush.standing import Standing, current_guarantee, guarantee_of, promised_links, replaced_stages


def cost_of(
    record: Record, stages: tuple[Stage, ...], rebuilt: list[Stage], made: Iterable[str] = ()
) -> UnlearnCost:  # fmt: skip
    """Return what a request took, beside all stages of the record.

    Args:
        record: the record.
        stages: what it calls for.
        rebuilt: the stages that were trained.
        made: keys of the states that an approximate method made.
    """
    manifests = {stage.key: record.store.manifest(stage.key) for stage in stages if record.store.has(stage.key)}
    epochs = record.plan.epochs_per_slice
    trained = [manifests[stage.key] for stage in rebuilt if stage.key in manifests]
    edits = [release_manifest(record, key) for key in made]
    # A stage for which a release's state stands was not measured, or no more; its rows are.
    measured, rows = sum(manifest.rows for manifest in manifests.values()), sum(stage.rows for stage in stages)
    seconds = sum(manifest.seconds for manifest in manifests.values())
    return UnlearnCost(
        stages_rebuilt=len(rebuilt),
        stages=len(stages),
        visits=sum(stage.rows for stage in rebuilt) * epochs + sum(manifest.visits for manifest in edits),
        steps=sum(manifest.steps for manifest in [*trained, *edits]),
        seconds=sum(manifest.seconds for manifest in [*trained, *edits]),
        retrain_visits=rows * epochs,
        retrain_seconds=seconds * rows / measured if measured else 0.0,
    )


def rebuilt(record: Record, target: Target, standing: Standing) -> list[Stage]:
    """Return the stages that a request trains: those it changes and those without a state, of shards it rebuilds."""
    kept = {stage.key for stage in record.graph() if record.store.has(stage.key)}
    return [stage for stage in target.stages if stage.key not in kept and stage.shard not in standing.served]


@dataclass(frozen=True)
class Prospect:
    """What a request would do: the record as it would be, what would serve its shards, and on which terms."""

    target: Target
    standing: Standing
    terms: Terms


def foretold(
    record: Record, resolution: Resolution, prospect: Prospect | None, purge: Purge = "delete"
) -> UnlearnResult:  # fmt: skip
    """Return what a request would do."""
    notes = ["dry run: nothing was touched"]
    notes += [f"request {request.number} is not finished and would be served first" for request in unfinished(record)]
    result = unchanged(record, resolution) if prospect is None else _priced(record, prospect, resolution)
    audit = {**result.audit, **_artefacts(record, prospect, purge)}
    return replace(result, audit=audit, notes=(*notes, *result.notes, *left_notes(audit)))


def _artefacts(record: Record, prospect: Prospect | None, purge: Purge) -> dict[str, list[str]]:
    """Return the files that a request would remove, or leave."""
    doomed: set[str] = set()
    if prospect is not None:
        before = {stage.key for stage in record.graph()} | set(record.stand_ins().values())
        doomed = before - {stage.key for stage in prospect.target.stages} - set(prospect.standing.kept.values())
    found = {path for path, stage in record.artefacts().items() if stage in doomed}
    name = "artefacts" if purge == "delete" else "artefacts_left"
    return {name: sorted(found | left(record).keys())}


def _priced(record: Record, prospect: Prospect, resolution: Resolution) -> UnlearnResult:
    target, standing, change = prospect.target, prospect.standing, resolution.change
    todo = rebuilt(record, target, standing)
    promised = promised_links(record, standing, prospect.terms, _next_number(record))
    last = {stage.shard for stage in target.stages}
    cells = [(stage.shard, stage.slice) for stage in todo]
    return UnlearnResult(
        model=None,
        guarantee=guarantee_of(record, target.stages, standing.kept, promised, change),
        method=short_name(standing.method),
        request=0,
        cost=cost_of(record, target.stages, todo),
        audit={"stages": cells, "shards_edited": list(standing.edited), "equal_rows_left": resolution.equal},
        record=record.folder,
        shards=tuple(sorted(last)),
        left_out=tuple(shard for shard in range(record.plan.shards) if shard not in last),
        forgotten=change.forgotten,
        amended=change.amended,
        admitted=change.admitted,
        entries=resolution.entries,
        notes=(
            *full_retrain_note(todo, target.stages),
            *trained_again_note(standing.method),
            *notes_on(resolution),
            *inexact_note(record, target.stages, standing.served),
        ),
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
        guarantee=current_guarantee(record),
        method="none",
        request=0,
        cost=replace(cost_of(record, stages, []), stages_rebuilt=0),
        audit=audit,
        record=record.folder,
        shards=tuple(sorted(last)),
        left_out=tuple(shard for shard in range(record.plan.shards) if shard not in last),
        entries=resolution.entries,
        notes=(
            f"{_why_nothing(resolution)}; nothing was left to do",
            *inexact_note(record, stages, record.stand_ins()),
            *left_notes(audit),
        ),
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
    return "; ".join(why) or resolution.nothing


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


def trained_again_note(method: str) -> tuple[str, ...]:
    """Return a note where a request also trained what approximate methods had left."""
    return ("what earlier requests had changed without training was trained again",) if method == REBUILD_ALL else ()


def inexact_note(record: Record, stages: tuple[Stage, ...], served: Iterable[int]) -> tuple[str, ...]:
    """Return what an exact guarantee would cost, where states of releases serve some shards.

    Args:
        record: the record.
        stages: what it calls for.
        served: the shards that a release's state serves.
    """
    shards = frozenset(served)
    if not shards:
        return ()
    lacking = replaced_stages(record, stages, shards)
    visits = sum(stage.rows for stage in lacking) * record.plan.epochs_per_slice
    return (
        f"shards {', '.join(map(str, sorted(shards)))} were not trained again: guarantee='exact' rebuilds "
        f"{len(lacking)} stages ({visits:,} row visits)",
    )


def _next_number(record: Record) -> int:
    return max((request.number for request in record.requests), default=0) + 1
