"""The full state of a Keras model under training, as one typed tree, and back.

More than `get_weights()`: seed generators, the optimizer's variables, `trainable` flags, plain attributes of the
user's own layers and callbacks. Variables stand in the order of `model.variables`: Keras' automatic names count up
within a process. Guide: docs/pitfalls.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from pybrush.attributes import plain_attributes, write_attributes
from pybrush.errors import FingerprintError, TrainingError
from pybrush_keras import _private
from pybrush_keras.attributes import KnownParts, known_parts
from pybrush_keras.parts import numbers, optimizers_of, own_parts, write_numbers

Tree = dict[str, Any]
Named = list[list[Any]]
"""Name and value of each of some variables."""

_STATELESS = {
    *("SISA", "History", "ProgbarLogger", "ModelCheckpoint", "BackupAndRestore", "CallbackList"),
    *("TensorBoard", "CSVLogger", "RemoteMonitor", "TerminateOnNaN"),
}
"""Callbacks that hold no training state, by the name of a class of Keras or PyBrush in their ancestry."""


def read_model(model: Any) -> Tree:
    """Return variables and settings of a model that is built."""
    return {
        "variables": read_variables(model.variables),
        "buffers": _private.buffers(model),
        "settings": read_settings(model),
    }


def write_model(model: Any, tree: Tree) -> None:
    """Put a model into the state that `read_model` returned, in place.

    Raises:
        FingerprintError: where its variables are others.
    """
    check_same(model.variables, tree["variables"])
    write_variables(model.variables, tree["variables"])
    _private.write_buffers(model, tree["buffers"])
    if write_settings(model, tree["settings"]):
        model.make_train_function(force=True)  # the compiled step holds on to what was trainable


def read_settings(model: Any) -> Tree:
    """Return flags, attributes and numbers of a model's parts."""
    return {
        "trainable": [bool(layer.trainable) for layer in _private.layers_of(model)],
        "attributes": read_attributes(own_parts(model), known_parts(model)),
        "numbers": numbers(model),
    }


def write_settings(model: Any, tree: Tree) -> bool:
    """Put settings back, and say whether other parts are trainable than before."""
    layers = _private.layers_of(model)
    changed: bool = [bool(layer.trainable) for layer in layers] != tree["trainable"]
    if changed:
        for layer, trainable in zip(layers, tree["trainable"], strict=True):
            layer.trainable = trainable
    write_attributes_of(own_parts(model), tree["attributes"], known_parts(model))
    write_numbers(model, tree["numbers"])
    return changed


@contextmanager
def set_as(model: Any, tree: Tree | None) -> Iterator[None]:
    """Let a model have the settings of a recorded state, then its own again; a model of other parts keeps its own."""
    held = read_settings(model)
    if tree is None or _shape(held) != _shape(tree["settings"]):
        yield
        return
    write_settings(model, tree["settings"])
    try:
        yield
    finally:
        write_settings(model, held)


def _shape(settings: Tree) -> Any:
    return len(settings["trainable"]), list(settings["attributes"]), [list(held) for held in settings["numbers"]]


def read_variables(variables: Iterable[Any]) -> Named:
    """Return name and value of each variable; NumPy has no bfloat16, so its bits stand for it."""
    return [[name_of(variable), _plain(keras.ops.convert_to_numpy(variable))] for variable in variables]


def name_of(variable: Any) -> str:
    """Return a variable's name, the same in every process: Keras counts those that have none of their own."""
    return re.sub(r"^variable_\d+$", "variable", str(variable.name))


def write_variables(variables: Iterable[Any], stored: Named) -> None:
    """Assign stored values."""
    for variable, (_, value) in zip(variables, stored, strict=True):
        variable.assign(array_of(value))


def array_of(stored: Any) -> Any:
    """Return a stored value as an array that Keras takes."""
    if isinstance(stored, dict):
        return (stored["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    return stored


def check_same(variables: Iterable[Any], stored: Named) -> None:
    """Compare names and shapes of variables with stored ones.

    Raises:
        FingerprintError: with the first that differ.
    """
    own = [(name_of(variable), tuple(variable.shape)) for variable in variables]
    held = [(name, np.shape(value["bfloat16"] if isinstance(value, dict) else value)) for name, value in stored]
    if own != held:
        wrong = [f"{a} now, {b} recorded" for a, b in zip(own, held, strict=False) if a != b]
        raise FingerprintError(
            f"the model is not built as that of the record: {len(own)} variables now, {len(held)} recorded. "
            f"{'; '.join(wrong[:3])}. Build it as it was trained."
        )


def stateful_callbacks(callbacks: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Return the callbacks that may hold training state, each under a name that is the same in every process."""
    seen: dict[str, int] = {}
    for callback in callbacks:
        kind = type(callback)
        if {base.__name__ for base in kind.__mro__} & _STATELESS:
            continue
        number = seen[kind.__qualname__] = seen.get(kind.__qualname__, -1) + 1
        yield f"{kind.__qualname__}.{number}", callback


def read_attributes(owners: Iterable[tuple[str, Any]], known: KnownParts) -> Tree:
    """Return the plain attributes of layers or callbacks, by their names."""
    return {name: plain_attributes(owner, known) | _private.monitored(owner) for name, owner in owners}


def write_attributes_of(owners: Iterable[tuple[str, Any]], tree: Tree, known: KnownParts) -> None:
    """Give layers or callbacks the attributes that `read_attributes` returned.

    Raises:
        FingerprintError: where they are others.
    """
    named = dict(owners)
    if named.keys() != tree.keys():
        raise FingerprintError(
            f"the model and callbacks are not those of the record: recorded {', '.join(tree) or 'none'}, now "
            f"{', '.join(named) or 'none'}. Build the model, and pass the callbacks, as for the fit."
        )
    for name, owner in named.items():
        monitored = _private.monitored(owner).keys()
        write_attributes(owner, {key: value for key, value in tree[name].items() if key not in monitored}, known)
        for key in monitored:
            _private.monitor(owner, tree[name][key])


def stored(model: Any) -> list[Any]:
    """Return the variables whose values are part of each stage, or begin anew in each epoch."""
    optimizers = [variable for optimizer in optimizers_of(model) for variable in optimizer.variables]
    found = [*model.variables, *optimizers, *model.metrics_variables, _private.global_generator().state]
    return [*found, *(variable.value for variable in found), *_private.seed_generators(model)]


def read_optimizers(model: Any) -> list[Named]:
    """Return the variables of each optimizer; for their names, which hold automatic ones of layers, stand places."""
    return [
        [[str(place), value] for place, (_, value) in enumerate(read_variables(optimizer.variables))]
        for optimizer in optimizers_of(model)
    ]


def write_optimizers(model: Any, stored: list[Named]) -> None:
    """Put optimizers into a stored state; one that had no moments then gets those with which it would begin.

    Raises:
        TrainingError: where one has fewer than it had.
    """
    for optimizer, values in zip(optimizers_of(model), stored, strict=True):
        variables = optimizer.variables
        if len(variables) < len(values):
            raise TrainingError(
                f"training set the learning rate of {type(optimizer).__qualname__} to a schedule, which no stage can "
                "take back. Compile the model with the schedule, or let a callback set numbers."
            )
        if len(variables) > len(values):
            renew(optimizer)
        write_variables(variables[: len(values)], values)


def renew(optimizer: Any) -> None:
    """Let an optimizer's variables be as before its first step."""
    inner = _private.own_optimizer(optimizer)
    fresh = type(inner).from_config(inner.get_config())
    fresh.build(_private.trained_by(inner))
    write_variables(inner.variables, read_variables(fresh.variables))


def _plain(value: Any) -> Any:
    if value.dtype.name == "bfloat16":
        return {"bfloat16": np.array(value).view(np.uint16)}
    return np.array(value)
