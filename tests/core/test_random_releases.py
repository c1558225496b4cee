"""Random plans under random requests, approximate and exact: the record stays whole, and exact is exact in the end."""

from contextlib import closing

import numpy as np
import pytest

from pybrush.chain import is_met
from pybrush.guarantee import Budget, Certified, Empirical, Exact
from pybrush.method import Terms
from pybrush.record import Record
from pybrush.record.resolve import Wish
from tests import reference
from tests.core import format_reader as reader
from tests.core.numpy_learner import roster_of
from tests.core.numpy_methods import Ascent, Shrink, by, exactly
from tests.core.test_fit_and_forget import KEY, assert_same_record, data, fit, keep, unlearn

ROWS = 24
NAMES = [f"person-{i:012d}" for i in range(ROWS)]
OWNERS = [[f"owner-{i % 12:012d}"] for i in range(ROWS)]

TERMS = {
    "ascent": by(Ascent()),
    "shrink": by(Shrink()),
    "rebuild": Terms(),
    "exact": exactly(),
    "budget": Terms(None, Budget(0.9, 1e-5)),
}


class World:
    """A record, the rows that it still has, and what was last promised."""

    def __init__(self, folder, rng):
        self.folder, self.rng, self.left = folder, rng, np.ones(ROWS, dtype=bool)
        self.named = str(rng.choice(["ids", "content", "subjects"]))
        order = "sequential" if self.named == "ids" and rng.random() < 0.5 else "shuffled"
        self.plan = {"shards": int(rng.integers(1, 4)), "slices": int(rng.integers(1, 3)), "epochs": 2, "order": order}
        self.rows, self.encrypt = data(ROWS, seed=int(rng.integers(100))), bool(rng.random() < 0.3)
        self.fit(folder, self.left, encrypt=self.encrypt)

    def of(self, mask):
        at = np.flatnonzero(mask)
        ids = [NAMES[i] for i in at] if self.named == "ids" else None
        return keep(self.rows, mask), ids, [OWNERS[i] for i in at] if self.named == "subjects" else None

    def fit(self, folder, mask, **more):
        fit(folder, *self.of(mask), **self.plan, **more)[0].record.close()

    def ask(self, kind):
        """Forget one or two of the rows that are left, or of the persons."""
        chosen = self.rng.choice(np.flatnonzero(self.left), int(self.rng.integers(1, 3)), replace=False)
        rows, ids, subjects = self.of(np.ones(ROWS, dtype=bool))
        wish = lambda record: Wish(names=roster_of(rows, ids, subjects)(record.names).names[chosen])  # noqa: E731
        if self.named == "subjects":
            people = {OWNERS[i][0] for i in chosen}
            chosen = [i for i in range(ROWS) if OWNERS[i][0] in people]
            wish = lambda record: Wish(subjects=record.names.subjects(sorted(people)))  # noqa: E731
        self.left[chosen] = False
        return unlearn(self.folder, rows, wish, ids, subjects, terms=TERMS[kind])

    def settle(self):
        return unlearn(self.folder, self.of(self.left)[0], lambda _: None, *self.of(self.left)[1:], terms=exactly())

    def gone(self):
        struck = np.flatnonzero(~self.left)
        return [NAMES[i].encode() for i in struck] + [OWNERS[i][0].encode() for i in struck]


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_requests_keeps_the_record_whole_and_exact_ends_in_the_bits_of_a_fit_without(seed, tmp_path):
    world, rng = World(tmp_path / "a", np.random.default_rng(seed)), np.random.default_rng(seed)
    for kind in rng.choice(list(TERMS), 5):
        result = world.ask(str(kind))
        assert is_met(result.guarantee, TERMS[kind].guarantee)
        with closing(Record.open(tmp_path / "a", KEY)) as record:
            found, served = record.verify(), record.stand_ins()
            told = {type(each).__name__ for each in (result.guarantee,)} | {record.info().guarantee}
            links = [link["guarantee"]["kind"] for key in served.values() for link in record.store.manifest(key).links]
        assert found.is_clean and found.releases == len(served) and len(told) == 1
        expected = Empirical if "Empirical" in links else Certified if links else Exact
        assert isinstance(result.guarantee, expected)
        if not world.encrypt:  # the reader has no keys
            assert reader.defects(reader.read_record(tmp_path / "a")) == []
        assert reference.files_holding(tmp_path / "a", world.gone()) == []
    assert isinstance(world.settle().guarantee, Exact)
    world.fit(tmp_path / "twin", world.left)
    assert_same_record(tmp_path / "a", tmp_path / "twin")
