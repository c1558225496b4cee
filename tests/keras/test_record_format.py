"""A record of Keras is as docs/record_format.md says: the reader that was written from that page alone reads it."""

import re

import keras
import numpy as np
import pytest
from keras import layers

from pybrush_keras import SISA, _private
from pybrush_keras.randomness import seed_layers
from tests.core import format_reader as reader
from tests.keras import nets

KEY = bytes(range(32))


@pytest.fixture
def fitted(tmp_path):
    """A model, and the folder of its record after a request; two of its layers keep seeds, one layer is the user's."""
    model = keras.Sequential([
        layers.Input((6,)), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.3), nets.Adds(),
        layers.Dense(3, dtype="bfloat16"),
    ])  # fmt: skip
    nets.compiled(model, keras.optimizers.Adam(0.01))
    sisa = SISA(2, 2, record=tmp_path / "record", ids=list(range(nets.N)), key=KEY, seed=5)
    early = keras.callbacks.EarlyStopping("loss", patience=3)
    model.fit(**nets.table(), epochs=2, batch_size=8, shuffle="batch", callbacks=[sisa, early], verbose=0)
    sisa.unlearn(rows=[3, 20])
    return model, tmp_path / "record"


def test_the_reader_of_the_page_finds_nothing_wrong_with_a_record_of_keras(fitted):
    record = reader.read_record(fitted[1])
    assert reader.defects(record) == []
    assert record["plan"]["adapter"] == "keras" and record["plan"]["adapter_format"] == 1


def test_the_members_of_a_state_are_those_of_the_page(fitted):
    model, folder = fitted
    record = reader.read_record(folder)
    last = reader.constituents(record)
    tree, _, _ = reader.read_state(record["states"][last[max(last)]])
    assert tree.keys() == {"model", "optimizers", "callbacks", "counters"}
    assert tree["model"].keys() == {"variables", "buffers", "settings"}
    names = [re.sub(r"^variable_\d+$", "variable", variable.name) for variable in model.variables]
    assert [name for name, _ in tree["model"]["variables"]] == names
    for variable, (_, value) in zip(model.variables, tree["model"]["variables"], strict=True):
        held = keras.ops.convert_to_numpy(variable)
        if isinstance(value, dict):
            value = (value["bfloat16"].astype("<u4") << 16).view("<f4")
            held = held.astype("float32")
        np.testing.assert_array_equal(value, held)
    settings = tree["model"]["settings"]
    assert settings.keys() == {"trainable", "attributes", "numbers"}
    assert len(settings["trainable"]) == len(_private.layers_of(model)) == 1 + 6  # an Input is a layer
    assert [name.endswith("Adds") for name in settings["attributes"]] == [True]
    (optimizer,) = tree["optimizers"]
    assert [place for place, _ in optimizer] == [str(place) for place in range(len(model.optimizer.variables))]
    assert list(tree["callbacks"]) == ["EarlyStopping.0"]
    assert tree["counters"][0] == 4


def test_seeds_of_layers_are_those_of_the_page():
    model = keras.Sequential([layers.Input((6,)), layers.Dropout(0.5), nets.Adds(), layers.Dropout(0.5)])
    _private.build(nets.compiled(model), (nets.table(8)["x"], nets.table(8)["y"]))
    seed_layers(model, 12345)
    found = [int(keras.ops.convert_to_numpy(generator.state)[0]) for generator in _private.seed_generators(model)]
    assert found == [reader.layer_seed(12345, place) for place in range(3)]
