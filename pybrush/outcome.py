"""What a rebuild promises and what it cost: the guarantee with its assumptions, and the bill."""

from __future__ import annotations

from collections.abc import Iterable

from pybrush.guarantee import Assumption, Exact
from pybrush.plan.graph import Stage
from pybrush.record.fingerprint import environment_differences
from pybrush.record.record import Record, RecordPlan
from pybrush.record.resolve import Resolution
from pybrush.result import UnlearnCost

REFERENCE = "training under the recorded plan, seed and initial state without the forgotten rows"


def exact_guarantee(record: Record, stages: Iterable[Stage]) -> Exact:
    """Return the guarantee of a rebuilt record, with every difference and assumption named."""
    manifests = [record.store.manifest(stage.key) for stage in stages if record.store.has(stage.key)]
    differences = environment_differences(manifest.environment for manifest in manifests)
    return Exact(REFERENCE, differences, _assumptions(record.plan))


def _assumptions(plan: RecordPlan) -> tuple[Assumption, ...]:
    found = [
        Assumption("placement", "shard, slice, order and seeds depend on no other sample", "proved"),
        Assumption("initial-state", "the initial weights saw no forgotten sample", "declared", "unknown"),
        Assumption(
            "preprocessing", "nothing fitted on the forgotten rows reached the model (scalers, vocabularies)",
            "declared", "unknown",
        ),
        Assumption(
            "model-selection", "architecture, settings and validation data do not depend on the forgotten rows",
            "declared", "unknown",
        ),
        Assumption(
            "hidden-state", "no state outside the module, optimizers and callbacks carries over between stages",
            "declared", "unknown",
        ),
        Assumption(
            "adaptive-requests", "who asks to be forgotten did not choose so after seeing the model's outputs",
            "declared", "unknown",
        ),
    ]  # fmt: skip
    if plan.contents == "off":
        found.append(Assumption("contents", "the rows behind the ids have not changed", "declared", "unknown"))
    unknown = sorted(name for name, text in plan.semantic.get("source", {}).items() if text == "unknown")
    found += [Assumption(f"source:{name}", "its source text is not known", "declared", "unknown") for name in unknown]
    return tuple(found)


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


