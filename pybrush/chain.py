"""What a chain of releases guarantees: never more than its weakest link.

Exact > Certified > Empirical. The pairs of shards add up, since each is made from rows of its own (basic composition;
Dwork and Roth 2014, The Algorithmic Foundations of Differential Privacy, theorem 3.16). Along the chain of one shard,
whose states are made one from another, delta grows by more; see `_joined`. Guide: docs/guarantees.md, "After an
approximate request".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from math import exp
from typing import Any, Literal, TypeVar

from pybrush.guarantee import Assumption, Budget, Certified, Empirical, Exact, Guarantee, as_plain, from_plain

Asked = Literal["exact"] | Budget | None
"""The guarantee that a caller insists on; None: whatever comes of it."""

UNPROVED = "nothing bounds what these shards still owe to the forgotten rows"

T = TypeVar("T")
Pair = tuple[float, float]

_LARGEST = 700.0
"""The largest epsilon of which exp is a number; long before, a pair proves nothing."""


@dataclass(frozen=True)
class Link:
    """One release that changed a shard without training it again.

    Attributes:
        request: number of the request that made the release.
        shard: counted from 0.
        method: its name with its settings.
        guarantee: what it proves of this shard for the rows of its request, given what it started from.
    """

    request: int
    shard: int
    method: str
    guarantee: Certified | Empirical

    def plain(self) -> dict[str, Any]:
        """Return the link as plain values for JSON."""
        return {**asdict(self), "guarantee": as_plain(self.guarantee)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Link:
        """Return the link that `plain` described."""
        return cls(**{**values, "guarantee": from_plain(values["guarantee"])})


def weakest(exact: Exact, links: Sequence[Link]) -> Guarantee:
    """Return what a record guarantees as a whole.

    Args:
        exact: what holds of the shards that were trained without the forgotten rows.
        links: of all other shards, each since it was last trained, in any order.
    """
    certified = [(link, link.guarantee) for link in links if isinstance(link.guarantee, Certified)]
    if not links:
        return exact
    if len(certified) < len(links):
        return _empirical(links, ())
    last = max(link.request for link in links)
    newest = [guarantee for link, guarantee in certified if link.request == last]
    total = _added(_along(links, shard) for shard in sorted({link.shard for link in links}))
    if total[1] >= 1:
        return _empirical(links, (f"delta of all certified releases together is {total[1]:g}, which proves nothing",))
    return Certified(
        *_added((guarantee.epsilon, guarantee.delta) for guarantee in newest),
        reference="; ".join(_once(guarantee.reference for guarantee in newest)),
        scope=_scope(links, newest, last),
        composed=total if len({link.request for link in links}) > 1 else None,
        assumptions=_once([*exact.assumptions, *_differing(exact), *_assumed(certified)]),
    )


def is_met(guarantee: Guarantee, asked: Asked) -> bool:
    """Whether a guarantee is as strong as what was asked for; of certified releases all together count."""
    if asked is None or isinstance(guarantee, Exact):
        return True
    if asked == "exact" or isinstance(guarantee, Empirical):
        return False
    epsilon, delta = guarantee.composed or (guarantee.epsilon, guarantee.delta)
    return epsilon <= asked.epsilon and delta <= asked.delta


def is_kept(promise: Certified | Empirical, proved: Certified | Empirical) -> bool:
    """Whether a method proved what it had promised, and no more than such a method can."""
    if not isinstance(proved, (Certified, Empirical)):
        return False
    return isinstance(promise, Empirical) or is_met(proved, Budget(promise.epsilon, promise.delta))


def _empirical(links: Sequence[Link], more: tuple[str, ...]) -> Empirical:
    findings = [
        f"request {link.request}, shard {link.shard}, {link.method}: {text}" for link in links for text in _found(link)
    ]
    limitations = [text for link in links for text in getattr(link.guarantee, "limitations", ())]
    return Empirical((*more, *findings), _once([UNPROVED, *limitations]))


def _found(link: Link) -> tuple[str, ...]:
    proved = link.guarantee
    if isinstance(proved, Empirical):
        return proved.findings or ("nothing was measured",)
    return (f"by itself certified to epsilon {proved.epsilon:g} nats and delta {proved.delta:g}",)


def _scope(links: Sequence[Link], newest: Iterable[Certified], last: int) -> str:
    shards = sorted({link.shard for link in links if link.request == last})
    text = f"request {last} on shards {', '.join(map(str, shards))}: {'; '.join(_once(each.scope for each in newest))}"
    requests = sorted({link.request for link in links})
    return text if len(requests) == 1 else f"{text}; composed over requests {', '.join(map(str, requests))}"


def _added(pairs: Iterable[Pair]) -> Pair:
    """Return the pair of independent parts together."""
    each = list(pairs)
    return sum(epsilon for epsilon, _ in each), sum(delta for _, delta in each)


def _along(links: Iterable[Link], shard: int) -> Pair:
    """Return the pair of one shard's chain."""
    found = (link.guarantee for link in links if link.shard == shard)
    return reduce(_joined, ((each.epsilon, each.delta) for each in found if isinstance(each, Certified)))


def _joined(first: Pair, second: Pair) -> Pair:
    """Return the pair between A and C, given those between A and B and between B and C.

    From P[A] <= exp(e1) P[B] + d1 and P[B] <= exp(e2) P[C] + d2 follows P[A] <= exp(e1 + e2) P[C] + d1 + exp(e1) d2,
    and the other way round with 1 and 2 exchanged.
    """
    (e1, d1), (e2, d2) = first, second
    return e1 + e2, max(d1 + exp(min(e1, _LARGEST)) * d2, d2 + exp(min(e2, _LARGEST)) * d1)


def _assumed(certified: Iterable[tuple[Link, Certified]]) -> list[Assumption]:
    return [assumption for _, guarantee in certified for assumption in guarantee.assumptions]


def _differing(exact: Exact) -> list[Assumption]:
    """Return the differences of the environment, for which Certified has no place of their own."""
    return [Assumption("environment", text, "measured", "unknown") for text in exact.differences]


def _once(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))
