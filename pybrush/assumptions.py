"""Under which conditions an exact guarantee holds: those of every record, those found, those declared.

Guide: docs/guarantees.md, "Under which conditions".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from pybrush.guarantee import Assumption
from pybrush.record.declarations import declarations
from pybrush.record.plan import RecordPlan
from pybrush.record.record import Record

PLACEMENT = Assumption("placement", "shard, slice, order and seeds depend on no other sample", "proved")

UNTESTED = {
    "initial-state": "the initial weights saw no forgotten sample",
    "preprocessing": "nothing fitted on the forgotten rows reached the model (scalers, vocabularies)",
    "model-selection": "architecture, settings and validation data do not depend on the forgotten rows",
    "hidden-state": "no state outside the model, optimizers and callbacks carries over between stages",
    "adaptive-requests": "adaptive: false; nobody chose what to forget, or when, after seeing the model's outputs",
}
"""What no code can test, of every record."""


def assumptions_of(record: Record, found: Iterable[Mapping[str, str]] = ()) -> tuple[Assumption, ...]:
    """Return all assumptions of a record, each with the user's words where it was declared.

    Args:
        record: the record.
        found: name and statement of what was found while its stages were trained, repeated or not.
    """
    words = declarations(record.ledger)
    in_stages = {one["name"]: Assumption(one["name"], one["statement"], "declared", "unknown") for one in found}
    whole = [*_of_plan(record.plan), *(in_stages[name] for name in sorted(in_stages))]
    named = [_declared(assumption, words.get(assumption.name)) for assumption in whole]
    own = words.keys() - {assumption.name for assumption in named}
    return (PLACEMENT, *named, *(Assumption(name, words[name], "declared", "yes") for name in sorted(own)))


def _of_plan(plan: RecordPlan) -> Iterator[Assumption]:
    for name, statement in UNTESTED.items():
        yield Assumption(name, statement, "declared", "unknown")
    if plan.contents == "off":
        yield Assumption("contents", "the rows behind the ids have not changed", "declared", "unknown")
    for name, text in sorted(plan.semantic.get("source", {}).items()):
        if text == "unknown":
            yield Assumption(f"source:{name}", "its source text is not known", "declared", "unknown")
    for found in plan.settings.get("assumptions", ()):
        yield Assumption(found["name"], found["statement"], "declared", "unknown")


def _declared(assumption: Assumption, words: str | None) -> Assumption:
    if words is None:
        return assumption
    return replace(assumption, statement=f"{assumption.statement}; declared: {words}", holds="yes")
