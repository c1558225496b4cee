"""What a request costs beside a retrain, and what a caller is told of it, also beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pybrush.method import Terms
from pybrush.plan.graph import Stage
from pybrush.record.record import Record
from pybrush.record.releases import release_manifest, short_name
from pybrush.record.resolve import Resolution
from pybrush.record.transaction import Target, unfinished
from pybrush.result import UnlearnCost, UnlearnResult
from pybrush.standing import Standing, current_guarantee, guarantee_of, promised_links


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


def foretold(record: Record, resolution: Resolution, prospect: Prospect | None) -> UnlearnResult:
    """Return what a request would do."""
    notes = ["dry run: nothing was touched"]
    notes += [f"request {request.number} is not finished and would be served first" for request in unfinished(record)]
    result = unchanged(record, resolution) if prospect is None else _priced(record, prospect, resolution)
    return replace(result, notes=(*notes, *result.notes))


def _priced(record: Record, prospect: Prospect, resolution: Resolution) -> UnlearnResult:
    target, standing = prospect.target, prospect.standing
    todo = rebuilt(record, target, standing)
    before = {stage.key for stage in record.graph()} | set(record.stand_ins().values())
    doomed = before - {stage.key for stage in target.stages} - set(standing.kept.values())
    promised = promised_links(record, standing, prospect.terms, _next_number(record))
    artefacts = sorted(path for path, stage in record.artefacts().items() if stage in doomed)
    last = {stage.shard for stage in target.stages}
    cells = [(stage.shard, stage.slice) for stage in todo]
    return UnlearnResult(
        model=None,
        guarantee=guarantee_of(record, target.stages, standing.kept, promised),
        method=short_name(standing.method),
        request=0,
        cost=cost_of(record, target.stages, todo),
        audit={
            "artefacts": artefacts,
            "stages": cells,
            "shards_edited": list(standing.edited),
            "equal_rows_left": resolution.equal,
        },
        record=record.folder,
        shards=tuple(sorted(last)),
        left_out=tuple(shard for shard in range(record.plan.shards) if shard not in last),
        forgotten=resolution.strikes.rows,
        notes=(
            *full_retrain_note(todo, target.stages),
            *notes_on(resolution),
            *inexact_note(record, target.stages, standing.served),
        ),
    )


def unchanged(record: Record, resolution: Resolution) -> UnlearnResult:
    """Return the result of a wish that strikes nothing."""
    stages = record.graph()
    last = {stage.shard for stage in stages}
    found = f"all {resolution.already} were forgotten before" if resolution.already else "no recorded row is absent"
    inexact = inexact_note(record, stages, record.stand_ins())
    return UnlearnResult(
        model=None,
        guarantee=current_guarantee(record),
        method="none",
        request=0,
        cost=replace(cost_of(record, stages, []), stages_rebuilt=0),
        audit={},
        record=record.folder,
        shards=tuple(sorted(last)),
        left_out=tuple(shard for shard in range(record.plan.shards) if shard not in last),
        notes=(f"{found}; nothing was left to do", *inexact),
    )


def notes_on(resolution: Resolution) -> tuple[str, ...]:
    """Return what the caller should know about how a wish was resolved."""
    notes = []
    if resolution.already:
        notes.append(f"{resolution.already} rows were not in the model any more and were passed over")
    if resolution.equal:
        notes.append(f"{resolution.equal} rows equal to a forgotten one stay; duplicates='forget' takes them too")
    return tuple(notes)


def full_retrain_note(todo: list[Stage], stages: tuple[Stage, ...]) -> tuple[str, ...]:
    """Return a note where a request hits every stage."""
    return ("this is a full retrain: the request hits every stage",) if len(todo) == len(stages) else ()


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
    left = [stage for stage in stages if stage.shard in shards and not record.store.has(stage.key)]
    visits = sum(stage.rows for stage in left) * record.plan.epochs_per_slice
    return (
        f"shards {', '.join(map(str, sorted(shards)))} were not trained again: guarantee='exact' rebuilds {len(left)} "
        f"stages ({visits:,} row visits)",
    )


def _next_number(record: Record) -> int:
    return max((request.number for request in record.requests), default=0) + 1
