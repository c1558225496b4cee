"""Sixty small random records with random streams of requests, each against a fresh fit and a plain loop.

Few rows, many cells and many equal rows, so that slices too small to train, shards that empty and copies that
are struck one by one all occur. The order, the seeds and the batches of a stage are compared with twins.
"""

from contextlib import closing

import numpy as np
import pytest

from pybrush import forget
from pybrush.content import encode
from pybrush.errors import ConfigurationError, ForgetError
from pybrush.names import as_names
from pybrush.plan.order import Seeds, StageRows, cut
from pybrush.record import Record
from pybrush.record.resolve import Wish
from pybrush.request import Roster
from tests import reference
from tests.core.numpy_learner import BATCH, NumpyLearner, roster_of, wish
from tests.core.test_fit_and_forget import KEY, assert_same_record, by_ids, fit, unlearn

EPOCHS, SEED = 2, 11


class World:
    """A random data set and plan, and what is left of it; knows names and cells from the twins alone."""

    def __init__(self, number):
        self.rng = np.random.default_rng(number)
        pick = self.rng.integers
        self.naming = ("content", "ids")[pick(2)]
        self.order = ("shuffled", "sequential")[pick(2)]
        n = int(pick(2, 31))
        # Contents of equal rows are drawn from a few; without ids a sequential loader does not allow them.
        distinct = n if (self.naming, self.order) == ("content", "sequential") else int(pick(1, n + 1))
        pool = self.rng.normal(size=(distinct, 3)), self.rng.integers(0, 2, distinct).astype(float)
        kind = np.arange(n) if distinct == n else pick(0, distinct, n)
        self.rows = pool[0][kind], pool[1][kind]
        self.ids = [f"row-{i}" for i in range(n)] if self.naming == "ids" else None
        # A person's guardian is a function of the person, so that equal rows of one person are one sample.
        people = pick(0, int(pick(1, 12)), n)
        self.subjects = [[f"person-{p}", f"guardian-{p % 3}"] for p in people] if pick(2) else None
        self.plan = {"shards": int(pick(1, 5)), "slices": int(pick(1, 4)), "epochs": EPOCHS, "order": self.order}
        self.alive = np.ones(n, dtype=bool)
        self.contents = [encode((self.rows[0][i], self.rows[1][i])) for i in range(n)]
        self.digests = [reference.content_digest(KEY, content) for content in self.contents]
        self.names = [self._name(i) for i in range(n)]

    def _owner(self, i):
        return None if self.subjects is None else reference.subject(KEY, f"s:{self.subjects[i][0]}".encode())

    def _name(self, i):
        if self.ids is not None:
            return reference.pseudonym(KEY, f"s:{self.ids[i]}".encode())
        return reference.pseudonym(KEY, b"c:" + self.digests[i] + (self._owner(i) or b""))

    def schedule(self, alive):
        kept = np.flatnonzero(alive)
        placements = [self._owner(i) or self.names[i] for i in kept]
        shards, slices = self.plan["shards"], self.plan["slices"]
        return reference.schedule([self.names[i] for i in kept], shards, slices, placements)

    def data(self, mask):
        kept = np.flatnonzero(mask)
        ids, subjects = (None if v is None else [v[i] for i in kept] for v in (self.ids, self.subjects))
        return (self.rows[0][kept], self.rows[1][kept]), ids, subjects

    def file(self):
        """The data set at the next call: what is left, and perhaps forgotten rows that were never deleted."""
        living = {self.names[i] for i in np.flatnonzero(self.alive)}
        stale = np.array([name not in living for name in self.names])
        return self.alive | (stale & (self.rng.integers(0, 2, len(stale)) == 1))

    def request(self):
        """Return (wish of a record, mask of the data set to pass, mask of what is left afterwards)."""
        chosen = self.rng.permutation(np.flatnonzero(self.alive))[: self.rng.integers(1, 4)]
        after = self.alive.copy()
        after[chosen] = False
        how = ("names", "contents", "subjects", "missing", "duplicates")[self.rng.integers(5)]
        if how == "missing":
            file = self.file()
            file[chosen] = False
            return lambda _: Wish(missing=True), file, after
        if how == "subjects" and self.subjects is not None:
            person = self.subjects[chosen[0]][self.rng.integers(2)]
            after = self.alive & np.array([person not in row for row in self.subjects])
            return lambda record: Wish(subjects=record.names.subjects([person])), self.file(), after
        names = as_names(self.names[i] for i in chosen)
        if how == "duplicates":
            after = self.alive & ~np.isin(self.digests, [self.digests[i] for i in chosen])
            return lambda _: Wish(names=names, duplicates="forget"), self.file(), after
        living = {(self.digests[i], self.names[i]) for i in np.flatnonzero(self.alive)}
        of_one = all(sum(digest == self.digests[i] for digest, _ in living) == 1 for i in chosen)
        if how == "contents" and of_one:
            return lambda _: Wish(contents=as_names(self.digests[i] for i in chosen)), self.file(), after
        return lambda _: Wish(names=names), self.file(), after


def plain_weights(world):
    """The twin: train each shard in a plain loop that knows no record; return shard -> weights."""
    kept = np.flatnonzero(world.alive)
    x, y = world.rows[0][kept], world.rows[1][kept]
    learners = {}
    for shard, last, members in world.schedule(world.alive):
        if shard not in learners:
            learners[shard] = NumpyLearner([0.1, -0.2, 0.3])
            learners[shard].velocity = np.zeros(3)
        for epoch in range(-(-2 * EPOCHS // (world.plan["slices"] + 1))):
            order = reference.epoch_order(members, SEED, shard, last, epoch)
            if world.order == "sequential":
                order = sorted(order)
            rng = np.random.default_rng(reference.seed_of(SEED, shard, last, epoch, "train"))
            for batch in reference.batches(order, BATCH):
                learners[shard].step(x[batch], y[batch], rng)
    return {shard: learner.weights for shard, learner in learners.items()}


@pytest.mark.parametrize("number", range(60))
def test_a_stream_of_requests_leaves_the_bits_of_a_fresh_fit_and_of_a_plain_loop(number, tmp_path):
    world = World(number)
    if not world.schedule(world.alive):
        with pytest.raises(ConfigurationError, match="at least 2 rows"):
            fit(tmp_path / "a", *world.data(world.alive), **world.plan)
        return
    found, _ = fit(tmp_path / "a", *world.data(world.alive), **world.plan)
    found.record.close()
    for _ in range(int(world.rng.integers(1, 5))):
        ask, file, after = world.request()
        rows, ids, subjects = world.data(file)
        if not world.schedule(after):
            with pytest.raises(ForgetError, match="nothing is left to train on"):
                unlearn(tmp_path / "a", rows, ask, ids, subjects)
            break
        result = unlearn(tmp_path / "a", rows, ask, ids, subjects)
        assert result.forgotten == world.alive.sum() - after.sum()
        world.alive = after
    found, _ = fit(tmp_path / "b", *world.data(world.alive), **world.plan)
    found.record.close()
    assert_same_record(tmp_path / "a", tmp_path / "b")
    with closing(Record.open(tmp_path / "a", KEY)) as a, closing(Record.open(tmp_path / "b", KEY)) as b:
        assert a.ledger.rows("SELECT * FROM subjects") == b.ledger.rows("SELECT * FROM subjects")
        weights = plain_weights(world)
        assert set(a.constituents()) == set(weights)
        for shard, key in a.constituents().items():
            assert np.array_equal(a.store.load(key)[0]["weights"], weights[shard])


def test_a_fit_without_ids_reads_every_row_once(tmp_path):
    world, read = World(0), []

    def name(namer):
        return Roster(namer, len(world.contents), None, None, lambda i: read.append(i) or world.contents[i])

    forget.fit(
        tmp_path / "a", wish(shards=1, naming="content"), NumpyLearner([0.1, 0.2, 0.3]), world.rows, name
    ).record.close()
    assert read == list(range(len(world.contents)))


class Watching(NumpyLearner):
    """Notes, for each stage, the position of every row in each epoch and every seed that it asks for."""

    def __init__(self):
        super().__init__([0.1, -0.2, 0.3])
        self.orders, self.seeds = {}, {}

    def train_stage(self, data, rows, horizon, seeds):
        for epoch in range(horizon.epochs):
            place = horizon.shard, horizon.slice, epoch
            self.orders[place] = rows(epoch).tolist()
            self.seeds[place] = [seeds(epoch, purpose, rank) for purpose in ("stage", "train") for rank in (0, 1)]
        return super().train_stage(data, rows, horizon, seeds)


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_striking_one_id_leaves_the_order_of_all_others_and_every_seed_as_they_were(order, tmp_path):
    rng = np.random.default_rng(5)
    rows, ids = (rng.normal(size=(60, 3)), rng.integers(0, 2, 60).astype(float)), list(range(60))
    before, after = Watching(), Watching()
    plan = wish(shards=2, slices=3, order=order)
    forget.fit(tmp_path / "a", plan, before, rows, roster_of(rows, ids)).record.close()
    unlearn(tmp_path / "a", rows, by_ids([17]), ids, learner=after)
    assert 0 < len(after.orders) < len(before.orders)
    for place, order_now in after.orders.items():
        assert order_now == [i for i in before.orders[place] if i != 17]
        assert after.seeds[place] == before.seeds[place]
    assert any(17 in seen for seen in before.orders.values())


@pytest.mark.parametrize("number", range(20))
def test_the_order_of_an_epoch_and_its_seeds_are_those_of_the_written_rule(number):
    rng = np.random.default_rng(number)
    names = sorted(rng.bytes(16) for _ in range(rng.integers(1, 12)))
    # One name in many copies, and two names that differ in their last byte alone.
    names = sorted({*names, names[0][:-1] + bytes([names[0][-1] ^ 1])})
    members = [(name, copy) for name in names for copy in range(rng.integers(1, 4))]
    members = [(*member, int(at)) for member, at in zip(members, rng.permutation(len(members)), strict=True)]
    seed, shard, last, epoch, rank = (int(v) for v in rng.integers(0, [2**32, 9, 9, 99, 9]))
    copies, positions = (np.array([member[i] for member in members]) for i in (1, 2))
    rows = StageRows(as_names(member[0] for member in members), copies, positions)
    order = reference.epoch_order(members, seed, shard, last, epoch)
    assert rows.shuffled(seed, shard, last, epoch).tolist() == order
    assert rows.sequential().tolist() == list(range(len(members)))
    left = [member for member in members if member[0] != names[0]]
    assert reference.epoch_order(left, seed, shard, last, epoch) == [
        position for position in order if position in {member[2] for member in left}
    ]
    for purpose in ("stage", "train", "workers"):
        expected = reference.seed_of(seed, shard, last, epoch, purpose, rank)
        assert Seeds(seed, shard, last)(epoch, purpose, rank) == expected


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_every_row_of_a_stage_is_in_exactly_one_batch_of_an_epoch(size, drop_last):
    for n in range(1, 3 * size + 2):
        order = np.random.default_rng(n).permutation(n)
        batches = cut(order, size, drop_last)
        assert batches == reference.batches(order.tolist(), size, drop_last)
        seen = [row for batch in batches for row in batch]
        assert seen == order[: len(seen)].tolist()
        assert len(seen) == (n if n < size or not drop_last else n - n % size)
        assert size == 1 or n == 1 or min(map(len, batches)) > 1
