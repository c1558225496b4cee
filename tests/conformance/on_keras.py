"""The suite's side of Keras, under every backend."""

import random
from pathlib import Path

import keras
import numpy as np

from pybrush.record import Record
from pybrush_keras import SISA
from pybrush_keras.rows import rows_of
from tests.conformance.harness import CLASSES, FEATURES, HIDDEN, SWITCH, Setup, Table, initial_weights, table

SEEN = []


class Tripping(keras.callbacks.Callback):
    """Passes the places where a test may let things go wrong."""

    def on_train_begin(self, logs=None):
        SWITCH.passing("begin")

    def on_epoch_begin(self, epoch, logs=None):
        SWITCH.passing("epoch begin")

    def on_train_batch_begin(self, batch, logs=None):
        SWITCH.passing("batch")

    def on_epoch_end(self, epoch, logs=None):
        SWITCH.passing("epoch")

    def on_train_end(self, logs=None):
        SWITCH.passing("end")


class Watching(keras.Sequential):
    """Notes its batches."""

    def train_step(self, data):
        SEEN.append(keras.ops.convert_to_numpy(data[0])[:, 0].copy())
        return super().train_step(data)


def network(setup: Setup, weights: int):
    """Return two dense layers, compiled; BatchNorm and Dropout between them in a regular network."""
    kinds = keras.layers
    keras.utils.set_random_seed(weights)
    between = [kinds.ReLU()]
    if setup.network == "regular":
        between = [kinds.BatchNormalization(), kinds.ReLU(), kinds.Dropout(0.3)]
    layers = [kinds.Input((FEATURES,)), kinds.Dense(HIDDEN), *between, kinds.Dense(CLASSES)]
    model = (Watching if setup.network == "watching" else keras.Sequential)(layers)
    for own, given in zip(dense(model), initial_weights(weights), strict=True):
        own.assign(given)
    optimizers = {
        "adam": lambda: keras.optimizers.Adam(setup.rate),
        "momentum": lambda: keras.optimizers.SGD(setup.rate, momentum=0.9),
        "plain": lambda: keras.optimizers.SGD(setup.rate),
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers[setup.optimizer](), loss, run_eagerly=setup.network == "watching", jit_compile=False)
    return model


def dense(model):
    """Return kernel and bias of each dense layer."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    return [variable for layer in layers for variable in (layer.kernel, layer.bias)]


class KerasTraining:
    """A compiled model, its arrays and the callbacks of its fit."""

    def __init__(self, folder: Path, setup: Setup, rows: Table, weights: int):
        self.setup, self.rows, self.fitted = setup, rows, False
        self.model = network(setup, weights)
        self.sisa = SISA(**setup.arguments(folder, rows))
        self.x, self.y = rows.x.copy(), rows.y.copy()
        self.callbacks = [Tripping()]
        if setup.saves:
            name = "{epoch:02d}.keras" if setup.saves == "every epoch" else "last.keras"
            self.callbacks.append(keras.callbacks.ModelCheckpoint(str(Path(folder) / "saved" / name)))

    def arguments(self):
        told = {"callbacks": [*self.callbacks, self.sisa], "verbose": 0}
        if self.setup.validated:
            held = table().at(range(12))
            told["validation_data"] = (held.x, held.y)
        return told

    def fit(self):
        self.model.fit(
            self.x, self.y, epochs=self.setup.epochs, batch_size=self.setup.batch_size,
            shuffle=not self.setup.sequential, **self.arguments(),
        )  # fmt: skip
        self.fitted = True

    def unlearn(self, **asked):
        given = {} if self.fitted else {"model": self.model, "x": self.x, "y": self.y, **self.arguments()}
        return self.sisa.unlearn(**asked, **given)

    def save(self, path):
        path.parent.mkdir(exist_ok=True)
        self.model.save(path.with_suffix(".keras"))
        return path.with_suffix(".keras")

    def roster(self, namer):
        return self.sisa.roster(rows_of(self.x, self.y), namer)

    def part(self, start, stop):
        return self.x[start:stop], self.y[start:stop]

    def snapshot(self):
        model, draws = self.model, keras.random.SeedGenerator
        own = [layer for layer in model.layers if isinstance(getattr(layer, "seed_generator", None), draws)]
        return {
            "weights": [array.tobytes() for array in FRAMEWORK.weights(model)],
            "optimizer": moved(model.optimizer),
            "seeds": [keras.ops.convert_to_numpy(layer.seed_generator.state).tolist() for layer in own],
            "model": (model.stop_training, id(model.optimizer)),
            "callbacks": [(type(c).__name__, own_attributes(c)) for c in self.callbacks],
            "random": (random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
        }


class OnKeras:
    """Keras."""

    adapter = "keras"

    def training(self, folder, setup, rows, weights=1):
        return KerasTraining(folder, setup, rows, weights)

    def data(self, rows):
        return rows.x.copy(), rows.y.copy()

    def weights(self, model):
        return ordered((v.name, keras.ops.convert_to_numpy(v).copy()) for v in model.variables)

    def constituents(self, record: Record):
        stored = {shard: record.store.load(key)[0]["model"] for shard, key in record.constituents().items()}
        return {shard: ordered(stored[shard]["variables"]) for shard in sorted(stored)}

    def predict(self, model, x):
        return keras.ops.convert_to_numpy(model(x, training=False))

    def scale(self, learner, factor):
        for variable in dense(learner.model):
            variable.assign(factor * variable)

    def spoil(self, model):
        for variable in [*model.trainable_variables, *model.optimizer.variables[2:]]:
            variable.assign(7 * keras.ops.ones_like(variable))
        model.stop_training = True

    def seen(self):
        found = list(SEEN)
        SEEN.clear()
        return found


def moved(optimizer):
    """Return what an optimizer holds; Keras makes its moments, all zero, when they are first asked for."""
    values = [keras.ops.convert_to_numpy(variable) for variable in optimizer.variables]
    return [value.tobytes() for place, value in enumerate(values) if place < 2 or value.any()]


def own_attributes(callback):
    """Return the attributes of a callback but those in which Keras notes the fit that it was last used in."""
    return sorted((name, repr(value)) for name, value in vars(callback).items() if name not in ("_model", "params"))


def ordered(variables):
    """Return named values as arrays: those of the dense layers first."""
    named = list(variables)
    return [value for name, value in sorted(named, key=lambda pair: pair[0] not in ("kernel", "bias"))]


FRAMEWORK = OnKeras()
