"""Every private name of Keras and of its backends that this package uses; tests/keras/test_private.py watches each.

Each part of the package has a section of its own here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.models.functional import Functional
from keras.src.saving import saving_lib, serialization_lib

# Copies of a model: the aggregate


def is_functional(model: Any) -> bool:
    """Whether a model is a graph of layers between inputs that it names."""
    return isinstance(model, Functional)


def compile_arguments(model: Any) -> dict[str, Any]:
    """Return what `keras.Model.compile` was called with, the objects themselves; empty where it was not called."""
    config = getattr(model, "_compile_config", None)
    return dict(config.config) if model.compiled and config is not None else {}


@contextmanager
def any_function() -> Iterator[None]:
    """Let lambdas be made again: they come from the user's own model in this process and from no file."""
    with serialization_lib.SafeModeScope(False):
        yield


def objects_shared() -> Any:
    """Return a context in which an object that a config names twice is one object."""
    return serialization_lib.ObjectSharingScope()


def made_by(tensor: Any) -> Any:
    """Return the layer or operation that a symbolic tensor came of."""
    return tensor._keras_history[0]


def all_layers(model: Any) -> list[Any]:
    """Return a model and every layer in it, each once."""
    found: list[Any] = model._flatten_layers()
    return found


def own_variables(layer: Any) -> list[Any]:
    """Return the variables that a layer holds itself, those of its seed generators last."""
    states = [generator.state for generator in layer._seed_generators]
    return [*layer._trainable_variables, *layer._non_trainable_variables, *states]


def layers_by_path(model: Any) -> dict[str, Any]:
    """Return a model and every layer in it by the path under which Keras would save it.

    A path is made of attributes and positions, so it is the same in a copy, whatever the names of layers are.
    """
    found: dict[str, Any] = {}
    _walk(model, "", found, set())
    return found


def _walk(part: Any, path: str, found: dict[str, Any], seen: set[int]) -> None:
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, keras.layers.Layer):
        found[path] = part
        children: Any = saving_lib._walk_saveable(part)
    elif isinstance(part, dict):
        children = enumerate(part.values())
    elif isinstance(part, (list, tuple)):
        children = enumerate(part)
    else:
        return
    for name, child in children:
        _walk(child, f"{path}/{name}", found, seen)


def ignore_training(layer: Any) -> None:
    """Let a layer of a functional model be called without the `training=` that the model is called with.

    Keras hands it to every layer, also over the `training=False` with which a layer was called when the graph was made.
    """
    layer._call_context_args = set()
