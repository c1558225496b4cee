"""One shard in one slice is Keras' own fit on the same order, bit for bit.

What differs by design is the seeding, so models without random layers are compared, and a last batch of one row, which
joins the batch before it.
"""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest
from keras import optimizers

from pybrush.build import holdings_of
from pybrush.plan.order import Seeds, batch_order
from pybrush_keras import SISA
from pybrush_keras.patches import original_fit
from tests.keras import nets
from tests.keras.twin import KEY


@dataclass(frozen=True)
class Plain:
    model: Any
    data: Any = nets.table
    fit: dict[str, Any] = field(default_factory=dict)


def normed(optimizer="adam", **settings):
    return nets.plain(optimizer, dropped=False, **settings)


def scheduled():
    return normed(lambda: optimizers.Adam(optimizers.schedules.CosineDecay(0.1, 30), use_ema=True))


def two_way():
    """The functional model without its random layer."""
    model = nets.functional()
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0
    return model


CASES = {
    "normed": Plain(normed, fit={"class_weight": {0: 1.0, 1: 0.5, 2: 2.0}}),
    "weighted": Plain(scheduled, nets.weighted, {"validation_split": 0.25}),
    "two inputs and two outputs": Plain(two_way, nets.pairs),
    "halves": Plain(lambda: nets.typed("mixed_bfloat16", "adam", dropped=False)),
}
if nets.BACKEND == "tensorflow":
    CASES["compiled, several steps"] = Plain(lambda: normed(jit_compile=True, steps_per_execution=4))


@pytest.mark.parametrize("name", CASES)
def test_a_whole_training_has_the_bits_of_kerass_own(name, tmp_path):
    case = CASES[name]
    arguments = {**case.data(), "batch_size": 5, "epochs": 3, "shuffle": False, "verbose": 0, **case.fit}
    own, theirs = case.model(), case.model()
    theirs.set_weights(own.get_weights())
    sisa = SISA(record=tmp_path / "record", ids="position", key=KEY, seed=5)
    history = own.fit(**arguments, callbacks=[sisa])
    plain = original_fit(theirs)(**arguments)
    assert_same(own.get_weights(), theirs.get_weights())
    assert_same(*([keras.ops.convert_to_numpy(v) for v in m.optimizer.variables] for m in (own, theirs)))
    labels = {"shard": [0] * 3, "slice": [0] * 3}
    assert history.history == plain.history | labels and history.epoch == plain.epoch


def assert_same(one, other):
    assert len(one) == len(other) > 0
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


class Batches(keras.utils.PyDataset):
    """Given batches; train_on_batch would compile each size by itself under TensorFlow, with other last bits."""

    def __init__(self, data, batches):
        super().__init__()
        self.data, self.batches = data, batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.data["x"][self.batches[index]], self.data["y"][self.batches[index]]


def test_a_last_batch_of_one_row_joins_the_one_before_it(tmp_path):
    data = {name: value[:61] for name, value in nets.table().items()}
    own, theirs = normed("sgd"), normed("sgd")
    theirs.set_weights(own.get_weights())
    sisa = SISA(record=tmp_path / "record", ids="position", key=KEY, seed=5)
    own.fit(**data, batch_size=5, epochs=1, shuffle=False, verbose=0, callbacks=[sisa])
    places = np.arange(61)
    original_fit(theirs)(Batches(data, [*places[:55].reshape(11, 5), places[55:]]), shuffle=False, verbose=0)
    assert_same(own.get_weights(), theirs.get_weights())
    assert int(keras.ops.convert_to_numpy(own.optimizer.iterations)) == 12


@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_a_shuffled_training_has_the_bits_of_a_loop_over_its_batches(shuffle, tmp_path):
    own, theirs, data = normed("sgd"), normed("sgd"), nets.table()
    theirs.set_weights(own.get_weights())
    sisa = SISA(record=tmp_path / "record", ids="position", key=KEY, seed=5)
    own.fit(**data, batch_size=5, epochs=2, shuffle=shuffle, verbose=0, callbacks=[sisa])
    first, second = batches_of(sisa, shuffle)
    for epoch in (first, second):
        assert sorted(row for batch in epoch for row in batch) == list(range(nets.N))
        assert sorted(map(len, epoch)) == [4, *[5] * 12]
        original_fit(theirs)(Batches(data, epoch), shuffle=False, verbose=0)
    assert first != second
    in_order = [list(range(start, min(start + 5, nets.N))) for start in range(0, nets.N, 5)]
    assert (sorted(first) == sorted(second) == in_order) == (shuffle == "batch")
    assert_same(own.get_weights(), theirs.get_weights())


def batches_of(sisa, shuffle):
    """Return the batches of the two epochs, as docs/record_format.md says: order, cut, order of batches."""
    record = sisa.recorded()
    samples, rows = record.samples(), sisa.given.arguments.rows()
    placed = holdings_of(record, samples, sisa.roster(rows, record.names)).stage_rows(samples, 0, 0)
    seeds = Seeds(record.plan.seed, 0, 0)
    for epoch in range(2):
        order = placed.shuffled(record.plan.seed, 0, 0, epoch) if shuffle is True else placed.sequential()
        batches = [order[start : start + 5].tolist() for start in range(0, len(order), 5)]
        if shuffle == "batch":
            batches = [batches[place] for place in batch_order(len(batches), seeds(epoch, "batches"))]
        yield batches
