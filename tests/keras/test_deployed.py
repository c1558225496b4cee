"""A record makes the model to deploy from a model that is built as for the training, whatever inputs it takes."""

import keras
import numpy as np
import pytest

from pybrush.record import Record
from pybrush_keras import SISA
from tests.keras import nets

ROWS = 40


class OfWords(keras.Model):
    """Takes numbers of words and a length, by name; nothing in it tells of which type they are."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.words, self.out = keras.layers.Embedding(9, 4), keras.layers.Dense(nets.KINDS)

    def call(self, inputs):
        summed = keras.ops.sum(self.words(inputs["words"]), axis=1)
        return self.out(summed + keras.ops.cast(inputs["length"], "float32"))


def words():
    draw = np.random.default_rng(3)
    x = {"words": draw.integers(0, 9, (ROWS, 5)), "length": draw.integers(1, 6, (ROWS, 1))}
    return x, draw.integers(0, nets.KINDS, ROWS)


@pytest.fixture
def trained(tmp_path):
    x, y = words()
    model, sisa = nets.compiled(OfWords(), "sgd"), SISA(2, 1, record=tmp_path / "record")
    model.fit(x, y, epochs=1, verbose=0, callbacks=[sisa])
    return model, sisa, x


def test_a_subclass_of_whole_numbers_by_name_is_deployed(trained):
    model, sisa, x = trained
    deployed = Record.open(sisa.record).aggregate(model)
    last, whole = model(x), deployed.predict(x, verbose=0)
    other = nets.compiled(OfWords(), "sgd")
    other(x)
    assert whole.shape == last.shape
    assert np.array_equal(Record.open(sisa.record).aggregate(other).predict(x, verbose=0), whole)


def test_the_record_tells_what_a_row_s_inputs_are(trained):
    _, sisa, _ = trained
    told = {"words": {"shape": [5], "dtype": "int64"}, "length": {"shape": [1], "dtype": "int64"}}
    assert sisa.recorded().plan.settings["inputs"] == told
