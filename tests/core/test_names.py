"""Pseudonyms against a twin in plain hashlib, and byte order against Python's own sorting."""

from __future__ import annotations

import unicodedata
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from hashlib import blake2b
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybrush.errors import IdError, PyBrushError
from pybrush.names import Namer, as_names, ascending, canonical, sortable

FEW = settings(max_examples=60)
KEY = bytes(range(32))

sample_ids = st.integers() | st.text(max_size=5) | st.binary(max_size=5)
name_bytes = st.binary(min_size=16, max_size=16)
# Names from few bytes: equal ones, and ones that differ in one half only, come up often.
close_names = st.lists(st.sampled_from([0, 1, 127, 128, 255]), min_size=16, max_size=16).map(bytes)
few_bytes = st.tuples(st.sampled_from([0, 128, 255]), st.sampled_from([0, 7, 8, 15])).map(
    lambda pair: bytes(pair[0] if i == pair[1] else 1 for i in range(16))
)
name_lists = st.lists(name_bytes | close_names | few_bytes, max_size=30)


def hashed(person: str, data: bytes, key: bytes = KEY) -> bytes:
    """The twin: BLAKE2b-128(key, person, data), specs/record.md section 1."""
    return blake2b(data, digest_size=16, key=key, person=person.encode()).digest()


def rows_of(names: np.ndarray) -> list[bytes]:
    return [bytes(row) for row in names]


# Canonical ids


@pytest.mark.parametrize(
    ("sample_id", "encoded"),
    [
        (0, b"i:0"),
        (-17, b"i:-17"),
        (2**70, b"i:1180591620717411303424"),
        (np.uint64(2**64 - 1), b"i:18446744073709551615"),
        (np.int8(-5), b"i:-5"),
        (IntEnum("Colour", {"RED": 3})(3), b"i:3"),
        ("", b"s:"),
        ("1", b"s:1"),
        ("Zoë", b"s:Zo\xc3\xab"),
        (np.str_("1"), b"s:1"),
        (b"", b"b:"),
        (b"\x00\xff", b"b:\x00\xff"),
        (np.bytes_(b"1"), b"b:1"),
    ],
    ids=repr,
)
def test_an_id_has_its_kind_in_front(sample_id: object, encoded: bytes) -> None:
    assert canonical(sample_id) == encoded


@FEW
@given(st.lists(sample_ids, unique_by=lambda i: (type(i), i)))
def test_different_ids_have_different_encodings(ids: list) -> None:
    assert len({canonical(i) for i in ids}) == len(ids)


def test_text_is_not_normalised() -> None:
    composed, decomposed = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë")
    assert canonical(composed) != canonical(decomposed)


@pytest.mark.parametrize(
    "wrong",
    [
        True,
        False,
        np.True_,
        1.0,
        np.float64(1),
        float("nan"),
        None,
        (),
        (1, "a"),
        [1],
        UUID(int=7),
        Decimal(1),
        Fraction(1),
        1j,
        np.array(1),
        np.array([1]),
        bytearray(b"1"),
        frozenset(),
    ],
    ids=repr,
)
def test_other_kinds_are_refused_and_the_message_names_kind_and_conversion(wrong: object) -> None:
    with pytest.raises(IdError, match=rf"got {type(wrong).__name__}\. Convert it first: str\(value\)"):
        canonical(wrong)


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(IdError, match="surrogate"):
        canonical("a\ud800")


# Names


@FEW
@given(
    ids=st.lists(sample_ids),
    key=st.binary(min_size=32, max_size=32),
)
def test_samples_and_subjects_are_keyed_hashes_of_the_encoded_id(ids: list, key: bytes) -> None:
    namer = Namer(key)
    assert rows_of(namer.samples(iter(ids))) == [hashed("pybrush-id", canonical(i), key) for i in ids]
    assert rows_of(namer.subjects(iter(ids))) == [hashed("pybrush-subject", canonical(i), key) for i in ids]


@FEW
@given(encoded=st.lists(st.binary(max_size=20)))
def test_contents_are_keyed_hashes_of_the_encoded_sample(encoded: list[bytes]) -> None:
    assert rows_of(Namer(KEY).contents(encoded)) == [hashed("pybrush-content", row) for row in encoded]


@FEW
@given(pairs=st.lists(st.tuples(name_bytes, st.none() | name_bytes)))
def test_a_content_id_holds_the_first_subject_if_there_is_one(
    pairs: list[tuple[bytes, bytes | None]],
) -> None:
    namer, contents = Namer(KEY), as_names(content for content, _ in pairs)
    with_subjects = namer.content_samples(contents, [subject for _, subject in pairs])
    assert rows_of(with_subjects) == [hashed("pybrush-id", b"c:" + c + (s or b"")) for c, s in pairs]
    assert rows_of(namer.content_samples(contents)) == [hashed("pybrush-id", b"c:" + c) for c, _ in pairs]


def test_content_ids_need_one_subject_or_none_for_each_row() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Namer(KEY).content_samples(as_names([bytes(16)] * 2), [None])


def test_suppressed_names_are_keyed_hashes_of_names() -> None:
    namer = Namer(KEY)
    names = namer.samples(range(5))
    assert rows_of(namer.suppressed(names)) == [hashed("pybrush-suppress", row) for row in rows_of(names)]


def test_one_id_has_another_name_in_every_use_and_under_every_key() -> None:
    namer, other = Namer(KEY), Namer(KEY[::-1])
    uses = [namer.samples([1]), namer.subjects([1]), namer.contents([b"i:1"]), other.samples([1])]
    assert len({row for names in uses for row in rows_of(names)}) == len(uses)


def test_the_key_id_tells_keys_apart() -> None:
    assert Namer(KEY).key_id == hashed("pybrush-key", b"").hex()
    assert Namer(KEY).key_id != Namer(KEY[::-1]).key_id


def test_names_are_rows_of_sixteen_bytes_also_where_there_are_none() -> None:
    namer = Namer(KEY)
    none = as_names([])
    for names in (
        none,
        namer.samples([]),
        namer.contents([]),
        namer.content_samples(none),
        namer.suppressed(none),
    ):
        assert names.shape == (0, 16) and names.dtype == np.uint8
    assert namer.samples(range(3)).shape == (3, 16) and namer.samples(range(3)).dtype == np.uint8


@pytest.mark.parametrize("wrong", [b"", bytes(31), bytes(33), bytes(64), "k" * 32, bytearray(32), None, 32])
def test_a_key_is_32_bytes_and_no_message_shows_it(wrong: object) -> None:
    with pytest.raises(IdError, match="must be 32 bytes") as caught:
        Namer(wrong)  # type: ignore[arg-type]
    assert isinstance(caught.value, PyBrushError) and "kk" not in str(caught.value)


# Order


@FEW
@given(name_lists)
def test_as_names_stacks_rows(rows: list[bytes]) -> None:
    assert rows_of(as_names(iter(rows))) == rows


@FEW
@given(name_lists)
def test_ascending_is_the_order_of_sorted_bytes_and_keeps_ties(rows: list[bytes]) -> None:
    assert ascending(as_names(rows)).tolist() == sorted(range(len(rows)), key=lambda i: rows[i])


@FEW
@given(name_lists)
def test_sortable_items_compare_as_bytes_do(rows: list[bytes]) -> None:
    items = sortable(as_names(rows))
    assert items.shape == (len(rows),) and [item.tobytes() for item in items] == rows
    assert np.argsort(items, kind="stable").tolist() == sorted(range(len(rows)), key=lambda i: rows[i])
    assert [item.tobytes() for item in np.unique(items)] == sorted(set(rows))
    assert np.searchsorted(np.sort(items), items).tolist() == [sorted(rows).index(row) for row in rows]


@FEW
@given(name_lists)
def test_views_that_are_not_contiguous_are_ordered_alike(rows: list[bytes]) -> None:
    names = as_names(rows)
    for view in (np.asfortranarray(names), names[::-2]):
        viewed = rows_of(view)
        assert ascending(view).tolist() == sorted(range(len(viewed)), key=lambda i: viewed[i])
        assert [item.tobytes() for item in sortable(view)] == viewed
