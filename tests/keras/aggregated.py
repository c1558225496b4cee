"""Models to be aggregated, one of each kind that Keras has, and twins that answer without the library."""

from dataclasses import dataclass, field

import keras
import numpy as np
from keras import layers

from pybrush.plan import aggregate as plain_aggregate

ROWS, CLASSES = 10, 3


def inputs(shape=(4,), seed=0):
    return np.random.default_rng(seed).normal(size=(ROWS, *shape)).astype("float32")


LABELS = np.random.default_rng(1).integers(0, CLASSES, ROWS)


def sequential():
    return keras.Sequential([
        *(keras.Input((4,)), layers.Dense(5, activation="relu"), layers.BatchNormalization()),
        *(layers.Dropout(0.5), layers.Dense(CLASSES)),
    ])  # fmt: skip


def built_by_data():
    """A Sequential model without an input, as a first batch builds it."""
    model = keras.Sequential([layers.Dense(5, activation="tanh"), layers.Dense(CLASSES)])
    model(inputs())
    return model


def two_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    joined = layers.concatenate([layers.Dense(3)(a), layers.Dropout(0.3)(b)])
    return keras.Model([a, b], layers.Dense(CLASSES)(joined))


def named_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((2,), dtype="int32", name="b")
    joined = layers.concatenate([layers.Dense(3)(a), layers.Flatten()(layers.Embedding(7, 2)(b))])
    return keras.Model({"a": a, "b": b}, layers.Dense(CLASSES)(joined))


def shared():
    """One layer twice, and an encoder that is called twice."""
    one = keras.Input((4,))
    encoder = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="relu")], name="encoder")
    twice = layers.Dense(4, activation="tanh")
    return keras.Model(one, layers.Dense(CLASSES)(twice(twice(encoder(one))) + encoder(encoder(one))))


def tied():
    """An encoder beside a model that holds it too: Keras saves it twice, as two."""
    one, inner_input = keras.Input((4,)), keras.Input((4,))
    encoder = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="relu")], name="encoder")
    inner = keras.Model(inner_input, layers.Dense(4)(encoder(inner_input)), name="inner")
    return keras.Model(one, layers.Dense(CLASSES)(inner(one) + encoder(one)))


def normalized():
    layer = layers.Normalization()
    layer.adapt(5 + 3 * inputs(seed=4))
    return keras.Sequential([keras.Input((4,)), layer, layers.Dense(CLASSES)])


def with_lambda():
    return keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: 2 * x), layers.Dense(CLASSES)])


def doubled(x):
    return 2 * x


def own_activation():
    return keras.Sequential([keras.Input((4,)), layers.Dense(5, activation=doubled), layers.Dense(CLASSES)])


def recurrent():
    return keras.Sequential([keras.Input((6, 2)), layers.LSTM(4, dropout=0.2), layers.Dense(CLASSES)])


def mixed():
    return keras.Sequential([
        *(keras.Input((4,)), layers.Dense(5, dtype="mixed_bfloat16"), layers.BatchNormalization()),
        layers.Dense(CLASSES, dtype="float32"),
    ])  # fmt: skip


def half():
    """Variables and outputs of bfloat16."""
    return keras.Sequential([keras.Input((4,)), layers.Dense(CLASSES, dtype="bfloat16")])


class Block(layers.Layer):
    """A layer of the user's own, whose argument Keras records by itself."""

    def __init__(self, width, **more):
        super().__init__(**more)
        self.inner = layers.Dense(width, activation="relu")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


class Subclassed(keras.Model):
    """Builds its layers in the first call, and drops out."""

    def __init__(self, width=5, rate=0.4, **more):
        super().__init__(**{**more, "name": "net"})  # a name that every copy has
        self.width, self.rate = width, rate
        self.blocks = [Block(width), Block(width)]
        self.drop, self.norm = layers.Dropout(rate), layers.BatchNormalization()
        self.head = layers.Dense(CLASSES)

    def call(self, x, training=None):
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(self.drop(x, training=training), training=training))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "rate": self.rate}


class Silent(keras.Model):
    """Its call has no argument `training`, so its dropout is told by the calls around it."""

    def __init__(self, **more):
        super().__init__(**more)
        self.drop, self.head = layers.Dropout(0.5), layers.Dense(CLASSES)

    def call(self, x):
        return self.head(self.drop(x))


class OfDictionaries(keras.Model):
    """Takes a dictionary with whole numbers; its __init__ takes nothing, so Keras saves and cannot load it."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = layers.Embedding(7, 2), layers.Dense(CLASSES)

    def call(self, x):
        return self.head(keras.ops.concatenate([x["a"], layers.Flatten()(self.embedding(x["b"]))], axis=-1))


class Unrecorded(keras.Model):
    """Keras cannot record what it is made with."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


def called(model, x):
    model(x)
    return model


@dataclass
class Case:
    """A model, what it is called with, and the classes that a saved one needs to be loaded."""

    make: object
    x: object = field(default_factory=inputs)
    custom: dict = field(default_factory=dict)
    needs_example: bool = False
    loads: bool = True

    @property
    def example(self):
        return self.x if self.needs_example else None


PAIR = {"a": inputs(), "b": np.random.default_rng(2).integers(0, 7, (ROWS, 2)).astype("int32")}

CASES = {
    "sequential": Case(sequential),
    "built by data": Case(built_by_data),
    "two inputs": Case(two_inputs, [inputs(), inputs((2,), 2)]),
    "named inputs": Case(named_inputs, PAIR),
    "shared layers": Case(shared),
    "normalized": Case(normalized),
    "lambda": Case(with_lambda),
    "own activation": Case(own_activation, custom={"doubled": doubled}),
    "recurrent": Case(recurrent, inputs((6, 2))),
    "mixed": Case(mixed),
    "half": Case(half),
    "own layer": Case(
        lambda: keras.Sequential([keras.Input((4,)), Block(5), layers.Dense(CLASSES)]), custom={"Block": Block}
    ),
    "subclassed": Case(lambda: called(Subclassed(6), inputs()), custom={"Subclassed": Subclassed, "Block": Block}),
    "silent": Case(lambda: called(Silent(), inputs()), custom={"Silent": Silent}),
    "of dictionaries": Case(
        lambda: called(OfDictionaries(), PAIR),
        PAIR,
        {"OfDictionaries": OfDictionaries},
        needs_example=True,
        loads=False,
    ),
}


def arrays_for(model, seed):
    """Return values for a model's variables as one constituent might have them, each another."""
    rng = np.random.default_rng(seed)
    return [_array_for(variable, rng) for variable in model.variables]


def _array_for(variable, rng):
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if dtype == "bfloat16":  # NumPy has none: values of eight bits, in float32
        return (rng.integers(1, 128, variable.shape) / 128).astype("float32")
    if "int" in dtype:
        return rng.integers(0, 1000, variable.shape).astype(dtype)
    return rng.uniform(0.1, 1.5, variable.shape).astype(dtype)  # a variance is positive


def constituents_for(model, shards=(0, 2, 3)):
    return {shard: arrays_for(model, shard) for shard in shards}


def alone(case, arrays):
    """Return what one constituent answers: a model made anew, given the values one by one."""
    model = case.make()
    for variable, array in zip(model.variables, arrays, strict=True):
        variable.assign(array)
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
    return wide(model(case.x, training=False))


def wide(tensor):
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")), dtype=np.float64)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def twin(case, constituents, how="mean"):
    """Return log-probabilities of all constituents together, from the core's own aggregate."""
    return np.log(plain_aggregate([softmax(alone(case, arrays)) for arrays in constituents.values()], how))
