"""What serves each shard once a request is done, and what the record then guarantees as a whole.

A shard is served by its last stage, or by the state that an approximate method left. A rebuild of the shard
cuts the chain of such states.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pybrush.assumptions import assumptions_of
from pybrush.chain import Asked, Link, is_met, weakest
from pybrush.change import Change
from pybrush.errors import GuaranteeError, RecordError
from pybrush.guarantee import Exact, Guarantee
from pybrush.method import Terms, method_text
from pybrush.plan.graph import Stage, constituents
from pybrush.record.fingerprint import environment_differences
from pybrush.record.record import Record
from pybrush.record.releases import REBUILD, REBUILD_ALL, is_rebuild, links_of, short_name
from pybrush.record.transaction import OpenRequest

_log = logging.getLogger(__name__)

REFERENCE = "training under the recorded plan, seed and initial state without the forgotten rows"
AMENDED = ", with the amended rows as they are now"
ADMITTED = ", with the admitted rows from the start"


@dataclass(frozen=True)
class Standing:
    """Which shards states of releases serve once a request is done.

    Attributes:
        method: how the request is served, with settings.
        kept: shard -> key of the release's state that goes on serving it.
        began: shard -> key of what an approximate method begins with, of the shards of which it makes a new state.
    """

    method: str = REBUILD
    kept: Mapping[int, str] = field(default_factory=dict)
    began: Mapping[int, str] = field(default_factory=dict)

    @property
    def edited(self) -> tuple[int, ...]:
        """The shards of which the method makes a new state."""
        return tuple(sorted(self.began))

    @property
    def served(self) -> frozenset[int]:
        """The shards that a release's state serves; their stages are not trained."""
        return frozenset(self.kept) | frozenset(self.began)


def standing_after(record: Record, stages: Iterable[Stage], terms: Terms) -> Standing:
    """Return what serves each shard after a request.

    Args:
        record: the record as it is.
        stages: what its samples call for after the request.
        terms: how it is served.

    Raises:
        GuaranteeError: where an approximate method cannot give what was asked for.
    """
    before, after = constituents(record.graph()), constituents(stages)
    serving, states = record.constituents(), record.stand_ins()
    same = {shard for shard in after if shard in before and after[shard].key == before[shard].key}
    kept = {shard: key for shard, key in states.items() if shard in same}
    if terms.method is None:
        return _rebuilding(record, stages, kept, terms)
    hit = [shard for shard in after if shard not in same and shard in serving]
    began = {shard: serving[shard] for shard in hit if record.store.has(serving[shard])}
    standing = Standing(method_text(terms.method), kept, began)
    promised = guarantee_of(record, stages, kept, promised_links(record, standing, terms, 0))
    if not is_met(promised, terms.guarantee):
        raise GuaranteeError(
            f"after this request the record as a whole would guarantee {promised}, and {terms.guarantee} was asked "
            "for. Leave out method=, so that stages are rebuilt, or ask for less."
        )
    return standing


def is_served(record: Record, asked: Asked) -> bool:
    """Whether a record as it is guarantees what is asked for."""
    if asked is None or not record.stand_ins():
        return True
    return asked != "exact" and is_met(current_guarantee(record), asked)


def terms_to_finish(record: Record, waiting: OpenRequest, terms: Terms) -> Terms:
    """Return how to finish a request that another call began, given the terms of this one.

    Raises:
        RecordError: where it waits for a method that this call does not have.
    """
    if waiting.method == REBUILD_ALL:
        return Terms(guarantee="exact")
    if is_rebuild(waiting.method) or waiting.state != "pending":
        return terms if terms.method is None else Terms()
    if terms.method is None:
        _log.warning(
            "request %d of %s was to be served by %s; it is served by a rebuild, which is stronger",
            *(waiting.number, record.folder, short_name(waiting.method)),
        )
        return terms
    if method_text(terms.method) != waiting.method:
        raise RecordError(
            f"request {waiting.number} of {record.folder} is not finished and was to be served by {waiting.method}; "
            f"this call has {method_text(terms.method)}. Call unlearn with that method and these settings, or with "
            f"guarantee='exact', or withdraw the request with cancel({waiting.number})."
        )
    return Terms(terms.method)


def _rebuilding(record: Record, stages: Iterable[Stage], kept: Mapping[int, str], terms: Terms) -> Standing:
    """Keep the states of shards that a rebuild does not hit, unless they are weaker than what was asked for."""
    if not kept or terms.guarantee is None:
        return Standing(REBUILD, kept)
    if terms.guarantee != "exact" and is_met(guarantee_of(record, stages, kept), terms.guarantee):
        return Standing(REBUILD, kept)
    return Standing(REBUILD_ALL)


def promised_links(record: Record, standing: Standing, terms: Terms, request: int) -> list[Link]:
    """Return the chains of the shards that a method is about to change, its promises at their ends."""
    if terms.method is None:
        return []
    states = record.stand_ins()
    before = links_of(record, {shard: key for shard, key in standing.began.items() if states.get(shard) == key})
    return before + [Link(request, shard, standing.method, terms.method.promise) for shard in standing.edited]


def exact_guarantee(record: Record, stages: Iterable[Stage], change: Change | None = None) -> Exact:
    """Return the guarantee of stages, with every difference and assumption named.

    Args:
        record: the record.
        stages: its stages.
        change: what a request changed; None where nothing was.
    """
    manifests = [record.store.manifest(stage.key) for stage in stages if record.store.has(stage.key)]
    differences = environment_differences(manifest.environment for manifest in manifests)
    amended, admitted = (False, False) if change is None else (change.amended > 0, change.admitted > 0)
    reference = REFERENCE + AMENDED * amended + ADMITTED * admitted
    found = [one for manifest in manifests for one in manifest.notes.get("assumptions", ())]
    return Exact(reference, differences, assumptions_of(record, found))


def guarantee_of(
    record: Record, stages: Iterable[Stage], held: Mapping[int, str], promised: Iterable[Link] = (),
    change: Change | None = None,
) -> Guarantee:  # fmt: skip
    """Return what a record guarantees: the weakest along the chains of its shards.

    Args:
        record: the record.
        stages: what its samples call for.
        held: shard -> key of the release's state that serves it.
        promised: links of states that are still to be made.
        change: what a request changed; None where nothing was.
    """
    return weakest(exact_guarantee(record, stages, change), [*links_of(record, held), *promised])


def current_guarantee(record: Record, change: Change | None = None) -> Guarantee:
    """Return what a record guarantees as it is, after a request that changed it."""
    return guarantee_of(record, record.graph(), record.stand_ins(), change=change)


def replaced_stages(record: Record, stages: Iterable[Stage], served: Iterable[int]) -> list[Stage]:
    """Return the stages that have no state because a release's state serves their shard."""
    shards = frozenset(served)
    return [stage for stage in stages if stage.shard in shards and not record.store.has(stage.key)]


def say_replaced(record: Record, stages: Iterable[Stage]) -> None:
    """Say once in a fit which stages are not trained, because an approximate request replaced them."""
    found = replaced_stages(record, stages, record.stand_ins())
    if found:
        visits = sum(stage.rows for stage in found) * record.plan.epochs_per_slice
        _log.warning(
            "%s holds an approximate release, which was loaded; %d stages have no exact state (shard, slice): %s. A "
            "fit does not train them (%d row visits): unlearn with guarantee='exact' does.",
            *(record.folder, len(found), ", ".join(str((s.shard, s.slice)) for s in found), visits),
        )


def check_auto(record: Record, method: object, guarantee: Asked) -> None:
    """Refuse method="auto" where it would choose an approximate method.

    With one shard and one slice an exact request is a full retrain, which happens only when asked for.

    Raises:
        GuaranteeError: naming what to ask for.
    """
    whole = record.plan.shards * record.plan.slices == 1
    if whole and method == "auto" and guarantee is None:
        raise GuaranteeError(
            f"{record.folder} has one shard and one slice: forgetting exactly is a full retrain, which is done only "
            "when asked for. Pass guarantee='exact', or an approximate method."
        )
