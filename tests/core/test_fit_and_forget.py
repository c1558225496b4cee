"""The transaction, driven by a NumPy learner: fit, unlearn, resume; bit for bit against twins."""

import shutil
from contextlib import closing

import numpy as np
import pytest

from pybrush import forget
from pybrush.build import Sources
from pybrush.errors import ConfigurationError, CorruptRecordError
from pybrush.record import Record
from pybrush.record.resolve import Wish
from tests import reference
from tests.core.numpy_learner import BATCH, NumpyLearner, roster_of, wish
from tests.untouched import untouched

KEY = bytes(range(32))


def data(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)), rng.integers(0, 2, n).astype(float)


def fit(folder, rows, ids=None, subjects=None, **plan):
    learner = NumpyLearner([0.1, -0.2, 0.3])
    plan.setdefault("naming", "content" if ids is None else "ids")
    fitted = forget.fit(folder, wish(**plan), learner, rows, roster_of(rows, ids, subjects))
    return fitted, learner


def unlearn(folder, rows, ask, ids=None, subjects=None, learner=None, **more):
    """Forget what `ask(record)` names, as a new process would."""
    learner = learner or NumpyLearner([9.0, 9.0, 9.0])
    with closing(Record.open(folder, KEY)) as record:
        sources = Sources(learner, rows, roster_of(rows, ids, subjects)(record.names))
        return forget.unlearn(record, sources, ask(record), aggregate=lambda _: None, **more)


def by_ids(ids):
    return lambda record: Wish(names=record.names.samples(ids))


def keep(rows, mask):
    return rows[0][mask], rows[1][mask]


def assert_same_record(one, other):
    """Same stages under the same keys with the same bits, encrypted or not."""
    a, b = Record.open(one, KEY), Record.open(other, KEY)
    assert a.store.keys() == b.store.keys()
    assert a.ledger.wanted() == b.ledger.wanted() == a.store.keys()
    for key in a.store.keys() | {"initial"}:
        (tree_a, tensors_a), (tree_b, tensors_b) = a.store.packed(key), b.store.packed(key)
        assert tree_a == tree_b and tensors_a.keys() == tensors_b.keys()
        assert all(np.array_equal(tensors_a[name], tensors_b[name]) for name in tensors_a)
    columns = "SELECT name, placement, shard, slice, content, copies FROM samples"
    assert a.ledger.rows(columns) == b.ledger.rows(columns)
    assert a.ledger.rows("SELECT * FROM cells") == b.ledger.rows("SELECT * FROM cells")
    for record in (a, b):
        record.verify()
        record.close()


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_fit_then_unlearn_has_the_bits_of_a_fit_without_the_rows(tmp_path, order):
    rows, ids = data(), [f"person-{i:012d}" for i in range(40)]
    fit(tmp_path / "a", rows, ids, order=order)
    result = unlearn(tmp_path / "a", rows, by_ids([ids[3], ids[17]]), ids)
    left = np.array([i not in (3, 17) for i in range(40)])
    fit(tmp_path / "b", keep(rows, left), [i for i, kept in zip(ids, left, strict=True) if kept], order=order)
    assert_same_record(tmp_path / "a", tmp_path / "b")
    assert result.forgotten == 2
    assert 0 < result.cost.stages_rebuilt <= result.cost.stages


@pytest.mark.parametrize("slices", [1, 2, 3])
@pytest.mark.parametrize("n", [5, 12, 40])
def test_every_constituent_equals_a_plain_loop_that_knows_no_record(tmp_path, n, slices):
    rows, ids, shards, epochs, seed = data(n), list(range(n)), 3, 3, 11
    fitted, _ = fit(tmp_path / "a", rows, ids, slices=slices)
    names = [reference.pseudonym(KEY, b"i:%d" % i) for i in ids]
    per_slice = -(-2 * epochs // (slices + 1))
    weights = {}
    for shard, last, members in reference.schedule(names, shards, slices):
        learner = weights.get(shard) or NumpyLearner([0.1, -0.2, 0.3])
        if shard not in weights:
            learner.velocity = np.zeros(3)
        for epoch in range(per_slice):
            rng = np.random.default_rng(reference.seed_of(seed, shard, last, epoch, "train"))
            for batch in reference.batches(reference.epoch_order(members, seed, shard, last, epoch), BATCH):
                learner.step(rows[0][batch], rows[1][batch], rng)
        weights[shard] = learner
    assert set(fitted.constituents) == set(weights)
    for shard, key in fitted.constituents.items():
        state, _ = fitted.record.store.load(key)
        assert np.array_equal(state["weights"], weights[shard].weights)
        assert np.array_equal(state["velocity"], weights[shard].velocity)


def test_three_requests_in_a_row_resurrect_nothing_and_drop_nothing(tmp_path):
    rows, ids = data(), list(range(40))
    fit(tmp_path / "a", rows, ids)
    for ask in ([1, 2], [30], [7, 8, 9]):
        unlearn(tmp_path / "a", rows, by_ids(ask), ids)
    left = np.array([i not in (1, 2, 30, 7, 8, 9) for i in ids])
    fit(tmp_path / "b", keep(rows, left), [i for i in ids if left[i]])
    assert_same_record(tmp_path / "a", tmp_path / "b")


def three_equal_rows():
    x, y = data()
    x[[5, 9, 12]], y[[5, 9, 12]] = x[5], y[5]
    return x, y


@pytest.mark.parametrize("still_there", [True, False])
def test_one_of_three_equal_rows_leaves_two_whether_or_not_it_is_still_in_the_file(tmp_path, still_there):
    rows = three_equal_rows()
    left = np.arange(40) != 5
    fit(tmp_path / "a", rows)
    unlearn(tmp_path / "a", rows, lambda r: Wish(names=roster_of(rows)(r.names).names[[5]]))
    later = rows if still_there else keep(rows, left)
    unlearn(tmp_path / "a", later, lambda r: Wish(names=roster_of(later)(r.names).names[[0]]))
    fit(tmp_path / "b", keep(rows, left & (np.arange(40) != 0)))
    assert_same_record(tmp_path / "a", tmp_path / "b")


def test_missing_rows_are_forgotten_by_deleting_them_and_saying_so(tmp_path):
    rows, left = data(), np.arange(40) != 21
    fit(tmp_path / "a", rows)
    unlearn(tmp_path / "a", keep(rows, left), lambda r: Wish(missing=True))
    fit(tmp_path / "b", keep(rows, left))
    assert_same_record(tmp_path / "a", tmp_path / "b")


def test_a_subject_takes_all_its_rows_in_one_cell(tmp_path):
    rows, subjects = data(), [[f"subject-{i % 8}"] for i in range(40)]
    fit(tmp_path / "a", rows, subjects=subjects, shards=4, slices=2)
    result = unlearn(tmp_path / "a", rows, lambda r: Wish(subjects=r.names.subjects(["subject-3"])), subjects=subjects)
    left = np.array([i % 8 != 3 for i in range(40)])
    others = [s for s, k in zip(subjects, left, strict=True) if k]
    fit(tmp_path / "b", keep(rows, left), subjects=others, shards=4, slices=2)
    assert_same_record(tmp_path / "a", tmp_path / "b")
    assert result.forgotten == 5


def test_a_failure_in_training_leaves_the_model_and_the_rerun_finishes(tmp_path):
    rows, ids = data(), list(range(40))
    fitted, learner = fit(tmp_path / "a", rows, ids)
    before = learner.weights.copy()
    shard, cell = fitted.record.graph()[-1].shard, fitted.record.graph()[-1].slice
    learner.fail_at = (shard, cell)
    victims = [i for i in ids if reference.cell(reference.pseudonym(KEY, b"i:%d" % i), 3, 2)[0] == shard][:1]
    with pytest.raises(ArithmeticError) as caught:
        unlearn(tmp_path / "a", rows, by_ids(victims), ids, learner=learner)
    assert "cancel(1)" in caught.value.__notes__[0]
    assert np.array_equal(learner.weights, before)
    assert Record.open(tmp_path / "a", KEY).requests[0].state == "pending"
    learner.fail_at = None
    result = unlearn(tmp_path / "a", rows, by_ids(victims), ids, learner=learner)
    assert result.request == 1
    left = np.array([i not in victims for i in ids])
    fit(tmp_path / "b", keep(rows, left), [i for i in ids if left[i]])
    assert_same_record(tmp_path / "a", tmp_path / "b")


def test_two_data_sets_whose_slices_alternate_otherwise_have_other_keys_under_a_sequential_loader(tmp_path):
    """A key that did not hold the order of all rows would stand for two different states."""
    rows, ids = data(), list(range(40))
    cells = [reference.cell(reference.pseudonym(KEY, b"i:%d" % i), 1, 2)[1] for i in ids]
    apart = [i for wanted in (0, 1) for i in ids if cells[i] == wanted]
    one, _ = fit(tmp_path / "a", rows, ids, order="sequential", shards=1)
    other, _ = fit(tmp_path / "b", (rows[0][apart], rows[1][apart]), apart, order="sequential", shards=1)
    (first, last), (also_first, also_last) = one.record.graph(), other.record.graph()
    assert first.key == also_first.key
    assert last.key != also_last.key


def test_settings_that_json_does_not_have_are_refused_before_a_record_is_made(tmp_path):
    class Odd(NumpyLearner):
        def semantic(self, namer):
            return {"rate": float("nan")}

    rows = data()
    with untouched(tmp_path), pytest.raises(ConfigurationError, match="JSON"):
        forget.fit(tmp_path / "a", wish(naming="content", key=None), Odd([0.0, 0.0, 0.0]), rows, roster_of(rows))


def test_integer_keys_of_settings_are_the_same_before_and_after_json(tmp_path):
    class Numbered(NumpyLearner):
        def semantic(self, namer):
            return {"layers": {10: "last", 9: "first"}}

    rows = data()
    for _ in range(2):
        forget.fit(tmp_path / "a", wish(naming="content"), Numbered([0.0, 0.0, 0.0]), rows, roster_of(rows))
    assert Record.open(tmp_path / "a", KEY).verify().is_clean


def test_a_constituent_exchanged_together_with_its_manifest_is_found(tmp_path):
    rows = data()
    fitted, _ = fit(tmp_path / "a", rows)
    key = fitted.constituents[0]
    state, manifest = fitted.record.store.load(key)
    shutil.rmtree(fitted.record.store.path(key))
    state["weights"] = state["weights"] + 1
    fitted.record.store.publish(fitted.record.store.write_aside(state, manifest), key)
    with pytest.raises(CorruptRecordError, match="released"):
        fitted.record.verify()


def test_a_released_stage_that_is_gone_is_told_of_as_missing_and_built_again(tmp_path):
    rows = data()
    fitted, _ = fit(tmp_path / "a", rows)
    key = fitted.constituents[0]
    shutil.rmtree(fitted.record.store.path(key))
    found = fitted.record.verify()
    assert found.missing == (key,) and not found.is_clean
    again, _ = fit(tmp_path / "a", rows)
    assert [manifest.key for manifest in again.built] == [key]
    assert again.record.verify().is_clean
