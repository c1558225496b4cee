"""Under which conditions an exact guarantee holds: those of every record, those found, those declared.

Guide: docs/guarantees.md, "Under which conditions".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pybrush.guarantee import Assumption
from pybrush.record.declarations import declarations
from pybrush.record.record import Record, RecordPlan

PLACEMENT = Assumption("placement", "shard, slice, order and seeds depend on no other sample", "proved")

UNTESTED = {
    "initial-state": "the initial weights saw no forgotten sample",
    "preprocessing": "nothing fitted on the forgotten rows reached the model (scalers, vocabularies)",
    "model-selection": "architecture, settings and validation data do not depend on the forgotten rows",
    "hidden-state": "no state outside the module, optimizers and callbacks carries over between stages",
    "adaptive-requests": "who asks to be forgotten did not choose so after seeing the model's outputs",
}
"""What no code can test, of every record."""


def assumptions_of(record: Record) -> tuple[Assumption, ...]:
    """Return all assumptions of a record, each with the user's words where it was declared."""
    words = declarations(record.ledger)
    named = [_declared(assumption, words.get(assumption.name)) for assumption in _of_plan(record.plan)]
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
