"""ShardPlan against a twin in plain hashlib, its stability under deletion, and its uniformity.

False alarms: keys are fixed, so a test either passes always or never; for a new key each chi-square test
fails by chance with probability 1e-6.
"""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from hashlib import blake2b
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from pybrush.errors import ConfigurationError, IdError
from pybrush.plan import ShardPlan
from pybrush.plan.placement import cells_of, positive

FEW = settings(max_examples=60)
FALSE_ALARM = 1e-6
KEY = bytes(range(32))

sample_ids = st.integers(-(10**25), 10**25) | st.text(max_size=8) | st.binary(max_size=8)
id_lists = st.lists(sample_ids, max_size=40, unique_by=lambda i: (type(i), i))
counts = st.integers(1, 9)
keys = st.binary(min_size=32, max_size=32)


def place_by_hand(key: bytes, sample_id: int | str | bytes, shards: int, slices: int) -> tuple[int, int]:
    """The twin: specs/record.md, sections 1 and 3, in plain Python integers."""
    if isinstance(sample_id, int):
        text = b"i:" + str(sample_id).encode("ascii")
    elif isinstance(sample_id, str):
        text = b"s:" + sample_id.encode("utf-8")
    else:
        text = b"b:" + sample_id
    name = blake2b(text, digest_size=16, key=key, person=b"pybrush-id").digest()
    return int.from_bytes(name[:8], "little") % shards, int.from_bytes(name[8:], "little") % slices


@FEW
@given(key=keys, ids=id_lists, shards=counts, slices=counts)
def test_place_and_stages_follow_the_written_rule(key: bytes, ids: list, shards: int, slices: int) -> None:
    plan = ShardPlan(shards, slices, key)
    by_hand = [(i, place_by_hand(key, i, shards, slices)) for i in ids]
    assert [plan.place(i) for i in ids] == [place for _, place in by_hand]
    for shard, cell, rows in plan.stages(ids):
        assert rows == [i for i, place in by_hand if place == (shard, cell)]


@FEW
@given(key=keys, ids=id_lists, shards=counts, slices=counts)
def test_every_id_is_in_exactly_one_cell_and_empty_cells_are_listed(
    key: bytes, ids: list, shards: int, slices: int
) -> None:
    stages = ShardPlan(shards, slices, key).stages(iter(ids))
    assert [(s, r) for s, r, _ in stages] == [(s, r) for s in range(shards) for r in range(slices)]
    kinds = Counter((type(i), i) for _, _, rows in stages for i in rows)
    assert kinds == Counter((type(i), i) for i in ids)


@FEW
@given(key=keys, ids=id_lists, shards=counts, slices=counts, data=st.data())
def test_striking_ids_leaves_every_other_id_where_it_was_and_in_the_same_order(
    key: bytes, ids: list, shards: int, slices: int, data: st.DataObject
) -> None:
    keep = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    left = [i for i, stays in zip(ids, keep, strict=True) if stays]
    kept = {(type(i), i) for i in left}
    plan = ShardPlan(shards, slices, key)
    expected = [(s, r, [i for i in rows if (type(i), i) in kept]) for s, r, rows in plan.stages(ids)]
    assert plan.stages(left) == expected


@FEW
@given(key=keys, ids=id_lists, shards=counts, slices=counts, seed=st.integers(0, 2**32 - 1))
def test_row_numbers_do_not_matter(key: bytes, ids: list, shards: int, slices: int, seed: int) -> None:
    plan = ShardPlan(shards, slices, key)
    shuffled = [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))]
    first = {(type(i), i): (s, r) for s, r, rows in plan.stages(ids) for i in rows}
    second = {(type(i), i): (s, r) for s, r, rows in plan.stages(shuffled) for i in rows}
    assert first == second


@pytest.mark.parametrize(("shards", "slices"), [(2, 1), (1, 2), (5, 4), (7, 3), (16, 16), (100, 1), (1, 97)])
@pytest.mark.parametrize("kind", [int, str])
def test_consecutive_ids_fill_all_cells_evenly_and_independently(shards: int, slices: int, kind: type) -> None:
    stages = ShardPlan(shards, slices, KEY).stages(map(kind, range(20_000)))
    # One test over all cells: shard and slice that depend on each other would show as well.
    assert chisquare([len(rows) for _, _, rows in stages]).pvalue > FALSE_ALARM


def test_another_key_gives_an_independent_placement() -> None:
    first, second = ShardPlan(4, 3, KEY), ShardPlan(4, 3, KEY[::-1])
    table = np.zeros((12, 12), dtype=int)
    cell = {i: s * 3 + r for s, r, rows in first.stages(range(20_000)) for i in rows}
    for s, r, rows in second.stages(range(20_000)):
        for i in rows:
            table[cell[i], s * 3 + r] += 1
    assert chi2_contingency(table).pvalue > FALSE_ALARM


def test_halves_are_unsigned_and_little_endian() -> None:
    halves = [(0, 2**64 - 1), (2**63, 10), (255, 2**40 + 1)]
    names = np.frombuffer(
        b"".join(a.to_bytes(8, "little") + b.to_bytes(8, "little") for a, b in halves), dtype=np.uint8
    ).reshape(-1, 16)
    shard, cell = cells_of(names, 10, 7)
    assert shard.tolist() == [a % 10 for a, _ in halves]
    assert cell.tolist() == [b % 7 for _, b in halves]


def test_views_that_are_not_contiguous_are_placed_alike() -> None:
    names = np.random.default_rng(0).integers(0, 256, (20, 16), dtype=np.uint8)
    expected = np.array(cells_of(names, 5, 3))
    assert (np.array(cells_of(np.asfortranarray(names), 5, 3)) == expected).all()
    assert (np.array(cells_of(names[::2], 5, 3)) == expected[:, ::2]).all()


WIDE = ShardPlan(2**31 - 1, 2**31 - 1, KEY)  # so many cells that a chance collision has probability 1e-18


def test_integers_text_and_bytes_of_the_same_characters_are_different_samples() -> None:
    assert len({WIDE.place(i) for i in (1, "1", b"1", "i:1", b"i:1", "01", -1)}) == 7


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_numpy_integers_are_the_same_samples_as_python_integers(kind: type) -> None:
    assert WIDE.place(kind(17)) == WIDE.place(17)
    plan = ShardPlan(3, 2, KEY)
    assert plan.stages(np.arange(9, dtype=kind)) == plan.stages(range(9))


def test_numpy_text_and_bytes_are_the_same_samples_as_python_ones() -> None:
    assert WIDE.place(np.str_("anna")) == WIDE.place("anna")
    assert WIDE.place(np.bytes_(b"anna")) == WIDE.place(b"anna")


REFUSED = [
    True,
    np.True_,
    1.0,
    np.float32(1),
    None,
    (1, 2),
    UUID(int=1),
    Decimal(1),
    np.array(1),
    bytearray(b"1"),
]


@pytest.mark.parametrize("wrong", REFUSED, ids=repr)
def test_other_kinds_are_refused_with_the_conversion(wrong: object) -> None:
    plan = ShardPlan(3, 2, KEY)
    with pytest.raises(IdError, match=rf"got {type(wrong).__name__}\. Convert it first"):
        plan.place(wrong)
    with pytest.raises(IdError):
        plan.stages([1, wrong])


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, np.True_, "2", None])
def test_shards_and_slices_are_whole_numbers_of_at_least_one(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="shards"):
        ShardPlan(wrong, 1, KEY)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="slices"):
        ShardPlan(1, wrong, KEY)  # type: ignore[arg-type]


def test_numpy_counts_become_python_integers() -> None:
    assert type(positive("shards", np.int64(3))) is int
    plan = ShardPlan(np.int64(3), np.uint8(2), KEY)  # type: ignore[arg-type]
    assert plan.stages(range(9)) == ShardPlan(3, 2, KEY).stages(range(9))


@pytest.mark.parametrize("wrong", [b"", bytes(31), bytes(33), "0" * 32, bytearray(32), None])
def test_a_key_is_32_bytes(wrong: object) -> None:
    with pytest.raises(IdError, match="32 bytes"):
        ShardPlan(1, 1, wrong)  # type: ignore[arg-type]


def test_no_ids_are_as_many_empty_cells() -> None:
    assert ShardPlan(2, 2, KEY).stages([]) == [(0, 0, []), (0, 1, []), (1, 0, []), (1, 1, [])]
