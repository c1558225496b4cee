"""Rows that would be others in a request than in a fresh fit are refused; those that are merely drawn anew pass."""

import random
from functools import lru_cache

import numpy as np
import pytest

from pybrush.content import encode
from pybrush.errors import ContentError, TrainingError
from pybrush.randomness import Randomness
from pybrush.readings import check_fixed, check_seeded, check_unchanged, fingerprint_of_rows, spread

THIRD = np.random.default_rng(0)
"""Stands for the global generator of a framework."""

TABLE = np.random.default_rng(3).normal(size=(44, 6))


def seed_third(seed):
    THIRD.bit_generator.state = np.random.default_rng(seed).bit_generator.state


def write_third(state):
    THIRD.bit_generator.state = state


RANDOMNESS = Randomness("third", seed_third, lambda: THIRD.bit_generator.state, write_third)


def random_state():
    """Return the states of all global generators."""
    return random.getstate(), np.random.get_state()[1].tolist(), THIRD.bit_generator.state  # noqa: NPY002


class Rows:
    """Rows of a table, each changed by a function of the data set."""

    def __init__(self, change=lambda rows, row, x: x, **held):
        self.x = TABLE.copy()
        self.change = change
        vars(self).update(held)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.change(self, row, self.x[row])


class Part:
    """Some rows of another data set."""

    def __init__(self, whole, positions):
        self.whole, self.positions = whole, positions

    def __len__(self):
        return len(self.positions)

    def __getitem__(self, row):
        return self.whole[self.positions[row]]


class Joined:
    """All rows of two data sets."""

    def __init__(self, kind, *parts):
        self.parts = kind(parts)

    def __len__(self):
        return sum(map(len, self.parts))

    def __getitem__(self, row):
        first, second = self.parts
        return first[row] if row < len(first) else second[row - len(first)]


class Sealed:
    """Rows without any attributes."""

    __slots__ = ()

    def __len__(self):
        return 44

    def __getitem__(self, row):
        return TABLE[row]


def parts_of(dataset):
    return [dataset.whole] if isinstance(dataset, Part) else getattr(dataset, "parts", [])


def plain(dataset):
    return lambda position: encode(dataset[position])


def check(dataset):
    check_seeded(dataset, plain, RANDOMNESS, parts_of)


WRAPPED = [
    lambda d: d,
    lambda d: Part(d, range(40)),
    lambda d: Joined(list, d, Rows()),
    lambda d: Joined(tuple, TABLE, Part(d, range(40))),
]

a_generator = np.random.default_rng(0)


def kept(data, row, x):
    if row not in data.cache:
        data.cache[row] = x + THIRD.normal()
    return data.cache[row]


def kept_in_a_list(data, row, x):
    data.cache.append(row)
    return data.table.setdefault(row, x + THIRD.normal())


def counted(data, row, x):
    data.reads += 1
    return x + 1e-3 * data.reads


def changed_in_place(data, row, x):
    x *= 0.99
    return x


OWN = {
    "a generator of NumPy": lambda: Rows(lambda d, r, x: x + d.own.normal(), own=np.random.default_rng(0)),
    "an old generator of NumPy": lambda: Rows(lambda d, r, x: x + d.own.rand(), own=np.random.RandomState(0)),
    "a generator of Python": lambda: Rows(lambda d, r, x: x + d.own.random(), own=random.Random(0)),
    "a generator of the file": lambda: Rows(lambda d, r, x: x + a_generator.normal()),
    "the operating system": lambda: Rows(lambda d, r, x: x + np.random.default_rng().normal()),
    "a count of readings": lambda: Rows(counted, reads=0),
    "rows that are changed in place": lambda: Rows(changed_in_place),
    "kept random numbers": lambda: Rows(kept, cache={}),
    "kept random numbers, beside a list": lambda: Rows(kept_in_a_list, cache=[], table={}),
}


@pytest.mark.parametrize("kind", OWN)
def test_rows_that_do_not_depend_on_their_place_and_the_global_generators_alone_are_refused(kind):
    before = random_state()
    said = r"\(cache(, table)?\), which it drew" if "kept" in kind else "global generators of random, numpy and third"
    for wrapped in WRAPPED:
        with pytest.raises(ContentError, match=said):
            check(wrapped(OWN[kind]()))
    assert random_state() == before


def jitter(data, row, x):
    return x * random.uniform(0.8, 1.2) + np.random.normal(0, 0.1) + THIRD.normal()  # noqa: NPY002


def opened(data, row, x):
    data.file = data.file or object()
    return x


HARMLESS = {
    "plain rows": Rows,
    "rows without attributes": Sealed,
    "an array": lambda: TABLE,
    "augmentation": lambda: Rows(jitter),
    "a generator made from the global one": lambda: Rows(
        lambda d, r, x: x + np.random.default_rng(np.random.randint(2**31)).normal()  # noqa: NPY002
    ),
    "a generator made from the row": lambda: Rows(lambda d, r, x: x + np.random.default_rng(r).normal()),
    "a count that is not used": lambda: Rows(lambda d, r, x: (d.log.append(r), x)[1], log=[]),
    "a count beside augmentation": lambda: Rows(lambda d, r, x: (d.log.append(r), jitter(d, r, x))[1], log=[]),
    "rows that are kept": lambda: Rows(lambda d, r, x: d.cache.setdefault(r, x * 2), cache={}),
    "kept rows that are augmented afterwards": lambda: Rows(
        lambda d, r, x: jitter(d, r, d.cache.setdefault(r, x * 2)), cache={}
    ),
    "a file that is opened late": lambda: Rows(opened, file=None),
    "a cached function": lambda: Rows(lambda d, r, x: d.twice(r) + x, twice=lru_cache(lambda r: r * 2)),
    "rows of another type": lambda: Rows(lambda d, r, x: object()),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMLESS)
def test_rows_that_draw_from_the_global_generators_or_not_at_all_pass(kind):
    for wrapped in WRAPPED:
        check(wrapped(HARMLESS[kind]()))


def test_what_a_data_set_has_kept_is_still_there_after_the_look():
    data = Rows(lambda d, r, x: d.cache.setdefault(r, x * 2), cache=(cache := {}))
    parts = Joined(list, data, Rows())
    check(parts)
    assert data.cache is cache and cache and parts.parts[0] is data


class Closing(Rows):
    """Closes its file when it goes."""

    def __del__(self):
        self.handle.append("closed")


def test_no_copy_is_made_of_a_data_set_that_closes_its_file_when_it_goes():
    data = Closing(kept, cache={}, handle=[])
    check(data)
    check(whole := Part(data, range(40)))
    assert whole.whole.handle == []


def test_what_is_read_of_a_data_set_does_not_grow_with_it():
    read = []

    class Many:
        def __len__(self):
            return 10**9

        def __getitem__(self, row):
            read.append(row)
            return row

    check(Many())
    assert len(read) <= 5 * 32 and {0, 10**9 - 1} <= set(read)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 1000])
def test_rows_are_looked_at_from_the_first_to_the_last_each_once(length):
    places = spread(length)
    assert len(places) == min(length, 32) == len(set(places)) and places == sorted(places)
    assert (places[0], places[-1]) == (0, length - 1)


def test_rows_that_are_drawn_anew_cannot_be_named_by_content_and_the_adapter_says_what_to_do():
    check_fixed(Rows(), plain, RANDOMNESS, "Pass ids=.")
    before = random_state()
    with pytest.raises(ContentError, match=r"^32 of 32 samples differ .* by content\. Pass ids=\.$"):
        check_fixed(Rows(jitter), plain, RANDOMNESS, "Pass ids=.")
    assert random_state() == before


def test_a_change_of_the_rows_is_noticed_and_augmentation_is_none():
    data = Rows(jitter)
    before = fingerprint_of_rows(data, plain, RANDOMNESS)
    check_unchanged(before, fingerprint_of_rows(data, plain, RANDOMNESS))
    data.x = data.x[::-1]
    with pytest.raises(TrainingError, match="others than before this stage"):
        check_unchanged(before, fingerprint_of_rows(data, plain, RANDOMNESS))


def test_rows_that_cannot_be_compared_have_no_fingerprint():
    assert fingerprint_of_rows(Rows(lambda d, r, x: object()), plain, RANDOMNESS) is None


def test_all_generators_are_seeded_and_put_back_also_after_an_error():
    def drawn():
        return random.random(), np.random.rand(), THIRD.normal()  # noqa: NPY002

    def seeded(seed):
        RANDOMNESS.seed_all(seed)
        return drawn()

    before = random_state()
    with RANDOMNESS.kept():
        first = seeded(2**63 + 17)
        assert all(a != b for a, b in zip(first, drawn(), strict=True)) and first == seeded(2**63 + 17)
    with pytest.raises(KeyError), RANDOMNESS.kept():
        raise KeyError(drawn())
    assert random_state() == before
