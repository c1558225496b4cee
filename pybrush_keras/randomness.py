"""The random generators that a training in Keras draws from, beside those of Python and NumPy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from pybrush.hashing import u64, word
from pybrush.randomness import Randomness
from pybrush_keras import _private


def _seed(seed: int) -> None:
    _private.seed_backend(seed)
    _set(_private.global_generator(), seed)


def _seed_epoch(seed: int) -> None:
    # The random operations of a compiled step begin anew with TensorFlow's seed: each epoch would draw the same.
    if keras.backend.backend() != "tensorflow":
        _private.seed_backend(seed)
    _set(_private.global_generator(), seed)


def _read() -> Any:
    return keras.ops.convert_to_numpy(_private.global_generator().state), _private.backend_randomness()


def _write(state: Any) -> None:
    own, backend = state
    _private.global_generator().state.assign(own)
    _private.restore_backend_randomness(backend)


RANDOMNESS = Randomness("keras", _seed, _read, _write)
"""What user code in Keras draws from: the backend's generators, and the one of `keras.random`."""

seed_all, kept_randomness = RANDOMNESS.seed_all, RANDOMNESS.kept
seed_epoch = Randomness("keras", _seed_epoch, _read, _write).seed_all


def seed_layers(model: Any, seed: int) -> None:
    """Give each seed generator of a model's layers (Dropout and the like) a seed of its own, from 64 bits."""
    for place, generator in enumerate(_private.seed_generators(model)):
        _set(generator, word(b"layer", u64(seed), u64(place)))


def _set(generator: Any, seed: int) -> None:
    # 31 bits, since the state is a pair of signed 32-bit integers on some backends.
    generator.state.assign(np.array([seed & 0x7FFFFFFF, 0]))
