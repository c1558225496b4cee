"""Models of the Keras tests, each compiled; small, and of many kinds."""

import random

import keras
import numpy as np
from keras import layers, ops, optimizers, regularizers

from pybrush_keras import Source

N, KINDS = 64, 3
BACKEND = keras.config.backend()


# Data


def table(n=N, seed=4):
    """Rows of six numbers in three classes."""
    draw = np.random.default_rng(seed)
    return {"x": draw.normal(size=(n, 6)).astype("float32"), "y": draw.integers(0, KINDS, n)}


def weighted():
    return table() | {"sample_weight": np.random.default_rng(5).uniform(0.1, 2, N).astype("float32")}


def doubles():
    return table() | {"x": table()["x"].astype("float64")}


def images():
    draw = np.random.default_rng(6)
    return {"x": draw.normal(size=(N, 6, 6, 2)).astype("float32"), "y": draw.integers(0, KINDS, N)}


def texts():
    draw = np.random.default_rng(7)
    return {"x": draw.integers(0, 9, (N, 5)), "y": draw.integers(0, KINDS, N)}


def pairs():
    """Two inputs and two outputs, by name."""
    draw = np.random.default_rng(8)
    x = {"left": draw.normal(size=(N, 4)).astype("float32"), "right": draw.normal(size=(N, 3)).astype("float32")}
    return {"x": x, "y": {"kind": draw.integers(0, KINDS, N), "size": draw.normal(size=(N, 1)).astype("float32")}}


def as_source(data):
    """The same rows, each read when it is needed."""
    x = data["x"]
    source = Source(np.arange(len(x)), data["y"], load=lambda place: x[place], batch_size=5)
    return {"x": source}


def as_pipeline(data):
    """The same rows in a tf.data pipeline."""
    import tensorflow as tf

    return {"x": tf.data.Dataset.from_tensor_slices((data["x"], data["y"])).shuffle(64).batch(5)}


def pipeline():
    """Rows to validate on, in a pipeline that keeps their order."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(tuple(table(20, seed=9).values())).batch(5)


# Layers


class Adds(layers.Layer):
    """Adds a loss of its own and draws from a seed generator of its own."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.seeds = keras.random.SeedGenerator(3)

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", regularizer=regularizers.L2(0.01))
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        x = x * self.scale
        self.add_loss(0.01 * ops.mean(ops.square(x)))
        if training:
            self.seen.assign_add(ops.cast(ops.shape(x)[0], "float32"))
            x = x + 0.1 * keras.random.normal(ops.shape(x), seed=self.seeds)
        return x


# Models


def crossed():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model, optimizer="adam", **settings):
    settings = {"jit_compile": False, "loss": crossed(), "metrics": ["accuracy"]} | settings
    model.compile(optimizer, **settings)
    return model


def body(normed=True, dropped=True):
    """Layers between six numbers and three logits."""
    found = [layers.Dense(8, activation="relu")]
    found += [layers.BatchNormalization()] * normed + [layers.Dropout(0.3)] * dropped
    return [*found, layers.Dense(KINDS)]


def plain(optimizer="adam", normed=True, dropped=True, **settings):
    model = keras.Sequential([layers.Input((6,)), *body(normed, dropped)])
    return compiled(model, make(optimizer), **settings)


def make(optimizer):
    return optimizer() if callable(optimizer) else optimizer


def lazy():
    return compiled(keras.Sequential(body()), optimizers.SGD(0.1))


def typed(policy, optimizer, dropped=True):
    """A model under a policy of types."""
    found = [layers.Dense(8, activation="relu", dtype=policy), layers.BatchNormalization(dtype=policy)]
    found += [layers.Dropout(0.3, dtype=policy)] * dropped + [layers.Dense(KINDS, dtype=policy)]
    model = keras.Sequential([layers.Input((6,), dtype=keras.DTypePolicy(policy).compute_dtype), *found])
    return compiled(model, make(optimizer))


def functional():
    left, right = layers.Input((4,), name="left"), layers.Input((3,), name="right")
    hidden = layers.Concatenate()([layers.Dense(5, activation="tanh")(left), layers.Dense(5)(right)])
    hidden = layers.Dropout(0.2)(layers.LayerNormalization()(hidden))
    outputs = {"kind": layers.Dense(KINDS, name="kind")(hidden), "size": layers.Dense(1, name="size")(hidden)}
    losses = {"kind": crossed(), "size": "mse"}
    optimizer = optimizers.SGD(0.05, momentum=0.9, nesterov=True, clipnorm=0.5)
    settings = {"loss": losses, "loss_weights": {"kind": 1.0, "size": 0.3}, "metrics": None}
    return compiled(keras.Model([left, right], outputs), optimizer, **settings)


def reading():
    found = [layers.Input((5,)), layers.Embedding(9, 4, mask_zero=True)]
    found += [layers.GRU(4, dropout=0.2, recurrent_dropout=0.2, return_sequences=BACKEND == "torch")]
    found += [layers.LSTM(4)] * (BACKEND == "torch")  # slow to trace
    optimizer = optimizers.AdamW(0.01, weight_decay=0.02, use_ema=True, ema_overwrite_frequency=3)
    return compiled(keras.Sequential([*found, layers.Dense(KINDS)]), optimizer)


def seeing():
    found = [layers.Input((6, 6, 2)), layers.RandomFlip("horizontal"), layers.Conv2D(3, 3), layers.BatchNormalization()]
    found += [layers.ReLU(), layers.SpatialDropout2D(0.2), layers.MaxPooling2D(), layers.Flatten()]
    return compiled(keras.Sequential([*found, layers.Dense(KINDS)]), optimizers.RMSprop(0.01, momentum=0.5))


class Subclassed(keras.Model):
    """A class of the user's own, which makes its variables when it is first called."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.inner = layers.Dense(8, activation="relu", activity_regularizer=regularizers.L1(0.01))
        self.adds, self.norm, self.drop = Adds(), layers.BatchNormalization(), layers.Dropout(0.3)
        self.last = layers.Dense(KINDS)

    def call(self, x, training=None):
        hidden = self.drop(self.norm(self.adds(self.inner(x)), training=training), training=training)
        return self.last(hidden)


class OwnLoss(Subclassed):
    """Computes its loss itself."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        own = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        return own + 0.1 * ops.mean(ops.square(y_pred))


def gradients(model, forward, variables):
    """Return the loss and its gradients, in the way of the active backend."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = forward()
        return loss, tape.gradient(loss, [v.value for v in variables])
    model.zero_grad()
    loss = forward()
    loss.backward()
    return loss, [v.value.grad for v in variables]


def applied(optimizer, found, variables):
    if BACKEND == "tensorflow":
        optimizer.apply_gradients(zip(found, variables, strict=True))
        return
    import torch

    with torch.no_grad():
        optimizer.apply(found, variables)


class OwnStep(Subclassed):
    """Trains in a step of its own, with a metric of its own."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.tracker = keras.metrics.Mean(name="own")

    def train_step(self, data):
        x, y = data

        def forward():
            return crossed()(y, self(x, training=True)) + sum(self.losses)

        loss, found = gradients(self, forward, self.trainable_variables)
        applied(self.optimizer, found, self.trainable_variables)
        self.tracker.update_state(loss)
        return {"own": self.tracker.result()}


class Adversaries(keras.Model):
    """Two networks with an optimizer each, the second of which is no part of compile."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.maker = keras.Sequential([layers.Input((2,)), layers.Dense(6)])
        self.judge = keras.Sequential([layers.Input((6,)), layers.Dense(4, activation="relu"), layers.Dense(1)])
        self.seeds = keras.random.SeedGenerator(5)
        self.second = optimizers.Adam(0.02, beta_1=0.5)
        self.told = keras.losses.BinaryCrossentropy(from_logits=True)

    def call(self, x):
        return self.judge(x)

    def train_step(self, data):
        x = data[0]
        noise = keras.random.normal((ops.shape(x)[0], 2), seed=self.seeds)
        ones, zeros = ops.ones((ops.shape(x)[0], 1)), ops.zeros((ops.shape(x)[0], 1))

        def judged():
            return self.told(ones, self.judge(x)) + self.told(zeros, self.judge(self.maker(noise)))

        def made():
            return self.told(ones, self.judge(self.maker(noise)))

        lost, found = gradients(self, judged, self.judge.trainable_variables)
        applied(self.optimizer, found, self.judge.trainable_variables)
        _, found = gradients(self, made, self.maker.trainable_variables)
        applied(self.second, found, self.maker.trainable_variables)
        return {"judged": lost}


# State outside of variables


class Drawing(layers.Layer):
    """Draws from every global generator, and keeps a number, a list and, under PyTorch, a buffer."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.alpha, self.kept = 1.0, []
        if BACKEND == "torch":
            import torch

            self.register_buffer("calls", torch.zeros(()))

    def call(self, x, training=None):
        if not training:
            return x
        if BACKEND == "torch":
            self.calls.add_(1)
            x = x + 0.01 * self.calls
        x = x * self.alpha + 0.1 * keras.random.normal(ops.shape(x)) + 0.01 * sum(self.kept)
        return x + 0.1 * drawn(x) + 0.1 * float(np.random.normal()) + 0.1 * random.random()  # noqa: NPY002


def drawn(x):
    """Return noise of the backend's own."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.random.normal(tf.shape(x))
    import torch

    return torch.randn_like(x)


class Weighing(keras.losses.Loss):
    """Multiplies a loss by a number that callbacks change."""

    def __init__(self):
        super().__init__()
        self.weight = 1.0

    def call(self, truth, found):
        return self.weight * keras.losses.sparse_categorical_crossentropy(truth, found, from_logits=True)


class Annealing(keras.callbacks.Callback):
    """Changes numbers everywhere, and keeps one itself."""

    def __init__(self):
        super().__init__()
        self.factor = 0.9

    def on_epoch_end(self, epoch, logs=None):
        self.factor *= 0.8
        for layer in self.model.layers:
            if isinstance(layer, Drawing):
                layer.alpha *= self.factor
                layer.kept.append(self.factor)
            if isinstance(layer, layers.Dropout):
                layer.rate *= self.factor
        self.model.loss.weight *= self.factor
        self.model.optimizer.clipnorm *= self.factor
        self.model.optimizer.weight_decay = 0.01 * self.factor  # None before


def drawing():
    found = [layers.Input((6,)), layers.Dense(8, activation=ops.tanh), Drawing(), layers.Dropout(0.5)]
    optimizer = optimizers.SGD(0.1, momentum=0.5, clipnorm=0.5)
    return compiled(keras.Sequential([*found, layers.Dense(KINDS)]), optimizer, loss=Weighing(), metrics=None)


# Callbacks


class Counting(keras.callbacks.Callback):
    """Keeps state of its own, on which training depends."""

    def __init__(self):
        super().__init__()
        self.batches, self.best, self.seen = 0, None, []

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(float(logs["loss"]))
        self.best = min(self.seen)
        self.model.optimizer.learning_rate = 0.1 / (self.batches + self.best)


class Thawing(keras.callbacks.Callback):
    """Trains the first layer from the second epoch on."""

    def on_epoch_begin(self, epoch, logs=None):
        wanted = epoch >= 1
        if self.model.layers[0].trainable != wanted:
            self.model.layers[0].trainable = wanted
            self.model.make_train_function(force=True)
