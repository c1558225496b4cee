"""What predicts after a SISA fit: all constituents together, in the model's own output space.

`combine` is the arithmetic and `aggregate_model` makes the one model to deploy. That is a functional model of Keras'
own parts: copies of the user's model as layers, and `keras.ops`. So it is saved, loaded and exported as any other,
without this package.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from pybrush.errors import ConfigurationError
from pybrush_keras import _private
from pybrush_keras.copies import Arrays, filled, inputs_of
from pybrush_keras.spaces import Space

_log = logging.getLogger(__name__)

How = Literal["mean", "vote"]

_CHOICES = "Declare what the model returns: SISA(outputs='logits', 'log_probs', 'probs' or 'values')."

_EPSILONS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance from 1 to the next number of types by which probabilities are rounded visibly."""


def combine(outputs: list[Any], space: Space, how: How) -> Any:
    """Return the aggregate of the constituents' outputs, in the space that they are in.

    Logits and log-probabilities give the logarithm of the mean probability; probabilities and values their
    mean; a vote gives log((votes + 1/classes) / (constituents + 1)), or the same without the logarithm for
    probabilities. Ties of one constituent go to the lowest class.

    Args:
        outputs: one tensor for each constituent, symbolic or not, shape (..., classes), or any shape for values.
        space: what the outputs are.
        how: mean or vote.
    """
    own = keras.backend.standardize_dtype(outputs[0].dtype)
    # Half precision would round each of the steps.
    wide = "float64" if own == "float64" else "float32"
    stack = ops.stack([ops.cast(output, wide) for output in outputs])
    return ops.cast(_combined(stack, len(outputs), space, how), own)


def _combined(stack: Any, count: int, space: Space, how: How) -> Any:
    if space == "values" or (space == "probs" and how == "mean"):
        return ops.mean(stack, axis=0)
    if how == "vote":
        share = _shares(stack, count)
        return share if space == "probs" else ops.log(share)
    return ops.subtract(ops.logsumexp(ops.log_softmax(stack, axis=-1), axis=0), math.log(count))


def _shares(stack: Any, count: int) -> Any:
    """Return the smoothed share of votes of each class, over the first axis."""
    classes = stack.shape[-1]
    votes = ops.sum(ops.one_hot(ops.argmax(stack, axis=-1), classes, dtype=stack.dtype), axis=0)
    return ops.divide(ops.add(votes, 1 / classes), count + 1)


# What the declared space can mean


def check_rows(output: Any, space: Space) -> None:
    """Refuse outputs of a batch that the declared space cannot mean.

    Args:
        output: what the model returned, a tensor of the backend or a NumPy array; nothing symbolic.
        space: what it is said to be.

    Raises:
        ConfigurationError: naming the four spaces.
    """
    check_form(output, space)
    if space == "values" or 0 in tuple(output.shape):
        return
    if space == "probs" and not _sum_to_one(output):
        raise ConfigurationError(f"outputs='probs', and rows do not sum to 1. {_CHOICES}")
    if space != "probs" and _sum_to_one(output):
        raise ConfigurationError(f"outputs={space!r}, and every row is a probability vector already. {_CHOICES}")


def check_form(output: Any, space: Space) -> None:
    """Refuse outputs whose shape or type the declared space cannot mean; symbolic ones are known well enough.

    Raises:
        ConfigurationError: naming the four spaces.
    """
    if not hasattr(output, "shape") or not hasattr(output, "dtype"):
        raise ConfigurationError(
            f"the aggregate needs one tensor; the model returned {type(output).__name__}. {_CHOICES}"
        )
    if space == "values":
        return
    shape, dtype = tuple(output.shape), keras.backend.standardize_dtype(output.dtype)
    if len(shape) < 2 or shape[-1] in (1, None):
        raise ConfigurationError(f"outputs={space!r} needs classes on the last axis; got {shape}. {_CHOICES}")
    if not keras.backend.is_float_dtype(dtype):
        raise ConfigurationError(f"outputs={space!r} needs floating numbers; got {dtype}. {_CHOICES}")


def check_target(batch: Any, space: Space) -> None:
    """Refuse a batch whose targets are no classes, where the model is said to return classes.

    Rows of probabilities are classes too, and so are whole numbers in a floating type, which Keras takes as such.

    Args:
        batch: what a Keras batch is: (x,), (x, y) or (x, y, sample_weight).
        space: what the model returns.

    Raises:
        ConfigurationError: naming the four spaces.
    """
    if space == "values" or not isinstance(batch, (tuple, list)) or len(batch) < 2 or not hasattr(batch[1], "dtype"):
        return
    target, dtype = batch[1], keras.backend.standardize_dtype(batch[1].dtype)
    if not keras.backend.is_float_dtype(dtype) or (len(target.shape) > 1 and _sum_to_one(target)):
        return
    values = _wide_array(target)
    if not bool((values == np.floor(values)).all()):
        raise ConfigurationError(
            f"outputs={space!r} are classes, and the target is floating: {dtype}, shape {tuple(target.shape)}. "
            f"{_CHOICES}"
        )


def _sum_to_one(output: Any) -> bool:
    """Whether every row is a probability vector, within the rounding of its type."""
    values = _wide_array(output)
    if not bool((values >= 0).all()):
        return False
    tolerance = max(1e-4, _EPSILONS.get(keras.backend.standardize_dtype(output.dtype), 0.0))
    return bool((np.abs(values.sum(-1) - 1) <= tolerance).all())


def _wide_array(output: Any) -> NDArray[np.float64]:
    return np.asarray(ops.convert_to_numpy(output), dtype=np.float64)


# The model to deploy


def aggregate_model(model: Any, constituents: Mapping[int, Arrays], space: Space, how: How, example: Any = None) -> Any:
    """Return one Keras model that answers with all constituents: what a SISA record deploys.

    It is a functional model: saved, loaded, exported and evaluated as any other. A saved one is loaded without this
    package; a class of the user's own must be registered with Keras, or named in `custom_objects=`. It holds no
    optimizer, its constituents are not trainable and always run in inference mode. (Keras does not save the latter: a
    loaded one that is called with training=True drops out.) It is compiled with the losses and metrics of the model.

    Args:
        model: the user's model; it is copied for each constituent and not changed.
        constituents: by shard, one array for each of `model.variables`.
        space: what the model returns.
        how: mean or vote.
        example: a batch of inputs, see `pybrush_keras.copies.inputs_of`.

    Raises:
        ConfigurationError: where the model has other variables than the constituents, none yet, or returns what the
            space cannot mean.
        UnsupportedError: where the model cannot be copied.
    """
    members = [
        _member(model, arrays, f"constituent_{shard}", space, example) for shard, arrays in sorted(constituents.items())
    ]
    inputs = inputs_of(model, example)
    outputs = [member(inputs) for member in members]
    together = _combination(outputs, space, how)
    aggregate = keras.Model(inputs, together(outputs), name=f"{model.name}_aggregate")
    aggregate.trainable = False  # all the way down: BatchNormalization then normalizes by what it learned
    compile_alike(model, aggregate)
    return aggregate


def _member(model: Any, arrays: Arrays, name: str, space: Space, example: Any) -> Any:
    """Return one constituent in a model around it, whose name no other has, whatever the user's class calls itself."""
    copy = filled(model, arrays, example)
    inputs = inputs_of(model, example)
    output = copy(inputs, training=False)
    check_form(output, space)
    member = keras.Model(inputs, output, name=name)
    _private.ignore_training(member)
    return member


def _combination(outputs: list[Any], space: Space, how: How) -> Any:
    """Return the arithmetic in a model around it: Keras names operations, and "mean" may be the name of an input."""
    inputs = [keras.Input(batch_shape=output.shape, dtype=output.dtype) for output in outputs]
    return keras.Model(inputs, combine(inputs, space, how), name="constituents_combined")


# Compiling


def compile_alike(model: Any, other: Any) -> None:
    """Compile another model with the losses and metrics of one that is compiled, so that it can be evaluated."""
    arguments = _private.compile_arguments(model)
    if arguments.get("loss") is None and not arguments.get("metrics") and not arguments.get("weighted_metrics"):
        return
    try:
        measured = {name: _copied_metrics(arguments[name]) for name in ("metrics", "weighted_metrics")}
    except (TypeError, ValueError, NotImplementedError) as error:
        _log.warning(
            "a metric of %s cannot be copied (%s), so its aggregate is not compiled: give the metric get_config(), or "
            "compile the aggregate yourself to evaluate it.",
            *(model.name, error),
        )
        return
    same = {name: arguments[name] for name in ("run_eagerly", "steps_per_execution", "jit_compile")}
    alone = {name: _of_one_output(value) for name, value in measured.items()}
    # An optimizer without moments, since Keras loads no compiled model without one.
    other.compile(
        keras.optimizers.SGD(0.0),
        loss=_of_one_output(arguments["loss"]),
        loss_weights=_of_one_output(arguments["loss_weights"]),
        **alone,
        **same,
    )


def _of_one_output(value: Any) -> Any:
    """Return what is given for the only output by its name: that of the aggregate has another."""
    return next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value


def _copied_metrics(value: Any) -> Any:
    """Return metrics in the same structure, with variables of their own."""
    return _mapped(value, lambda metric: type(metric).from_config(metric.get_config()))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _mapped(part, change) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(part, change) for part in value]
    return change(value) if isinstance(value, keras.metrics.Metric) else value
