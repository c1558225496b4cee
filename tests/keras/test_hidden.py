"""State beside the record in Keras: what breaks the equality of bits is refused or named, the rest is let be.

What can be stored, and is, `test_bitwise.py` shows (the case "drawing").
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

from pybrush.errors import ContentError, TrainingError
from pybrush_keras import SISA
from tests.keras import nets
from tests.keras.twin import KEY

TENSORFLOW = nets.BACKEND == "tensorflow"


def backend():
    if TENSORFLOW:
        import tensorflow as found
    else:
        import torch as found
    return found


class Shifting(layers.Layer):
    """Adds what a function makes of something that the layer holds."""

    def __init__(self, shift, **held):
        super().__init__()
        self.shift = shift
        for name, value in held.items():
            setattr(self, name, value)

    def call(self, x):
        return x + self.shift(self, x)


def own_variable():
    if TENSORFLOW:
        held = backend().Variable(0.0, trainable=False)
        return Shifting(lambda layer, x: layer.own.assign_add(0.1), own=held)
    return Shifting(lambda layer, x: layer.own.add_(0.1), own=backend().zeros(()))


def own_variables():
    if TENSORFLOW:
        held = [backend().Variable(0.0, trainable=False)]
        return Shifting(lambda layer, x: layer.own[0].assign_add(0.1), own=held)
    return Shifting(lambda layer, x: layer.own[0].add_(0.1), own=[backend().zeros(())])


def own_generator():
    if TENSORFLOW:
        held = backend().random.Generator.from_seed(1)
        return Shifting(lambda layer, x: layer.own.normal(()), own=held)
    return Shifting(lambda layer, x: backend().randn((), generator=layer.own), own=backend().Generator())


def numpy_generator():
    return Shifting(lambda layer, x: float(layer.own.normal()), own=np.random.default_rng(0))


class Count:
    def __init__(self):
        self.calls = 1.0


class Counting(keras.callbacks.Callback):
    """Changes an object of its own."""

    def __init__(self):
        super().__init__()
        self.count = Count()

    def on_epoch_end(self, epoch, logs=None):
        self.count.calls += 1


class Closing(keras.callbacks.Callback):
    """Draws from a generator that only its functions know."""

    def __init__(self):
        super().__init__()
        draw = np.random.default_rng(0)
        self.draw = lambda: draw.normal()

    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = abs(self.draw())


class Scheduling(keras.callbacks.Callback):
    """Puts a schedule where the learning rate was a number."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)


class Lasting(keras.metrics.Mean):
    """Goes on through all epochs."""

    def reset_state(self):
        pass


class Steered(nets.Subclassed):
    """Weighs its loss by a metric."""

    def __init__(self, metric, **settings):
        super().__init__(**settings)
        self.tracker = metric

    def compute_loss(self, *arguments, **named):
        loss = super().compute_loss(*arguments, **named)
        self.tracker.update_state(loss)
        return loss * (1 + self.tracker.result())


def with_layer(make):
    return lambda: nets.compiled(
        keras.Sequential([layers.Input((6,)), layers.Dense(4), make(), layers.Dense(nets.KINDS)]), "sgd"
    )


def small():
    return nets.plain("sgd", normed=False, dropped=False)


def trained(folder, model, *callbacks, **arguments):
    sisa = SISA(shards=1, slices=1, record=folder / "record", ids="position", key=KEY, seed=5)
    model.fit(**nets.table(), batch_size=16, epochs=2, verbose=0, callbacks=[*callbacks, sisa], **arguments)
    return sisa.recorded()


REFUSED = {
    "a variable of the backend": (with_layer(own_variable), [], "own, of types that a stage cannot store"),
    "a list of such": (with_layer(own_variables), [], "own, of types that a stage cannot store"),
    "a generator of the backend": (with_layer(own_generator), [], r"layer \d, Shifting\.own"),
    "an object of a callback": (small, [Counting], r"Counting\.0\.count, of types"),
    "a generator in a closure": (small, [Closing], "drew from .*draw.*which no stage stores"),
    "a schedule that a callback sets": (small, [Scheduling], "SGD to a schedule.*Compile the model with the schedule"),
    "a metric that is never reset": (
        lambda: nets.compiled(Steered(Lasting(name="kept")), "sgd", metrics=None), [], r"metric \d, Lasting"
    ),
}  # fmt: skip
if not TENSORFLOW:  # TensorFlow draws once, when the step is compiled
    REFUSED["a generator of NumPy"] = (with_layer(numpy_generator), [], r"layer \d, Shifting\.own")


@pytest.mark.parametrize("name", REFUSED)
def test_state_that_no_stage_can_store_is_refused_and_the_model_is_as_before(name, tmp_path):
    make, callbacks, words = REFUSED[name]
    model = make()
    before = [value.copy() for value in model.get_weights()]
    with pytest.raises(TrainingError, match=words):
        trained(tmp_path, model, *(make() for make in callbacks))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=False))


def test_a_metric_that_is_reset_passes(tmp_path):
    trained(tmp_path, nets.compiled(Steered(keras.metrics.Mean(name="kept")), "sgd", metrics=None))


RATES = {"now": 1.0}


class Halving(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        RATES["now"] *= 0.5


def test_a_global_that_changed_is_named_with_the_guarantee(tmp_path):
    layer = layers.Lambda(lambda x: x * RATES["now"])
    model = keras.Sequential([layers.Input((6,)), layer, layers.Dense(nets.KINDS)])
    record = trained(tmp_path, nets.compiled(model, "sgd"), Halving())
    (stage,) = record.graph()
    (found,) = record.store.manifest(stage.key).notes["assumptions"]
    assert found["name"].startswith("hidden-state:global RATES")


@pytest.mark.skipif(not TENSORFLOW, reason="the step of PyTorch is not compiled")
def test_random_operations_of_tensorflow_draw_anew_in_each_epoch_and_stage(tmp_path):
    tensorflow, drawn = backend(), []

    class Noisy(layers.Layer):
        def build(self, shape):
            self.last = self.add_weight(shape=(), trainable=False)

        def call(self, x):
            self.last.assign(tensorflow.random.normal(()))
            return x

    class Looking(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            drawn.append(float(self.model.layers[0].last))

    def fitted(folder):
        drawn.clear()
        model = nets.compiled(keras.Sequential([layers.Input((6,)), Noisy(), layers.Dense(nets.KINDS)]), "sgd")
        sisa = SISA(shards=2, slices=1, record=folder, ids="position", key=KEY, seed=5)
        model.fit(**nets.table(), batch_size=64, epochs=2, verbose=0, callbacks=[Looking(), sisa])
        return list(drawn)

    first = fitted(tmp_path / "a")
    tensorflow.random.set_seed(99)
    assert len(set(first)) == 4
    assert fitted(tmp_path / "b") == first


class Shuffled(keras.utils.PyDataset):
    """Rows in another order each time."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        order = np.random.permutation(nets.N)  # noqa: NPY002
        return tuple(value[order] for value in nets.table().values())


def test_validation_data_that_steers_must_be_the_same_each_time(tmp_path):
    stopping, model = keras.callbacks.EarlyStopping("val_loss"), small()
    with pytest.raises(ContentError, match=r"steers this training .*differ when they are read again"):
        trained(tmp_path, model, stopping, validation_data=Shuffled())
    trained(tmp_path, model, validation_data=Shuffled())


def test_two_dropouts_of_one_seed_do_not_share_a_mask(tmp_path):
    model = keras.Sequential([layers.Input((6,)), *(layers.Dropout(0.5, seed=3) for _ in range(2)), layers.Dense(3)])
    trained(tmp_path, nets.compiled(model, "sgd"))
    one, other = (ops.convert_to_numpy(layer.seed_generator.state) for layer in model.layers[:2])
    assert one[0] != other[0] and one[1] == other[1] > 0
