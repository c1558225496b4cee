"""The arguments of `Model.fit`, as SISA keeps them for the stages and for later requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pybrush.errors import ConfigurationError, UnsupportedError
from pybrush.record.plan import OrderKind
from pybrush_keras.rows import KerasRows, rows_of


@dataclass(frozen=True)
class FitArguments:
    """What a user passes to fit; the names are those of `keras.Model.fit`.

    `callbacks` has no SISA callback in it.
    """

    x: Any = None
    y: Any = None
    batch_size: int | None = None
    epochs: int = 1
    verbose: Any = "auto"
    callbacks: tuple[Any, ...] = ()
    validation_split: float = 0.0
    validation_data: Any = None
    shuffle: Any = True
    class_weight: Mapping[int, float] | None = None
    sample_weight: Any = None
    initial_epoch: int = 0
    steps_per_epoch: int | None = None
    validation_steps: int | None = None
    validation_batch_size: int | None = None
    validation_freq: Any = 1

    def rows(self) -> KerasRows:
        """Return the rows that are trained on.

        Raises:
            UnsupportedError: for data that cannot be cut into stages, with what to pass instead.
        """
        split = 0.0 if self.validation_data is not None else self.validation_split
        return rows_of(self.x, self.y, self.sample_weight, self.batch_size, self.shuffle, split)

    def validation(self, rows: KerasRows) -> dict[str, Any]:
        """Return what each stage's fit is told about validation."""
        data = self.validation_data if self.validation_data is not None else rows.validation
        if data is None:
            return {}
        told = {"validation_data": data, "validation_freq": self.validation_freq}
        size = self.validation_batch_size
        if isinstance(data, (tuple, list)):
            size = size or rows.batch_size
        return {**told, "validation_steps": self.validation_steps, "validation_batch_size": size}

    def restored(self, semantic: Mapping[str, Any]) -> FitArguments:
        """Return these arguments with what a record's fingerprint says of a validation that steers the training."""
        held = semantic.get("validation")
        return self if held is None else replace(self, **{name: held[name] for name in STEERING})


STEERING = ("validation_freq", "validation_steps", "validation_batch_size")
"""Arguments that a record keeps where a callback may act on what is found in the validation."""


@dataclass(frozen=True)
class Settings:
    """How rows become batches: a record keeps it, and a request takes it from there.

    Attributes:
        batch_size: rows in a batch.
        shuffle: True, False or "batch": batches in another order each epoch, whose rows stay together.
        drop_last: whether a short last batch is dropped.
        class_weight: class -> weight of its rows in the loss.
    """

    batch_size: int
    shuffle: bool | str
    drop_last: bool
    class_weight: Mapping[int, float] | None

    @classmethod
    def of(cls, arguments: FitArguments, rows: KerasRows) -> Settings:
        """Return what a fit says."""
        return cls(rows.batch_size, rows.shuffle, rows.drop_last, arguments.class_weight)

    @classmethod
    def recorded(cls, plain: Mapping[str, Any]) -> Settings:
        """Return what `plain` wrote."""
        weights = plain["class_weight"]
        return cls(
            batch_size=plain["batch_size"],
            shuffle=plain["shuffle"],
            drop_last=plain["drop_last"],
            class_weight=None if weights is None else dict(weights),
        )

    @property
    def order(self) -> OrderKind:
        """The order of a record."""
        return "shuffled" if self.shuffle is True else "sequential"

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain JSON."""
        held = self.class_weight
        weights = None if held is None else sorted([int(kind), float(weight)] for kind, weight in held.items())
        own = {"batch_size": self.batch_size, "shuffle": self.shuffle, "drop_last": self.drop_last}
        return {**own, "class_weight": weights}


def fit_arguments(given: Mapping[str, Any], callbacks: Any) -> FitArguments:
    """Return the arguments of a call of fit.

    Args:
        given: by name, without callbacks.
        callbacks: the user's, without SISA.

    Raises:
        ConfigurationError: for arguments that fit does not have.
    """
    unknown = given.keys() - FitArguments.__dataclass_fields__.keys()
    if unknown:
        raise ConfigurationError(f"fit has no arguments {', '.join(sorted(unknown))}.")
    return FitArguments(**given, callbacks=tuple(callbacks))


def listed(callbacks: Any) -> list[Any]:
    """Return callbacks as a list; Keras takes a single one too.

    Raises:
        UnsupportedError: for a CallbackList, which is bound to one fit.
    """
    if callbacks is None:
        return []
    if type(callbacks).__name__ == "CallbackList":
        raise UnsupportedError("callbacks= is a CallbackList, which belongs to one fit; pass a list of callbacks.")
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
