"""The random generators that a training in Keras draws from: seeding them, and leaving them as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from pybrush.hashing import u64, word
from pybrush_keras import _private


def seed_all(seed: int) -> None:
    """Seed Python, NumPy, the backend and Keras' own global generator from 64 bits."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (user code draws from the global generator)
    _private.seed_backend(seed)
    _set(_private.global_generator(), seed)


def seed_layers(model: Any, seed: int) -> None:
    """Give each seed generator of a model's layers (Dropout and the like) a seed of its own, from 64 bits."""
    for place, generator in enumerate(_private.seed_generators(model)):
        _set(generator, word(b"layer", u64(seed), u64(place)))


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Save the generators of Python, NumPy, the backend and Keras, and restore them at the end."""
    generator = _private.global_generator()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    own = keras.ops.convert_to_numpy(generator.state)
    with _private.kept_backend_randomness():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            generator.state.assign(own)


def _set(generator: Any, seed: int) -> None:
    # 31 bits, since the state is a pair of signed 32-bit integers on some backends.
    generator.state.assign(np.array([seed & 0x7FFFFFFF, 0]))
