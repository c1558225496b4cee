"""`replay(sisa, ...)`: stages of a record are trained again and compared with what is stored.

Nothing of the record changes, and model and callbacks are as before. Guide: docs/guarantees.md, "Verify, in three
depths".
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from pybrush import replay as core
from pybrush.learner import Horizon
from pybrush_keras import _private, checkpoints, patches
from pybrush_keras.given import Given, completed
from pybrush_keras.randomness import kept_randomness
from pybrush_keras.serving import arguments_of, learner_of, record_of, sources_of
from pybrush_keras.sisa import SISA

_LOGGERS = ("CSVLogger", "History", "ProgbarLogger", "RemoteMonitor", "TensorBoard")
"""Callbacks of Keras' own that only tell of a training."""


def replay(  # noqa: PLR0913 (one argument for each thing that fit is told)
    sisa: SISA,
    *,
    model: Any = None,
    x: Any = None,
    y: Any = None,
    sample_weight: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    callbacks: Any = None,
    verbose: Any = "auto",
    stages: core.Which = "touched",
    tolerance: core.Tolerance | None = None,
) -> core.Replay:
    """Train stages of the record again, each from its parent's stored state, and compare with what is stored.

    Model and data are given as to `sisa.unlearn`. What comes of the training is compared in memory and dropped;
    models are not saved and logging callbacks are left out meanwhile. Files that callbacks write by other means are
    written again, as in every training.

    Args:
        sisa: the SISA callback of the record.
        model: the model, compiled; None: the one that was fitted in this process.
        x: the training data, as fit takes it; None: that of the fit in this process.
        y: the targets.
        sample_weight: the weights of the rows.
        validation_split: as to fit.
        validation_data: as to fit.
        callbacks: as to fit, with or without SISA.
        verbose: as to fit.
        stages: "touched": those that the last request rebuilt, without a request the cheapest one; "all"; or
            (shard, slice) pairs, counted from 0.
        tolerance: how far numbers may be apart; None: `pybrush.Tolerance()`.

    Returns:
        The outcome of each stage, and by how much it differs.

    Raises:
        ConfigurationError: for stages that the record does not have.
        FingerprintError: where model or settings are not those of the record.
        MissingRowsError: where the data no longer holds a row of such a stage.
        PyBrushError: see `pybrush.errors`; record and user's objects are as before.

    Example:
        >>> replay(sisa, model=model, x=x, y=y).outcome  # doctest: +SKIP
        'bit_identical'
    """
    data = {"y": y, "sample_weight": sample_weight, "validation_data": validation_data, "callbacks": callbacks}
    now = Given(model, arguments_of(sisa, x, data, validation_split, verbose))
    given = completed(now, sisa.given)
    with kept_randomness(), patches.unsaved(given.model), _as_before(given):
        record = record_of(sisa)
        learner = learner_of(sisa, given, record)
        sources = sources_of(record, sisa, learner)
        # Only now: the callbacks that are left out belong to the fingerprint.
        learner.arguments = replace(learner.arguments, callbacks=_without_loggers(learner.arguments.callbacks))
        learner.around = _unrecorded_stage
        return core.replay(record, sources, stages, tolerance)


def _without_loggers(callbacks: Iterable[Any]) -> tuple[Any, ...]:
    own = {getattr(keras.callbacks, name, None) for name in _LOGGERS}
    return tuple(callback for callback in callbacks if type(callback) not in own)


@contextmanager
def _unrecorded_stage(model: Any, callbacks: tuple[Any, ...], horizon: Horizon) -> Iterator[None]:  # noqa: ARG001 (as in a fit)
    """Let a stage keep nothing: what saves the model has a folder of its own, which is dropped."""
    with tempfile.TemporaryDirectory() as scratch, checkpoints.in_scratch(callbacks, Path(scratch)):
        yield


@contextmanager
def _as_before(given: Given) -> Iterator[None]:
    """Let model and callbacks have what Keras' fit sets on them as they had it; the core puts back their state."""
    callbacks = () if given.arguments is None else given.arguments.callbacks
    places: list[tuple[Any, tuple[str, ...]]] = [(given.model, ("history", "stop_training"))]
    places += [(callback, tuple(_private.attributes_of_keras(callback))) for callback in callbacks]
    held = [
        (vars(owner), {name: vars(owner)[name] for name in names if name in vars(owner)}) for owner, names in places
    ]
    try:
        yield
    finally:
        for (attributes, before), (_, names) in zip(held, places, strict=True):
            for name in names:
                attributes.pop(name, None)
            attributes.update(before)
