"""What a rebuild promises and what it costs: the guarantee with its assumptions, and the bill, also beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pybrush.assumptions import assumptions_of
from pybrush.guarantee import Exact
from pybrush.plan.graph import Stage
from pybrush.record.fingerprint import environment_differences
from pybrush.record.record import Record
from pybrush.record.resolve import Resolution
from pybrush.record.transaction import METHOD, Target, unfinished
from pybrush.result import UnlearnCost, UnlearnResult

REFERENCE = "training under the recorded plan, seed and initial state without the forgotten rows"


def exact_guarantee(record: Record, stages: Iterable[Stage]) -> Exact:
    """Return the guarantee of a rebuilt record, with every difference and assumption named."""
    manifests = [record.store.manifest(stage.key) for stage in stages if record.store.has(stage.key)]
    differences = environment_differences(manifest.environment for manifest in manifests)
    found = [one for manifest in manifests for one in manifest.notes.get("assumptions", ())]
    return Exact(REFERENCE, differences, assumptions_of(record, found))


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


def foretold(record: Record, resolution: Resolution, target: Target | None) -> UnlearnResult:
    """Return what a request would do."""
    notes = ["dry run: nothing was touched"]
    notes += [f"request {request.number} is not finished and would be served first" for request in unfinished(record)]
    result = unchanged(record, resolution) if target is None else _priced(record, target, resolution)
    return replace(result, notes=(*notes, *result.notes))


def _priced(record: Record, target: Target, resolution: Resolution) -> UnlearnResult:
    todo = rebuilt(record, target)
    doomed = {stage.key for stage in record.graph()} - {stage.key for stage in target.stages}
    artefacts = sorted(path for path, stage in record.artefacts().items() if stage in doomed)
    last = {stage.shard for stage in target.stages}
    cells = [(stage.shard, stage.slice) for stage in todo]
    return UnlearnResult(
        model=None,
        guarantee=exact_guarantee(record, target.stages),
        method=METHOD,
        request=0,
        cost=cost_of(record, target.stages, todo),
        audit={"artefacts": artefacts, "stages": cells, "equal_rows_left": resolution.equal},
        record=record.folder,
        shards=tuple(sorted(last)),
        left_out=tuple(shard for shard in range(record.plan.shards) if shard not in last),
        forgotten=resolution.strikes.rows,
        notes=(*full_retrain_note(todo, target.stages), *notes_on(resolution)),
    )


def unchanged(record: Record, resolution: Resolution) -> UnlearnResult:
    """Return the result of a wish that strikes nothing."""
    stages = record.graph()
    last = {stage.shard for stage in stages}
    found = f"all {resolution.already} were forgotten before" if resolution.already else "no recorded row is absent"
    return UnlearnResult(
        model=None,
        guarantee=exact_guarantee(record, stages),
        method="none",
        request=0,
        cost=replace(cost_of(record, stages, []), stages_rebuilt=0),
        audit={},
        record=record.folder,
        shards=tuple(sorted(last)),
        left_out=tuple(shard for shard in range(record.plan.shards) if shard not in last),
        notes=(f"{found}; nothing was left to do",),
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
