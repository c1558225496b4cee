"""What a training in Keras depends on: sources, architecture, optimizers, loss, data settings, callbacks.

Keras numbers layers as they are made in a process, so names that a configuration gives to layers stand here as the
layer's place. Rates and the like, which callbacks change, are part of the initial state and not listed.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import keras
import numpy as np

from pybrush.content import encode
from pybrush.errors import ContentError, FingerprintError
from pybrush.hashing import chained
from pybrush.names import Namer
from pybrush.record import Record
from pybrush.user_code import code_of, is_installed, plain_of, short_of, source_of, sources_of
from pybrush_keras import _private, state
from pybrush_keras.parts import losses_of, optimizers_of

_CHANGING = ("learning_rate", "name", "initial_scale", "dynamic_growth_steps")
"""Entries of an optimizer's configuration that are a name, or a value that callbacks change and a state holds."""


def semantic(model: Any, settings: Mapping[str, Any], callbacks: Iterable[Any]) -> dict[str, Any]:
    """Return the semantic fingerprint as plain JSON.

    Args:
        model: compiled and built.
        settings: batch size, order and weights, as the record keeps them.
        callbacks: the user's.
    """
    callbacks = list(callbacks)
    return {
        "backend": keras.backend.backend(),
        "source": sources(model, callbacks),
        "layers": [_layer(layer) for layer in _private.layers_of(model)],
        "architecture": architecture(model),
        "parameters": [[state.name_of(v), v.dtype, *map(int, v.shape)] for v in model.variables],
        "optimization": [_optimizer(optimizer) for optimizer in optimizers_of(model)],
        "loss": loss(model),
        "loader": dict(settings),
        "callbacks": [name for name, _ in state.stateful_callbacks(callbacks)],
    }


def check_backend(record: Record) -> None:
    """Refuse a record that was made on another backend, which is another training and no mere rounding.

    Raises:
        FingerprintError: saying how to start the process.
    """
    recorded, now = record.plan.semantic["backend"], keras.backend.backend()
    if recorded != now:
        raise FingerprintError(
            f"{record.folder} was trained on Keras' {recorded} backend and this process has {now}, which draws other "
            f"random numbers: a stage that is trained here is not what would have been trained there. Start Python "
            f"with KERAS_BACKEND={recorded}."
        )


def environment(model: Any) -> dict[str, Any]:
    """Return versions, device, threads and processor features, and how the model's step was compiled."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "keras": keras.__version__,
        "processor": platform.machine(),
        "compiled": [bool(model.jit_compile), bool(model.run_eagerly)],
        "layout": keras.config.image_data_format(),
        **_private.backend_environment(),
    }


def sources(model: Any, callbacks: Iterable[Any]) -> dict[str, str]:
    """Return the source text of the user's classes and functions, "unknown" where there is none."""
    owners = [*_private.layers_of(model), *optimizers_of(model), *losses_of(model), *callbacks]
    found = sources_of(base for owner in owners for base in type(owner).__mro__)
    held = (value for owner in owners for value in getattr(owner, "__dict__", {}).values())  # a loss may be a word
    for item in [*losses_of(model), *held]:
        code = code_of(item) if callable(item) else None
        if isinstance(code, (FunctionType, type)) and not is_installed(code):
            found[code.__qualname__] = source_of(code)
    return found


def runs_user_code(model: Any, callbacks: Iterable[Any]) -> bool:
    """Whether something of the user's own takes part in training, which a compiled step may hold on to."""
    given = _private.compile_arguments(model)
    metrics = keras.tree.flatten([given.get("metrics"), given.get("weighted_metrics")])
    own = (not is_installed(code_of(metric)) for metric in metrics if callable(metric))
    return any(own) or bool(sources(model, callbacks))


def architecture(model: Any) -> Any:
    """Return a model's configuration with the places of layers for their names; the class alone where it has none."""
    try:
        config = model.get_config()
    except (NotImplementedError, TypeError, ValueError):  # a subclass may have none
        return type(model).__qualname__
    names = {layer.name: f"<{place}>" for place, layer in enumerate(_private.layers_of(model))}
    return short_of(plain_of(_renamed(config, names)))


def loss(model: Any) -> Any:
    """Return the loss and its weights, as plain JSON."""
    given = _private.compile_arguments(model)
    return {name: plain_of(_serialized(given.get(name))) for name in ("loss", "loss_weights")}


def validation_digest(data: Any, namer: Namer) -> str:
    """Return a keyed digest of validation data, for trainings that something in it steers.

    Raises:
        ContentError: where it is not the same when it is read again, or a batch has no canonical encoding.
    """
    digests = namer.contents(map(encode, _batches(data)))
    if not isinstance(data, (tuple, list)) and not np.array_equal(digests, namer.contents(map(encode, _batches(data)))):
        raise ContentError(
            "validation data steers this training (EarlyStopping, ReduceLROnPlateau or a callback of your own), but "
            "its batches differ when they are read again (shuffled, or augmented?). Pass it in a fixed order, as it is."
        )
    return chained("pybrush-meaning", digests.tobytes()).hex()


def _batches(data: Any) -> Iterator[Any]:
    """Return validation data as batches of NumPy arrays."""
    if isinstance(data, (tuple, list)):
        yield _numpy(tuple(data))
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        yield from (_numpy(data[place]) for place in range(len(data)))
    elif hasattr(data, "cardinality") and int(data.cardinality()) >= 0:
        yield from map(_numpy, data)
    else:
        raise ContentError(
            "validation data steers this training (EarlyStopping, ReduceLROnPlateau or a callback of your own), so it "
            f"must be arrays or a finite data set that can be read again; got {type(data).__name__}."
        )


def _numpy(batch: Any) -> Any:
    kept = (str, type(None))  # validation rows without weights have None for them
    return keras.tree.map_structure(lambda v: v if isinstance(v, kept) else keras.ops.convert_to_numpy(v), batch)


def _layer(layer: Any) -> list[Any]:
    return [type(layer).__qualname__, layer.dtype_policy.name]


def _optimizer(optimizer: Any) -> dict[str, Any]:
    inner = _private.own_optimizer(optimizer)
    config = {name: value for name, value in inner.get_config().items() if name not in _CHANGING}
    schedule = _private.schedule_of(inner)
    if schedule is not None:
        config["schedule"] = [type(schedule).__qualname__, schedule.get_config()]
    scaled = {} if inner is optimizer else {"scaled": type(optimizer).__qualname__}
    return {"class": type(inner).__qualname__, **plain_of(config), **scaled}


def _serialized(item: Any) -> Any:
    if item is None or isinstance(item, (str, int, float)):
        return item
    if isinstance(item, dict):
        return {name: _serialized(value) for name, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [_serialized(value) for value in item]
    if hasattr(item, "get_config"):
        told = {**item.get_config(), **_private.loss_settings(item)}
        config = {name: value for name, value in told.items() if name != "name"}  # an automatic one
        return [type(item).__qualname__, config]
    return item


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return a configuration in which the names of layers are others, and no automatic name is left."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            history = value["config"]["keras_history"]
            return [names.get(history[0], history[0]), *history[1:]]
        return {key: _renamed(item, names) for key, item in value.items() if key != "shared_object_id"}
    if isinstance(value, (list, tuple)):
        return [_renamed(item, names) for item in value]
    if isinstance(value, str):
        return names.get(value, value)
    return value
