"""Cost formulas against enumeration, ShardPlan and the build graph; aggregation against naive loops.

False alarms: seeds are fixed, so a test either passes always or never; for a new seed each |z| < 4.5 fails by
chance with probability 7e-6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, permutations, product
from math import ceil, comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybrush.errors import ConfigurationError
from pybrush.hashing import chained
from pybrush.plan import Cost, ShardPlan, aggregate, epochs_per_slice, expected_cost
from pybrush.plan.graph import root_key, stage_graph

FEW = settings(max_examples=60)
Z_LIMIT = 4.5

Cells = dict[tuple[int, int], set[int]]


# Slow and obvious twins


def strike(cells: Cells, struck: set[int]) -> Cells:
    return {cell: rows - struck for cell, rows in cells.items()}


def rebuilt_rows(before: Cells, struck: set[int]) -> int:
    """Rows of the stages that one request rebuilds: hit so far, own slice not empty, two rows at least."""
    after = strike(before, struck)
    total = 0
    for shard in {s for s, _ in before}:
        hit, seen = False, 0
        for _, cell in sorted(place for place in before if place[0] == shard):
            hit = hit or bool(before[shard, cell] & struck)
            seen += len(after[shard, cell])
            if hit and after[shard, cell] and seen >= 2:
                total += seen
    return total


def shards_hit(before: Cells, struck: set[int]) -> int:
    return len({shard for (shard, _), rows in before.items() if rows & struck})


def serve(cells: Cells, requests: Iterable[set[int]]) -> tuple[int, int, int]:
    """Return rebuilt rows, rows of full retrains, and shards hit, summed over requests."""
    rebuilt = retrained = hit = 0
    for struck in requests:
        rebuilt += rebuilt_rows(cells, struck)
        hit += shards_hit(cells, struck)
        cells = strike(cells, struck)
        retrained += sum(map(len, cells.values()))
    return rebuilt, retrained, hit


def one_by_one(ids: Iterable[int]) -> list[set[int]]:
    return [{i} for i in ids]


def requests_of(order: str, ids: Sequence[int]) -> list[set[int]]:
    return [set(ids)] if order == "batch" else one_by_one(ids)


def all_placements(samples: int, shards: int, slices: int) -> Iterator[Cells]:
    places = list(product(range(shards), range(slices)))
    for drawn in product(places, repeat=samples):
        cells: Cells = {place: set() for place in places}
        for sample, place in enumerate(drawn):
            cells[place].add(sample)
        yield cells


def equal_cells(samples: int, shards: int, slices: int) -> Cells:
    cells: Cells = {}
    for s, shard in enumerate(np.array_split(np.arange(samples), shards)):
        for r, rows in enumerate(np.array_split(shard, slices)):
            cells[s, r] = set(rows.tolist())
    return cells


def keyed_cells(plan: ShardPlan, ids: Iterable[int]) -> Cells:
    return {(s, r): set(rows) for s, r, rows in plan.stages(ids)}


def as_cost(served: Sequence[float], epochs: int, slices: int) -> Cost:
    rebuilt, retrained, hit = served
    return Cost(ceil(2 * epochs / (slices + 1)) * rebuilt, epochs * retrained, hit)


def assert_close(measured: Cost, expected: Cost) -> None:
    assert dataclasses.astuple(expected) == pytest.approx(dataclasses.astuple(measured), rel=1e-11, abs=1e-11)


def z_score(draws: Sequence[float], expected: float) -> float:
    return (np.mean(draws) - expected) / (np.std(draws, ddof=1) / sqrt(len(draws)))


# Epochs


@pytest.mark.parametrize("slices", range(1, 12))
@pytest.mark.parametrize("epochs", range(1, 12))
def test_stages_of_a_shard_visit_at_least_the_rows_of_the_whole_fit_and_with_one_epoch_less_they_would_not(
    epochs: int, slices: int
) -> None:
    rows_per_epoch_of_every_stage = sum(range(1, slices + 1))  # in slices
    e = epochs_per_slice(epochs, slices)
    assert e * rows_per_epoch_of_every_stage >= epochs * slices > (e - 1) * rows_per_epoch_of_every_stage


def test_without_slices_a_stage_has_all_epochs() -> None:
    assert epochs_per_slice(7, 1) == 7
    assert (epochs_per_slice(20, 3), epochs_per_slice(1, 9), epochs_per_slice(10, 2)) == (10, 1, 7)


@pytest.mark.parametrize("wrong", [0, -1, 1.0, True, "3", None])
def test_epochs_and_slices_are_whole_numbers_of_at_least_one(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="epochs"):
        epochs_per_slice(wrong, 2)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="slices"):
        epochs_per_slice(2, wrong)  # type: ignore[arg-type]


# Exact: every placement, every forget set


@pytest.mark.parametrize("order", ["batch", "sequential"])
@pytest.mark.parametrize(("shards", "slices"), [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize(("samples", "forgotten"), [(2, 1), (3, 2), (5, 1), (5, 2), (5, 4)])
def test_keyed_cost_is_the_mean_over_all_placements(
    samples: int, forgotten: int, shards: int, slices: int, order: str
) -> None:
    requests = requests_of(order, range(forgotten))
    served = np.array([serve(cells, requests) for cells in all_placements(samples, shards, slices)])
    expected = expected_cost(samples, shards, slices, 3, forgotten, order, "keyed")
    assert_close(as_cost(served.mean(axis=0), 3, slices), expected)


@pytest.mark.parametrize(("shards", "slices"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2), (4, 3), (9, 1)])
@pytest.mark.parametrize("forgotten", range(1, 7))
def test_equal_batch_cost_is_the_mean_over_all_forget_sets(shards: int, slices: int, forgotten: int) -> None:
    cells = equal_cells(7, shards, slices)
    served = np.array([serve(cells, [set(ids)]) for ids in combinations(range(7), forgotten)])
    expected = expected_cost(7, shards, slices, 5, forgotten, "batch", "equal")
    assert_close(as_cost(served.mean(axis=0), 5, slices), expected)


@pytest.mark.parametrize(("shards", "slices"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2), (4, 3), (9, 1)])
@pytest.mark.parametrize(("samples", "forgotten"), [(2, 1), (3, 2), (5, 4), (6, 3), (7, 3)])
def test_equal_sequential_cost_is_the_mean_over_all_sequences(
    samples: int, forgotten: int, shards: int, slices: int
) -> None:
    cells = equal_cells(samples, shards, slices)
    sequences = permutations(range(samples), forgotten)
    served = np.array([serve(cells, one_by_one(ids)) for ids in sequences])
    expected = expected_cost(samples, shards, slices, 5, forgotten, "sequential", "equal")
    assert_close(as_cost(served.mean(axis=0), 5, slices), expected)


# Simulation: the plan that is used, at sizes where all terms count


@pytest.mark.parametrize("order", ["batch", "sequential"])
@pytest.mark.parametrize(("samples", "shards", "slices", "forgotten"), [(60, 4, 3, 6), (30, 3, 4, 12)])
def test_keyed_cost_is_the_mean_over_keys_of_a_shard_plan(
    samples: int, shards: int, slices: int, forgotten: int, order: str
) -> None:
    random = np.random.default_rng(17)
    served = []
    for _ in range(1500):
        cells = keyed_cells(ShardPlan(shards, slices, random.bytes(32)), range(samples))
        ids = random.choice(samples, forgotten, replace=False).tolist()
        served.append(as_cost(serve(cells, requests_of(order, ids)), 4, slices))
    expected = expected_cost(samples, shards, slices, 4, forgotten, order, "keyed")
    assert abs(z_score([cost.visits for cost in served], expected.visits)) < Z_LIMIT
    assert {cost.retrain_visits for cost in served} == {expected.retrain_visits}
    if order == "sequential":
        assert {cost.shards_hit for cost in served} == {expected.shards_hit}
    else:
        assert abs(z_score([cost.shards_hit for cost in served], expected.shards_hit)) < Z_LIMIT


@pytest.mark.parametrize("order", ["batch", "sequential"])
def test_equal_cost_is_the_mean_over_random_forget_sets_where_sizes_do_not_divide(order: str) -> None:
    samples, shards, slices, forgotten = 50, 4, 3, 9
    random = np.random.default_rng(5)
    cells = equal_cells(samples, shards, slices)
    visits, hit = [], []
    for _ in range(3000):
        ids = random.choice(samples, forgotten, replace=False).tolist()
        cost = as_cost(serve(cells, requests_of(order, ids)), 4, slices)
        visits.append(cost.visits)
        hit.append(cost.shards_hit)
    expected = expected_cost(samples, shards, slices, 4, forgotten, order, "equal")
    assert abs(z_score(visits, expected.visits)) < Z_LIMIT
    assert np.mean(hit) == pytest.approx(expected.shards_hit, abs=0.05)  # at least 5 standard errors


@FEW
@given(data=st.data(), shards=st.integers(1, 3), slices=st.integers(1, 4))
def test_the_naive_count_is_what_the_build_graph_rebuilds(data: st.DataObject, shards: int, slices: int) -> None:
    """So that the twin above, and with it the formulas, follow the record's own rules."""
    place = st.tuples(st.integers(0, shards - 1), st.integers(0, slices - 1))
    before: Cells = {(s, r): set() for s in range(shards) for r in range(slices)}
    for sample, where in enumerate(data.draw(st.lists(place, min_size=1, max_size=8))):
        before[where].add(sample)
    struck = data.draw(st.sets(st.integers(0, 7)))
    old = {stage.key for stage in graph_of(before, shards, slices)}
    new = graph_of(strike(before, struck), shards, slices)
    assert rebuilt_rows(before, struck) == sum(stage.rows for stage in new if stage.key not in old)


def graph_of(cells: Cells, shards: int, slices: int):
    rows = np.array([[len(cells[s, r]) for r in range(slices)] for s in range(shards)])
    digests = {place: chained("pybrush-slice", bytes(sorted(ids))) for place, ids in cells.items() if ids}
    return stage_graph(rows, digests, [root_key(b"", b"", s) for s in range(shards)])


# Closed forms and limits


@pytest.mark.parametrize(("n", "s", "k"), [(100, 5, 1), (100, 5, 7), (600, 3, 40), (1000, 1, 10)])
def test_equal_shards_without_slices_have_the_known_closed_forms(n: int, s: int, k: int) -> None:
    """specs/certified.md 2.1, re-derived there for deletion without replacement."""
    sequential = expected_cost(n, s, 1, 1, k, "sequential", "equal")
    assert sequential.visits == pytest.approx((n / s - 1) / (n - 1) * (k * n - k * (k + 1) / 2), rel=1e-10)
    batch = expected_cost(n, s, 1, 1, k, "batch", "equal")
    missed = comb(n - n // s, k) / comb(n, k)
    assert batch.visits == pytest.approx(n * (1 - missed) - k, rel=1e-10)
    assert batch.shards_hit == pytest.approx(s * (1 - missed), rel=1e-12)


def test_a_trillion_samples_keep_their_digits_and_need_no_memory() -> None:
    n, s = 10**12, 20
    one = expected_cost(n, s, 1, 1, 1, "batch", "equal")
    assert one.visits == pytest.approx(n / s - 1, rel=1e-9)
    assert expected_cost(n, s, 1, 1, 1, "sequential", "equal").visits == pytest.approx(n / s - 1, rel=1e-9)
    assert expected_cost(n, s, 1, 1, 1, "batch", "keyed").visits == pytest.approx((n - 1) / s, rel=1e-9)


@pytest.mark.parametrize("order", ["batch", "sequential"])
def test_keyed_and_equal_costs_approach_each_other_when_cells_are_large(order: str) -> None:
    keyed = expected_cost(10**6, 5, 4, 20, 8, order, "keyed")
    equal = expected_cost(10**6, 5, 4, 20, 8, order, "equal")
    assert keyed.visits == pytest.approx(equal.visits, rel=1e-4)
    assert keyed.shards_hit == pytest.approx(equal.shards_hit, rel=1e-4)


plans = {
    "samples": st.integers(2, 300),
    "shards": st.integers(1, 12),
    "slices": st.integers(1, 6),
    "epochs": st.integers(1, 30),
    "share": st.floats(0, 1, exclude_max=True),
    "placement": st.sampled_from(["keyed", "equal"]),
}


@FEW
@given(**plans)
def test_serving_together_never_costs_more_than_one_after_another(
    samples: int, shards: int, slices: int, epochs: int, share: float, placement: str
) -> None:
    k = max(1, int(share * samples))
    batch = expected_cost(samples, shards, slices, epochs, k, "batch", placement)
    sequential = expected_cost(samples, shards, slices, epochs, k, "sequential", placement)
    for together, apart in zip(dataclasses.astuple(batch), dataclasses.astuple(sequential), strict=True):
        assert -1e-6 <= together <= apart * (1 + 1e-9) + 1e-6
        if k == 1:
            assert together == pytest.approx(apart, rel=1e-7, abs=1e-6)


@FEW
@given(**plans)
def test_a_request_never_costs_more_than_all_stages_on_the_rows_left_and_hits_at_most_every_shard(
    samples: int, shards: int, slices: int, epochs: int, share: float, placement: str
) -> None:
    k = max(1, int(share * samples))
    cost = expected_cost(samples, shards, slices, epochs, k, "batch", placement)
    widest = ceil(samples / shards) if placement == "equal" else samples
    assert cost.visits <= epochs_per_slice(epochs, slices) * slices * min(samples - k, shards * widest) + 1e-6
    assert cost.shards_hit <= min(shards, k) + 1e-9
    assert cost.retrain_visits == epochs * (samples - k)


def test_one_shard_and_one_slice_cost_a_full_retrain() -> None:
    for placement in ("keyed", "equal"):
        cost = expected_cost(100, 1, 1, 9, 30, "batch", placement)
        assert cost.visits == pytest.approx(cost.retrain_visits) == pytest.approx(630)
        assert cost.shards_hit == 1


def test_results_are_plain_floats_also_from_numpy_integers() -> None:
    numbers = np.array([1000, 3, 2, 200, 5], dtype=np.int16)
    for order, placement in product(["batch", "sequential"], ["keyed", "equal"]):
        cost = expected_cost(*numbers, order, placement)
        assert [type(value) for value in dataclasses.astuple(cost)] == [float] * 3
        assert cost == expected_cost(*numbers.tolist(), order, placement)


def test_a_cost_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        expected_cost(10, 2, 2, 2, 2).visits = 0.0  # type: ignore[misc]


@pytest.mark.parametrize("name", ["samples", "shards", "slices", "epochs", "requests"])
@pytest.mark.parametrize("wrong", [0, -3, 2.0, True, "2", None])
def test_every_number_is_whole_and_at_least_one(name: str, wrong: object) -> None:
    numbers: dict[str, object] = {"samples": 10, "shards": 2, "slices": 2, "epochs": 2, "requests": 2}
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number"):
        expected_cost(**(numbers | {name: wrong}))  # type: ignore[arg-type]


def test_something_must_remain_and_words_must_be_known() -> None:
    assert expected_cost(10, 2, 2, 2, 9).retrain_visits == 2
    for requests in (10, 11):
        with pytest.raises(ConfigurationError, match=f"got {requests} of 10"):
            expected_cost(10, 2, 2, 2, requests)
    with pytest.raises(ConfigurationError, match="got 'both' and 'keyed'"):
        expected_cost(10, 2, 2, 2, 2, "both")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="got 'batch' and 'even'"):
        expected_cost(10, 2, 2, 2, 2, placement="even")  # type: ignore[arg-type]


# Aggregation


def distributions(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(shape[2], 0.7), size=shape[:2])


SHAPES = [(1, 1, 1), (1, 4, 3), (2, 5, 2), (5, 6, 4), (4, 0, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_mean_averages_over_constituents(shape: tuple[int, int, int]) -> None:
    given_, result = distributions(1, shape), aggregate(distributions(1, shape))
    assert result.shape == shape[1:] and result.dtype == np.float64
    for sample, label in product(range(shape[1]), range(shape[2])):
        total = sum(given_[constituent, sample, label] for constituent in range(shape[0]))
        assert result[sample, label] == pytest.approx(total / shape[0], rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_vote_counts_the_likeliest_class_of_each_constituent(shape: tuple[int, int, int]) -> None:
    given_ = np.round(distributions(2, shape) * 4)  # coarse, so that classes often tie
    given_[..., 0] += 4 - given_.sum(axis=2)
    given_ = np.abs(given_) / np.abs(given_).sum(axis=2, keepdims=True)
    result = aggregate(given_, how="vote")
    assert result.shape == shape[1:] and result.dtype == np.float64
    for sample in range(shape[1]):
        votes = [0] * shape[2]
        for constituent in range(shape[0]):
            row = given_[constituent, sample].tolist()
            votes[row.index(max(row))] += 1
        for label in range(shape[2]):
            assert result[sample, label] == pytest.approx((votes[label] + 1 / shape[2]) / (shape[0] + 1))


def test_a_tie_votes_for_the_lowest_class() -> None:
    ties = [[[0.2, 0.4, 0.4]], [[0.5, 0.0, 0.5]], [[0.0, 0.5, 0.5]]]
    assert aggregate(ties, "vote")[0].tolist() == pytest.approx([4 / 12, 7 / 12, 1 / 12])


@FEW
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    how=st.sampled_from(["mean", "vote"]),
)
def test_both_ways_return_distributions_and_leave_their_input_alone(
    seed: int, shape: tuple[int, int, int], how: str
) -> None:
    given_ = distributions(seed, shape)
    before = given_.copy()
    result = aggregate(given_, how)  # type: ignore[arg-type]
    assert result.sum(axis=1) == pytest.approx(np.ones(shape[1]))
    assert (result >= 0).all() and (given_ == before).all() and not np.shares_memory(result, given_)
    if how == "vote":
        assert (result > 0).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, bool])
def test_other_real_dtypes_are_taken_as_they_are(dtype: type) -> None:
    one_hot = np.eye(3)[None].astype(dtype)
    assert (aggregate(one_hot) == np.eye(3)).all()


def test_rows_rounded_to_bfloat16_pass() -> None:
    rows = distributions(3, (2, 500, 50)).astype(np.float32)
    bits = rows.view(np.uint32) + np.uint32(0x8000)
    rounded = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    assert aggregate(rounded).shape == (500, 50)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.ones((2, 3)), r"got shape \(2, 3\)"),
        (np.ones((1, 2, 3, 4)), "got shape"),
        (np.ones((0, 2, 3)), "got shape"),
        (np.ones((2, 2, 0)), "got shape"),
        (np.full((1, 1, 2), np.nan), r"got nan at \(0, 0, 0\)"),
        ([[[0.5, np.inf]]], r"got inf at \(0, 0, 1\)"),
        ([[[1.5, -0.5]]], r"got -0.5 at \(0, 0, 1\)"),
        ([[[0.5, 0.5]], [[0.5, 0.505]]], r"got 1.005 for \(constituent, sample\) \(1, 0\)"),
        ([[[0.5, 0.495]]], "got 0.995"),
        ([[[2.0, 3.0]]], "softmax"),
        (np.full((1, 1, 2), 0.5 + 0j), "complex128"),
        (np.full((1, 1, 2), "0.5"), "dtype"),
        ([[[None, 1.0]]], "dtype object"),
    ],
)
@pytest.mark.parametrize("how", ["mean", "vote"])
def test_what_is_not_a_stack_of_distributions_is_refused(wrong: object, message: str, how: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        aggregate(wrong, how)  # type: ignore[arg-type]


def test_rows_may_miss_one_by_less_than_the_tolerance() -> None:
    assert aggregate([[[0.5, 0.5039]]]).tolist() == [[0.5, 0.5039]]


def test_how_is_one_of_two_words() -> None:
    with pytest.raises(ConfigurationError, match="got 'median'"):
        aggregate([[[1.0]]], "median")  # type: ignore[arg-type]
