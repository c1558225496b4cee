"""Chains of guarantees: never more than the weakest link, and certified pairs add up."""

import json
import math
from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from pybrush.chain import UNPROVED, Link, is_kept, is_met, weakest
from pybrush.guarantee import Assumption, Budget, Certified, Empirical, Exact, as_plain, from_plain

EXACT = Exact("training without", ("stages were trained under different numpy: 1, 2",), (Assumption("placement", "x"),))
RANK = {Empirical: 0, Certified: 1, Exact: 2}


def certified(epsilon=0.5, delta=1e-6, **more):
    return Certified(epsilon, delta, "training without", "one request", **more)


def link(guarantee, request=1, shard=0):
    return Link(request, shard, "shrink", guarantee)


pairs = st.tuples(st.floats(0, 10), st.floats(0, 0.3))
links = st.lists(
    st.builds(
        Link,
        st.integers(1, 4),
        st.integers(0, 3),
        st.just("a"),
        st.one_of(pairs.map(lambda pair: certified(*pair)), st.just(Empirical(("something",)))),
    ),
    max_size=6,
)


def delta_along(found, shard):
    """Return delta of a shard's chain by going through it step by step."""
    there, ahead = 0.0, 0.0
    for each in (link.guarantee for link in found if link.shard == shard):
        worst = max(there + math.exp(ahead) * each.delta, each.delta + math.exp(each.epsilon) * there)
        there, ahead = worst, ahead + each.epsilon
    return there


@given(links)
def test_a_chain_is_as_strong_as_its_weakest_link_at_most(found):
    whole = weakest(EXACT, found)
    assert RANK[type(whole)] <= min([2, *(RANK[type(each.guarantee)] for each in found)])
    if isinstance(whole, Certified):
        newest = max(each.request for each in found)
        total = [fsum(each.guarantee.epsilon for each in found), fsum(delta_along(found, shard) for shard in range(4))]
        last = [fsum(e.guarantee.epsilon for e in found if e.request == newest)]
        assert whole.epsilon == pytest.approx(last[0])
        assert (whole.composed or (whole.epsilon, whole.delta)) == pytest.approx(tuple(total))
        assert is_met(whole, Budget(total[0] + 1e-9, total[1] + 1e-9))


def test_deltas_that_add_up_to_one_prove_nothing():
    whole = weakest(EXACT, [link(certified(0.1, 0.6), shard=0), link(certified(0.1, 0.5), shard=1)])
    assert isinstance(whole, Empirical) and "1.1" in whole.findings[0] and UNPROVED in whole.limitations
    assert sum("by itself certified" in finding for finding in whole.findings) == 2


def test_a_certified_whole_names_what_the_exact_shards_depend_on():
    own = Assumption("convex", "the loss is convex", "declared", "unknown")
    whole = weakest(EXACT, [link(certified(assumptions=(own,)), 1), link(certified(assumptions=(own,)), 2, 1)])
    assert [assumption.name for assumption in whole.assumptions] == ["placement", "environment", "convex"]
    assert whole.scope.startswith("request 2 on shards 1:") and whole.scope.endswith("over requests 1, 2")


def test_a_budget_is_compared_with_all_releases_together():
    whole = weakest(EXACT, [link(certified(0.5, 1e-6), 1), link(certified(0.25, 1e-6), 2, shard=1)])
    assert is_met(whole, Budget(0.75, 2e-6)) and not is_met(whole, Budget(0.7, 1e-5))
    assert not is_met(whole, Budget(1.0, 1.5e-6)) and not is_met(whole, "exact") and is_met(whole, None)
    assert is_met(EXACT, "exact") and is_met(EXACT, Budget(0, 0)) and not is_met(Empirical(()), Budget(9, 0.9))


def test_a_chain_of_one_shard_claims_no_smaller_delta_than_two_steps_can_have():
    """A to B and B to C each with their pair: the largest P[A in S] - exp(e1 + e2) P[C in S], by a linear program."""
    (e1, d1), (e2, d2) = (0.5, 0.1), (0.3, 0.2)
    claimed = weakest(EXACT, [link(certified(e1, d1), 1), link(certified(e2, d2), 2)]).composed[1]
    # a, b, c are the probabilities of S; those of the rest follow the same bounds.
    one, two = math.exp(e1), math.exp(e2)
    bounds = [([1, -one, 0], d1), ([-one, 1, 0], d1), ([0, 1, -two], d2), ([0, -two, 1], d2)]
    complements = [([-p for p in row], limit + -sum(row)) for row, limit in bounds]
    rows, limits = zip(*bounds, *complements, strict=True)
    factor = math.exp(e1 + e2)
    for objective in ([-1, 0, factor], [factor, 0, -1]):
        worst = -linprog(objective, A_ub=rows, b_ub=limits, bounds=[(0, 1)] * 3).fun
        assert worst <= claimed + 1e-9
    assert claimed == pytest.approx(max(d1 + math.exp(e1) * d2, d2 + math.exp(e2) * d1))
    assert claimed > d1 + d2


def test_a_promise_is_kept_by_as_much_or_more():
    assert is_kept(certified(0.5), certified(0.5)) and is_kept(certified(0.5), certified(0.4))
    assert not is_kept(certified(0.5), certified(0.6)) and not is_kept(certified(0.5), Empirical(()))
    assert not is_kept(Empirical(()), EXACT) and not is_kept(certified(), EXACT)
    assert not is_kept(certified(0.5, 1e-6), certified(0.5, 1e-5)) and is_kept(Empirical(()), certified())


@pytest.mark.parametrize(
    "guarantee",
    [EXACT, certified(composed=(1.0, 2e-6), assumptions=EXACT.assumptions), certified(), Empirical(("a",), ("b",))],
    ids=["exact", "composed", "certified", "empirical"],
)
def test_guarantees_and_links_come_back_from_json(guarantee):
    assert from_plain(json.loads(json.dumps(as_plain(guarantee)))) == guarantee
    if not isinstance(guarantee, Exact):
        assert Link.of(json.loads(json.dumps(link(guarantee).plain()))) == link(guarantee)
