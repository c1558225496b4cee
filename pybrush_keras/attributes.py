"""Attributes of the user's own layers and callbacks: which are Keras', and which refer to the model's parts.

What is stored of them, and what is refused, is the core's: `pybrush.attributes`. Layers of Keras itself keep their
state in variables.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import keras

from pybrush_keras import _private

REMEDY = (
    "Keep such state in variables (self.add_weight(..., trainable=False)), arrays or plain values, as attributes of "
    "the layer, model or callback."
)
"""Where users of Keras keep what a stage must store."""

_OWN_STATE = (
    *(keras.layers.Layer, keras.Variable, keras.metrics.Metric, keras.optimizers.Optimizer, keras.losses.Loss),
    *(keras.random.SeedGenerator, keras.callbacks.Callback, keras.KerasTensor),
)
"""Classes whose objects are parts of a model, or are looked at by themselves."""


@dataclass(frozen=True)
class KnownParts:
    """What the core must know of attributes in Keras."""

    def is_internal(self, owner: Any, name: str) -> bool:
        """Whether an attribute is Keras' own."""
        return name in _private.attributes_of_keras(owner)

    def is_part(self, value: Any) -> bool:
        """Whether a value is a part of a model or of its optimization."""
        return isinstance(value, _OWN_STATE)

    def holds_state(self, value: Any) -> bool:
        """Whether a value is a layer."""
        return isinstance(value, keras.layers.Layer)

    def is_trainable(self, value: Any) -> bool:
        """Whether a value is a tensor that is trained in its place."""
        return bool(getattr(value, "requires_grad", False))

    def address(self, value: Any) -> int | None:
        """Return where a tensor lies in memory; None, since arrays are looked at by the core."""
        return None

    def read(self, value: Any) -> Any:
        """Return Keras' own lists and dictionaries, which track what is put into them, as plain ones."""
        return _private.untracked(value)

    def compared(self, value: Any) -> Any:
        """Return what stands for an object of Keras, whose pickle holds the time."""
        return f"{type(value).__qualname__} {id(value)}" if isinstance(value, _OWN_STATE) else value

    def placed(self, value: Any, present: Any) -> Any:
        """Return a copy of a stored value."""
        return copy.deepcopy(value)


KNOWN = KnownParts()
