"""Which classes of Keras and its backend are looked at in a way of their own, when user code is looked through."""

from __future__ import annotations

import hashlib
from typing import Any

import keras

from pybrush.reach import Kinds
from pybrush_keras import _private


def _bytes(variable: Any) -> bytes:
    data: bytes = keras.ops.convert_to_numpy(variable).tobytes()
    return data


def _digest(variable: Any) -> str:
    return hashlib.sha256(_bytes(variable)).hexdigest()


def _is_fitted(value: Any) -> bool:
    """Whether a preprocessing layer was adapted to rows."""
    return isinstance(value, keras.layers.Layer) and _private.was_adapted(value)


KINDS = Kinds(
    tensors={keras.Variable: _digest, **_private.backend_tensors()},
    generators={keras.random.SeedGenerator: lambda value: _bytes(value.state), **_private.backend_generators()},
    preparing=(keras.utils.PyDataset, keras.layers.Layer),
    closed=(keras.metrics.Metric, keras.optimizers.Optimizer, keras.callbacks.CallbackList),
    is_fitted=_is_fitted,
)
"""Variables, seed generators and data sets of Keras, tensors and generators of its backend."""
