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
from pybrush_keras.parts import losses_of, optimizers_of

REMEDY = (
    "Keep such state in variables (self.add_weight(..., trainable=False)), arrays or plain values, as attributes of "
    "the layer, model or callback."
)
"""Where users of Keras keep what a stage must store."""

_WITH_VARIABLES = (keras.layers.Layer, keras.metrics.Metric, keras.optimizers.Optimizer)
"""Classes whose objects keep their state in variables."""


@dataclass(frozen=True)
class KnownParts:
    """What the core must know of attributes in Keras, and of one model's parts.

    Attributes:
        identities: of the model's layers, variables, metrics, optimizers and seed generators: references to them are no
            state of their own.
    """

    identities: frozenset[int]

    def is_internal(self, owner: Any, name: str) -> bool:
        """Whether an attribute is Keras' own."""
        return name in _private.attributes_of_keras(owner)

    def is_part(self, value: Any) -> bool:
        """Whether a value is a part of the model or of its optimization, or holds no state."""
        return id(value) in self.identities or isinstance(value, (keras.KerasTensor, keras.callbacks.Callback))

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
        """Return the values of an object of Keras, whose pickle holds the time."""
        if isinstance(value, _WITH_VARIABLES):
            return [type(value).__qualname__, *map(keras.ops.convert_to_numpy, value.variables)]
        return keras.ops.convert_to_numpy(value) if isinstance(value, keras.Variable) else value

    def placed(self, value: Any, present: Any) -> Any:
        """Return a copy of a stored value."""
        return copy.deepcopy(value)


def known_parts(model: Any) -> KnownParts:
    """Return what is known of a model: its parts, and those of its optimization."""
    optimizers = optimizers_of(model)
    variables = [*model.variables, *model.metrics_variables, *(v for o in optimizers for v in o.variables)]
    parts = [*_private.layers_of(model), *optimizers, *map(_private.own_optimizer, optimizers), *losses_of(model)]
    return KnownParts(frozenset(map(id, [*parts, *model.metrics, *variables, *_private.seed_generators(model)])))
