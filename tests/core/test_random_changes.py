"""Random records whose data set changes under them: streams of batches that forget, amend and admit.

Each ends in the bits of a fresh fit of what is left and of a plain loop. What is left follows from names alone, by a
rule written here again.
"""

from collections import Counter
from contextlib import closing

import numpy as np
import pytest

from pybrush.content import encode
from pybrush.errors import ConfigurationError, ForgetError
from pybrush.names import as_names
from pybrush.record import Record
from pybrush.record.resolve import Wish
from tests import reference
from tests.core.test_fit_and_forget import KEY, assert_same_record, fit, unlearn
from tests.core.test_random_records import World, plain_weights


class Changing(World):
    """A random data set of which some rows are recorded; the others come, or are forgotten before they could.

    Attributes:
        alive: which rows are recorded. marked: names and persons that were forgotten.
    """

    def __init__(self, number):
        super().__init__(number)
        self.alive = self.rng.random(len(self.names)) < 0.7
        if self.naming == "content":  # of equal rows the first are recorded, as the record counts them
            self.alive |= np.array([name in self.names[:i] for i, name in enumerate(self.names)])
        self.marked = set()

    def batch(self):
        """Return (wish of a record, mask of the data set to pass, mask of what is left, expected counts)."""
        named, person, admits = self._named(), self._person(), bool(self.rng.integers(2))
        amended = self._amended()
        if not (len(named) or person or amended is not None or admits):
            admits = True
        struck = np.zeros(len(self.alive), dtype=bool)
        struck[named] = True
        if person:
            # A name is struck whole where any of its rows is the person's.
            theirs = {self.names[i] for i in np.flatnonzero(self.alive) if person in self.subjects[i]}
            struck |= self.alive & np.array([name in theirs for name in self.names])
        changed = [] if amended is None else [i for i in amended if not struck[i]]
        changes = sum(self._renew(i, person) for i in changed)
        file = self.alive | (self.rng.random(len(self.alive)) < 0.6)
        after = self.alive & ~struck
        gone = {self.names[i] for i in np.flatnonzero(struck)}
        if admits:
            after |= self._joining(file, gone, person)
        expected = struck.sum(), changes, (after & ~self.alive).sum()
        left = {self.names[i] for i in np.flatnonzero(after)}
        marks = (gone - left) | ({person} if person else set())

        def ask(record):
            given = {"names": as_names(self.names[i] for i in named)} if len(named) else {}
            given |= {"subjects": record.names.subjects([person])} if person else {}
            given |= {} if amended is None else {"amended": as_names(self.names[i] for i in amended)}
            return Wish(**given, admits=admits)

        return ask, file, after, expected, marks

    def _named(self):
        living = self.rng.permutation(np.flatnonzero(self.alive))
        return living[: self.rng.integers(0, 3)]

    def _person(self):
        if self.subjects is None or self.rng.integers(3):
            return None
        return self.subjects[self.rng.choice(np.flatnonzero(self.alive))][self.rng.integers(2)]

    def _amended(self):
        if self.ids is None or self.rng.integers(3) == 0:
            return None
        return self.rng.permutation(np.flatnonzero(self.alive))[: self.rng.integers(1, 4)]

    def _renew(self, i, asking):
        """Give a row another content or another person, or leave it as it is; whether anything changed."""
        before = self.digests[i], self.subjects and self.subjects[i]
        if self.rng.integers(3):
            self.rows[0][i] += self.rng.integers(0, 2)
            self.digests[i] = reference.content_digest(KEY, encode((self.rows[0][i], self.rows[1][i])))
        if self.subjects is not None and self.rng.integers(2):
            person = int(self.rng.integers(12))
            people = [f"person-{person}", f"guardian-{person % 3}"]
            if not (self.marked | {asking}) & set(people):
                self.subjects[i] = people
        return before != (self.digests[i], self.subjects and self.subjects[i])

    def _joining(self, file, gone, person):
        """Of each name that may join, as many rows as the data set has more than the record."""
        barred = self.marked | ({person} if person else set())
        held = Counter(self.names[i] for i in np.flatnonzero(self.alive))
        usable = [
            i
            for i in np.flatnonzero(file)
            if self.names[i] not in self.marked | gone and not barred & set(self.subjects[i] if self.subjects else ())
        ]
        wanted = Counter(self.names[i] for i in usable)
        joining = np.zeros(len(self.alive), dtype=bool)
        for i in usable:
            if not self.alive[i] and held[self.names[i]] < wanted[self.names[i]]:
                joining[i], held[self.names[i]] = True, held[self.names[i]] + 1
        return joining


@pytest.mark.parametrize("number", range(40))
def test_a_stream_of_batches_leaves_the_bits_of_a_fresh_fit_and_of_a_plain_loop(number, tmp_path):
    world = Changing(number)
    if not world.schedule(world.alive):
        with pytest.raises(ConfigurationError):
            fit(tmp_path / "a", *world.data(world.alive), **world.plan)
        return
    fit(tmp_path / "a", *world.data(world.alive), **world.plan)[0].record.close()
    for _ in range(int(world.rng.integers(1, 5))):
        ask, file, after, expected, marks = world.batch()
        rows, ids, subjects = world.data(file)
        if not world.schedule(after):
            with pytest.raises(ForgetError, match="nothing is left to train on"):
                unlearn(tmp_path / "a", rows, ask, ids, subjects)
            return
        result = unlearn(tmp_path / "a", rows, ask, ids, subjects)
        assert (result.forgotten, result.amended, result.admitted) == expected
        world.alive, world.marked = after, world.marked | marks
    fit(tmp_path / "b", *world.data(world.alive), **world.plan)[0].record.close()
    assert_same_record(tmp_path / "a", tmp_path / "b")
    with closing(Record.open(tmp_path / "a", KEY)) as a, closing(Record.open(tmp_path / "b", KEY)) as b:
        assert a.ledger.rows("SELECT * FROM subjects") == b.ledger.rows("SELECT * FROM subjects")
        weights = plain_weights(world)
        assert set(a.constituents()) == set(weights)
        for shard, key in a.constituents().items():
            assert np.array_equal(a.store.load(key)[0]["weights"], weights[shard])
