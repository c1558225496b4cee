"""What importing PyBrush changes in Keras, once: `keras.Model.fit` and what tells of a model or saves it.

A fit without a SISA callback goes straight through. PYBRUSH_NO_PATCH=1 leaves Keras alone; `sisa.fit(model, x, y)`
then does the same. Which constituent a model holds is kept beside the model, not on it.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any

import keras

from pybrush.errors import ConstituentWarning
from pybrush_keras.arguments import listed
from pybrush_keras.checkpoints import register
from pybrush_keras.source import Source


@dataclass(frozen=True)
class Mark:
    """Which stage's state a model holds.

    Attributes:
        sisa: the callback whose record the stage is in.
        key: of the stage.
        constituents: how many there are.
    """

    sisa: Any
    key: str
    constituents: int


_marks: weakref.WeakKeyDictionary[Any, Mark] = weakref.WeakKeyDictionary()
_in_stage: weakref.WeakKeyDictionary[Any, Mark] = weakref.WeakKeyDictionary()
_unsaved: weakref.WeakSet[Any] = weakref.WeakSet()
_fitted: weakref.WeakSet[Any] = weakref.WeakSet()
_fit: Callable[..., Any] = keras.Model.fit


def mark_of(model: Any) -> Mark | None:
    """Return which constituent a model holds, None where it holds none."""
    return _marks.get(model)


def set_mark(model: Any, mark: Mark | None) -> None:
    """Note which constituent a model holds."""
    if mark is None:
        _marks.pop(model, None)
    else:
        _marks[model] = mark


def was_fitted(model: Any) -> bool:
    """Whether a plain fit of this process trained a model, or its optimizer has taken steps."""
    optimizer = getattr(model, "optimizer", None)
    steps = 0 if optimizer is None else int(keras.ops.convert_to_numpy(optimizer.iterations))
    return model in _fitted or steps > 0


def original_fit(model: Any) -> Callable[..., Any]:
    """Return Keras' own fit of a model."""
    return _fit.__get__(model)  # type: ignore[no-any-return]


@contextmanager
def in_stage(model: Any, mark: Mark) -> Iterator[None]:
    """Let what is saved of a model meanwhile be registered with a stage."""
    _in_stage[model] = mark
    try:
        yield
    finally:
        _in_stage.pop(model, None)


@contextmanager
def unsaved(model: Any) -> Iterator[None]:
    """Let nothing be saved of a model meanwhile."""
    _unsaved.add(model)
    try:
        yield
    finally:
        _unsaved.discard(model)


@contextmanager
def as_before_on_error(model: Any) -> Iterator[None]:
    """Let a model's mark, history and flags be as they were if an error comes; its state is the learner's part."""
    mark, held = mark_of(model), {name: getattr(model, name, None) for name in ("history", "stop_training")}
    try:
        yield
    except BaseException:
        set_mark(model, mark)
        for name, value in held.items():
            setattr(model, name, value)
        raise


def attach(kind: Any) -> None:
    """Wrap the methods of `keras.Model`, once.

    Args:
        kind: the SISA callback's class.
    """
    if os.environ.get("PYBRUSH_NO_PATCH") or hasattr(keras.Model.fit, "is_pybrush"):
        return
    keras.Model.fit = _wrapped_fit(kind)
    for name in ("evaluate", "predict"):
        setattr(keras.Model, name, _warning(getattr(keras.Model, name), name))
    for name in ("save", "save_weights", "export"):
        setattr(keras.Model, name, _announcing(getattr(keras.Model, name)))


def _wrapped_fit(kind: Any) -> Callable[..., Any]:
    parameters = signature(_fit)

    @wraps(_fit)
    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(self, *args, **kwargs).arguments
        callbacks = listed(given.get("callbacks")) if _has(kind, given.get("callbacks")) else []
        own = [callback for callback in callbacks if isinstance(callback, kind)]
        if not own:
            set_mark(self, None)
            shuffles = isinstance(given.get("x"), Source) and given.get("shuffle", True)
            history = _fit_shuffled(given) if shuffles else _fit(self, *args, **kwargs)
            _fitted.add(self)  # a fit that was refused has trained nothing; the steps of a broken one are counted
            return history
        named = {name: value for name, value in given.items() if name not in ("self", "callbacks")}
        return own[0].start(self, named, callbacks)

    fit.is_pybrush = True  # type: ignore[attr-defined]
    return fit


def _fit_shuffled(given: dict[str, Any]) -> Any:
    """Fit on a Source in the orders that it says; Keras of its own would shuffle whole batches."""
    with given["x"].shuffled(given.get("shuffle", True)):
        return _fit(**{**given, "shuffle": False})


def _has(kind: Any, callbacks: Any) -> bool:
    """Whether callbacks as a user passes them, in whatever form, hold one of a kind."""
    inside = getattr(callbacks, "callbacks", callbacks)
    found = inside if isinstance(inside, (list, tuple)) else [inside]
    return any(isinstance(callback, kind) for callback in found)


def _warning(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        mark = mark_of(self)
        if mark is not None and mark.constituents > 1 and self not in _in_stage and self not in _unsaved:
            warnings.warn(
                f"{name}: this model holds one constituent of {mark.constituents}, not the model that predicts. "
                f"Record.open({str(mark.sisa.record)!r}).aggregate(model) is the model to deploy.",
                ConstituentWarning,
                stacklevel=2,
            )
        return original(self, *args, **kwargs)

    return method


def _announcing(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def method(self: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        if self in _unsaved:
            return None
        mark = _in_stage.get(self) or mark_of(self)
        record = None if mark is None else mark.sisa.recorded()
        if mark is not None and record is not None:
            register(record, filepath, mark.key)
        return original(self, filepath, *args, **kwargs)

    return method
