"""What a training is made of besides its data: layers, optimizers, losses and metrics, and the state they keep.

Classes of the user's own may keep state in any attribute (`pybrush_keras.attributes`). Those of Keras keep it in
variables, and in numbers that callbacks change: a rate, a clip norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras

from pybrush.attributes import inside
from pybrush.user_code import is_installed
from pybrush_keras import _private

Numbers = dict[str, float | None]

Part = tuple[str, Any]
"""Place in the model and kind, and the object."""

_DRAWN = ("built", "seed")
"""Attributes that say how an object was made: a seed is drawn where none is given, and stands in a variable."""


_NUMBER = (int, float, type(None))
"""None stands where a number may: a clip norm that is not used."""


def own_parts(model: Any) -> Iterator[Part]:
    """Return the parts whose classes are the user's own, the model first if it is one."""
    return ((place, part) for place, part in _parts(model) if not is_installed(type(part)))


def numbers(model: Any) -> list[Numbers]:
    """Return the numbers that Keras' own parts hold as attributes, part by part."""
    return [_numbers(part) for part in _of_keras(model)]


def write_numbers(model: Any, stored: list[Numbers]) -> None:
    """Give Keras' own parts the numbers that `numbers` returned."""
    for part, held in zip(_of_keras(model), stored, strict=True):
        for name, value in held.items():
            present = vars(part).get(name)
            if present != value and isinstance(present, _NUMBER):  # not what was made since where nothing was
                setattr(part, name, value)


def kept_settings(model: Any) -> dict[str, str]:
    """Return what a stage must leave as it is: schedules, and what metrics hold after they were reset."""
    found = {}
    for place, optimizer in _named("optimizer", optimizers_of(model)):
        schedule = _private.schedule_of(_private.own_optimizer(optimizer))
        found[f"{place}.learning_rate"] = repr(schedule and (type(schedule).__qualname__, schedule.get_config()))
    model.reset_metrics()  # as in each epoch; one that keeps something goes on from stage to stage
    for place, metric in _named("metric", model.metrics):
        if not is_installed(type(metric)):
            found[place] = repr([keras.ops.convert_to_numpy(variable).tobytes() for variable in metric.variables])
    return found


def optimizers_of(model: Any) -> list[Any]:
    """Return the optimizers of a model: that of compile, then those that it keeps as attributes for its train_step."""
    return _held(model, [model.optimizer], keras.optimizers.Optimizer)


def losses_of(model: Any) -> list[Any]:
    """Return the losses of a model: those of compile, also functions and words, then those that it holds."""
    return _held(model, keras.tree.flatten(_private.compile_arguments(model).get("loss")), keras.losses.Loss)


def _held(model: Any, compiled: Iterable[Any], kind: type) -> list[Any]:
    held = (item for _, value in sorted(vars(model).items()) for item in [value, *inside(value)])
    found = [*(item for item in compiled if item is not None), *(item for item in held if isinstance(item, kind))]
    return list({id(item): item for item in found}.values())


def _parts(model: Any) -> Iterator[Part]:
    yield from _named("layer", _private.layers_of(model))
    yield from _named("optimizer", optimizers_of(model))
    yield from _named("loss", (loss for loss in losses_of(model) if isinstance(loss, keras.losses.Loss)))


def _of_keras(model: Any) -> list[Any]:
    found = [part for _, part in _parts(model) if is_installed(type(part))]
    return found + [_private.own_optimizer(part) for part in found if hasattr(part, "inner_optimizer")]


def _numbers(part: Any) -> Numbers:
    left = {*_DRAWN, *(_private.internal_attributes() if isinstance(part, keras.layers.Layer) else ())}
    return {name: value for name, value in vars(part).items() if isinstance(value, _NUMBER) and name not in left}


def _named(kind: str, parts: Iterable[Any]) -> Iterator[Part]:
    return ((f"{kind} {place}, {type(part).__qualname__}", part) for place, part in enumerate(parts))
