"""The models of the shipped configuration: two small classifiers that know nothing of PyBrush.

Each is a function that returns a compiled model, as Keras' own applications are. Models return logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


def mlp(
    shape: Sequence[int],
    hidden: int = 64,
    classes: int = 10,
    dropout: float = 0.1,
    optimizer: Any = "adam",
    loss: Any = None,
) -> keras.Model:
    """Return a perceptron with one hidden layer, BatchNorm and dropout; it flattens its inputs.

    Args:
        shape: of a sample, such as (8, 8, 1).
        hidden: width of the hidden layer.
        classes: number of classes.
        dropout: share of hidden units that are dropped.
        optimizer: as to `compile`.
        loss: as to `compile`; None: cross-entropy of logits and whole-numbered labels.

    Example:
        >>> mlp((8, 8, 1)).output_shape
        (None, 10)
    """
    layers = keras.layers
    model = keras.Sequential([
        layers.Input(tuple(shape)), layers.Flatten(), layers.Dense(hidden), layers.BatchNormalization(),
        layers.ReLU(), layers.Dropout(dropout), layers.Dense(classes),
    ])  # fmt: skip
    return _compiled(model, optimizer, loss)


def small_cnn(
    classes: int = 10, dropout: float = 0.25, optimizer: Any = "adam", loss: Any = None
) -> keras.Model:  # fmt: skip
    """Return two convolutions with BatchNorm and two layers with dropout, for images of shape (28, 28, 1).

    Strides instead of pooling, which takes a third of the time on a CPU. With ten classes it has 103,242 parameters.

    Args:
        classes: number of classes.
        dropout: share of hidden units that are dropped.
        optimizer: as to `compile`.
        loss: as to `compile`; None: cross-entropy of logits and whole-numbered labels.

    Example:
        >>> small_cnn().count_params()
        103242
    """
    layers = keras.layers
    model = keras.Sequential([
        layers.Input((28, 28, 1)),
        layers.Conv2D(8, 5, strides=2, padding="same"), layers.BatchNormalization(), layers.ReLU(),
        layers.Conv2D(16, 3, strides=2, padding="same"), layers.BatchNormalization(), layers.ReLU(),
        layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dropout(dropout), layers.Dense(classes),
    ])  # fmt: skip
    return _compiled(model, optimizer, loss)


def _compiled(model: keras.Model, optimizer: Any, loss: Any) -> keras.Model:
    if loss is None:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")])
    return model
