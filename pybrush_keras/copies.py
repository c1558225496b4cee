"""Copies of the user's model, one for each constituent: the same structure and preprocessing, other values.

A copy is made as Keras itself would load the model, from `get_config()`, so that what can be copied can be saved, and a
model that cannot be copied is refused before anything is trained (`check_copyable`).
"""

from __future__ import annotations

import inspect
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from numpy.typing import NDArray

from pybrush.errors import ConfigurationError, UnsupportedError
from pybrush_keras import _private

Arrays = Sequence[NDArray[Any]]
"""One array for each of `model.variables`, in that order; one of bfloat16 comes in that type or in float32."""

_KERAS_OWN = ("name", "trainable", "dtype")

_FROM_CONFIG = (keras.layers.Layer.from_config.__func__, keras.Model.from_config.__func__)

_OWN_CONFIG = (
    "Give the class get_config(), which returns the arguments of __init__ (and from_config() where one of them is an "
    "object of its own), as Keras asks of a model that is saved."
)


def check_copyable(model: Any, example: Any = None) -> None:
    """Refuse a model of which no copy can be made, before it is trained; it is not changed.

    Args:
        model: the user's model. Of one without variables yet, its config alone is tried out.
        example: a batch of inputs, see `inputs_of`.

    Raises:
        UnsupportedError: naming get_config.
    """
    if model.built:
        _paired(model, copied(model, example))
    else:
        _made_again(model)


def copied(model: Any, example: Any = None) -> Any:
    """Return a model of the same structure with variables of its own, not compiled and never trained.

    Args:
        model: the user's model, which is not changed.
        example: a batch of inputs, see `inputs_of`.

    Raises:
        ConfigurationError: where the model has no variables yet.
        UnsupportedError: where it cannot be copied.
    """
    _check_built(model)
    copy = _made_again(model)
    copy(inputs_of(model, example), training=False)  # builds what its class builds in the first call
    return copy


def filled(model: Any, arrays: Arrays, example: Any = None) -> Any:
    """Return a copy of a model that is one constituent, in the user's class and not compiled.

    Args:
        model: the user's model, which is not changed.
        arrays: the constituent.
        example: a batch of inputs, see `inputs_of`.

    Raises:
        ConfigurationError: where the model has other variables than the record.
        UnsupportedError: where it cannot be copied.
    """
    copy = copied(model, example)
    pairs = _paired(model, copy)
    _check_fit(model, arrays)
    for source, target in pairs.layers:
        _hand_over(source, target)
    for position, variable in enumerate(pairs.variables):
        variable.assign(arrays[position])
    for _, target in pairs.layers:
        if _keeps_more(target):
            _hand_over(target, target)  # some layers derive from their variables what they compute with
    return copy


def inputs_of(model: Any, example: Any = None) -> Any:
    """Return new symbolic inputs of a model, in the structure in which it takes them.

    Args:
        model: a model with variables.
        example: a batch of inputs. It is needed for a subclass of keras.Model whose inputs are no floating numbers:
            Keras remembers their shapes alone.

    Raises:
        UnsupportedError: where the model does not tell what it was called with.
    """
    if _private.is_functional(model):
        return keras.tree.map_structure(_input_like, model.input)
    if isinstance(model, keras.Sequential) and model.inputs:
        return _input_like(model.inputs[0])
    if isinstance(example, dict):
        return {name: _input_of_array(array, name) for name, array in example.items()}
    if example is not None:
        return keras.tree.map_structure(_input_of_array, example)
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        raise UnsupportedError(
            f"{type(model).__name__} does not tell the shape of its inputs: pass them in one argument of call(), as "
            "fit does, and call the model once before."
        )
    return _inputs_of_shapes(shapes, model.input_dtype)


def _input_like(tensor: Any) -> Any:
    """Return a new input like a symbolic one, with its name and all of its options."""
    layer = _private.made_by(tensor)
    if isinstance(layer, keras.layers.InputLayer):
        return keras.layers.InputLayer.from_config(layer.get_config()).output
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)


def _input_of_array(array: Any, name: str | None = None) -> Any:
    dtype = keras.backend.standardize_dtype(array.dtype)
    return keras.Input(shape=tuple(array.shape)[1:], dtype=dtype, name=name)


def _inputs_of_shapes(shapes: Any, dtype: str, name: str | None = None) -> Any:
    if isinstance(shapes, dict):
        return {key: _inputs_of_shapes(shape, dtype, key) for key, shape in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        # Half precision would round what the copy is to cast itself.
        wide = "float64" if dtype == "float64" else "float32"
        return keras.Input(shape=tuple(shapes)[1:], dtype=wide, name=name)
    return [_inputs_of_shapes(shape, dtype) for shape in shapes]


# Making


def _check_built(model: Any) -> None:
    if not model.built:
        raise ConfigurationError(
            f"{model.name} has no variables yet, so a constituent has no place in it. Call it once on a batch, or "
            "build it: model.build(input_shape)."
        )


def _made_again(model: Any) -> Any:
    """Return a model from the config of another."""
    kind = type(model)
    _check_recorded(model)
    try:
        with _private.objects_shared():
            config = model.get_config()
        described = {
            "module": kind.__module__,
            "class_name": kind.__name__,
            "config": config,
            "registered_name": keras.saving.get_registered_name(kind),
        }
        if kind.build_from_config is not keras.Model.build_from_config and model.built:
            described["build_config"] = model.get_build_config()  # builds in a way of its own; others are called
        with _as_before(model), _private.objects_shared():
            return keras.saving.deserialize_keras_object(described, custom_objects=_classes_of(model), safe_mode=False)
    except (NotImplementedError, TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise _not_copyable(model, f"Keras could not make it again ({error})") from error


def _check_recorded(model: Any) -> None:
    """Refuse classes of models whose config holds defaults in place of what they were made with."""
    for layer in _private.layers_of(model):
        if _private.records_defaults_alone(layer):
            taken = list(inspect.signature(type(layer).__init__).parameters.values())[1:]
            own = [p.name for p in taken if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
            lost = [name for name in own if name not in _KERAS_OWN]
            if lost:
                raise _not_copyable(model, f"Keras does not record {', '.join(lost)} of {type(layer).__name__}")


def _not_copyable(model: Any, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"no copy of {type(model).__name__} can be made, so its constituents cannot predict together: {why}. "
        f"{_OWN_CONFIG}"
    )


@contextmanager
def _as_before(model: Any) -> Iterator[None]:
    """Make things in the precision of a model, and leave the process as it was.

    Keras draws the seeds of layers that have none from Python's generator.
    """
    draws, policy = random.getstate(), keras.config.dtype_policy()
    keras.config.set_dtype_policy(model.dtype_policy)
    try:
        with warnings.catch_warnings():
            # Said of each layer of the user's own that is built by its first call, which follows here.
            warnings.filterwarnings("ignore", message=r"`build\(\)` was called on layer")
            yield
    finally:
        keras.config.set_dtype_policy(policy)
        random.setstate(draws)


def _classes_of(model: Any) -> dict[str, Any]:
    """Return what makes classes and functions in a model that are not Keras' own, by their names in its config."""
    found: dict[str, Any] = {}
    for layer in _private.layers_of(model):
        for value in (layer, *vars(layer).values()):
            made = value if callable(value) and hasattr(value, "__name__") else type(value)
            if made is not type(value) or hasattr(value, "get_config"):
                name = keras.saving.get_registered_name(made)
                if not str(getattr(made, "__module__", "")).startswith("keras."):
                    found[name] = _Maker(made) if made is type(layer) else made
    return found


class _Maker:
    """Stands for a class of layers whose `__init__` takes no arguments of Keras' own.

    Keras puts name, precision and whether it is trained into the config of each layer, also where the class cannot be
    made with them.
    """

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def from_config(self, config: dict[str, Any]) -> Any:
        """Make one, with what its class takes."""
        taken = inspect.signature(self.kind.__init__).parameters
        if self.kind.from_config.__func__ in _FROM_CONFIG and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            config = {name: value for name, value in config.items() if name in taken or name not in _KERAS_OWN}
        return self.kind.from_config(config)


# Pairing


class _Pairs:
    """Which layer and which variable of a copy stands for which of the model.

    Attributes:
        layers: (of the model, of the copy).
        variables: of the copy, in the order of the model's variables.
    """

    def __init__(self, layers: list[tuple[Any, Any]], variables: list[Any]) -> None:
        self.layers, self.variables = layers, variables


def _paired(model: Any, copy: Any) -> _Pairs:
    """Pair the parts of a model and of its copy by where they lie, since names count up within a process.

    Raises:
        UnsupportedError: where the copy has other parts.
    """
    own, others = _private.layers_by_path(model), _private.layers_by_path(copy)
    stand_ins: dict[int, Any] = {}
    layers = []
    for path, layer in own.items():
        other = others.get(path)
        if other is None or type(other) is not type(layer):
            raise _not_copyable(model, f"a copy from its config has no {type(layer).__name__} at {path or 'the top'}")
        layers.append((layer, other))
        if other.dtype_policy.name != layer.dtype_policy.name:
            raise _not_copyable(model, f"a copy from its config computes {layer.name} in {other.dtype_policy.name}")
        mine, theirs = _private.own_variables(layer), _private.own_variables(other)
        if [_kind_of(variable) for variable in mine] != [_kind_of(variable) for variable in theirs]:
            raise _not_copyable(model, f"a copy from its config has other variables in {layer.name}")
        stand_ins |= {id(variable): theirs[position] for position, variable in enumerate(mine)}
    missing = [variable.path for variable in model.variables if id(variable) not in stand_ins]
    if missing or len(copy.variables) != len(model.variables):
        raise _not_copyable(
            model, f"a copy from its config has {len(copy.variables)} variables, not {len(model.variables)}"
        )
    return _Pairs(layers, [stand_ins[id(variable)] for variable in model.variables])


def _kind_of(variable: Any) -> tuple[tuple[int, ...], str]:
    return tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype)


def _check_fit(model: Any, arrays: Arrays) -> None:
    """Refuse a constituent of another model."""
    own = [_kind_of(variable) for variable in model.variables]
    stored: list[Any] = [(tuple(array.shape), str(array.dtype)) for array in arrays]
    for position, (_, dtype) in enumerate(own[: len(stored)]):
        if dtype == "bfloat16" and stored[position][1] == "float32":
            stored[position] = (stored[position][0], dtype)
    if own != stored:
        raise ConfigurationError(
            f"the model has other variables than the record ({_first_difference(own, stored)}); build it as it was "
            "trained."
        )


def _first_difference(own: list[Any], stored: list[Any]) -> str:
    for position, (mine, theirs) in enumerate(zip(own, stored, strict=False)):
        if mine != theirs:
            return f"at position {position} {mine}, recorded {theirs}"
    return f"{len(own)}, recorded {len(stored)}"


def _keeps_more(layer: Any) -> bool:
    """Whether a layer saves more than its variables, or makes something of them when it is loaded."""
    base = keras.layers.Layer
    return (type(layer).save_own_variables, type(layer).load_own_variables) != (
        base.save_own_variables,
        base.load_own_variables,
    )


def _hand_over(source: Any, target: Any) -> None:
    """Give one layer what another would save beside variables: what it learned before the training, as vocabularies."""
    if _keeps_more(source):
        store: dict[str, Any] = {}
        source.save_own_variables(store)
        target.load_own_variables(store)
    if source is not target and hasattr(source, "save_assets"):
        with tempfile.TemporaryDirectory(prefix="pybrush-") as folder:
            source.save_assets(folder)
            target.load_assets(folder)
