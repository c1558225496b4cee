"""The rows of what a user passes to `keras.Model.fit`, one by one and by batches, or why it has none.

A fit is cut into stages by rows, so the data must be finite, of known length, and give the row at any
position. Arrays do, and so do `pybrush_keras.Source` and tf.data pipelines over arrays; generators do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from pybrush.errors import UnsupportedError
from pybrush.naming import Rows
from pybrush_keras.array_rows import ArrayRows
from pybrush_keras.source import Source
from pybrush_keras.tf_data import PipelineRows
from pybrush_keras.tf_steps import take_apart

_DEFAULT_BATCH_SIZE = 32  # Keras' own


class KerasRows(Rows, Protocol):
    """The rows of a Keras training set.

    `len(rows)` counts them, `rows[position]` is the raw sample there: (x,), (x, y) or (x, y, sample_weight)
    of NumPy values, a single number a 0-d value of its dtype.
    """

    @property
    def batch_size(self) -> int:
        """Rows in a batch."""

    @property
    def shuffle(self) -> bool | str:
        """True: rows are shuffled in every epoch. False: in order. "batch": in order, whole batches shuffled."""

    @property
    def drop_last(self) -> bool:
        """Whether a short last batch is dropped."""

    @property
    def whole_length(self) -> int:
        """Number of rows before `validation_split` took the last ones; `entries[:len(rows)]` cuts what names them."""

    @property
    def validation(self) -> tuple[Any, Any, Any] | None:
        """What `validation_data=` takes of the rows that `validation_split` took; None where it took none."""

    def __getitem__(self, position: int, /) -> tuple[Any, ...]:
        """Return the raw sample at a position."""

    def batch(self, positions: Sequence[int] | NDArray[np.int64]) -> tuple[Any, ...]:
        """Return the rows at some positions as the batch that Keras would train on, in their order."""

    def column(self, name: str) -> Sequence[Any] | None:
        """Return a column of the data that names its rows, one entry a row; None where there is none."""

    def positions_of(self, forget: Any) -> list[int] | None:
        """Return where other rows lie in these, if they are made of the same object; None where it is not certain."""


def rows_of(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int | None = None,
    shuffle: bool | str = True,
    validation_split: float = 0.0,
) -> KerasRows:
    """Return the rows of what was passed to `model.fit`.

    Args:
        x: arrays, tensors, nested structures of these, a `pybrush_keras.Source` or a finite tf.data pipeline.
        y: targets; None where x has them.
        sample_weight: weights; None where x has them.
        batch_size: rows in a batch, 32 if None; None where x has its own.
        shuffle: True, False or "batch". A tf.data pipeline decides this itself.
        validation_split: share of the rows that is only validated on; Keras does not use it beside `validation_data`.

    Raises:
        UnsupportedError: for data whose rows cannot be picked, with what to pass instead.
        ConfigurationError: for arrays of unequal lengths, and for a split that leaves one side empty.
    """
    kinds = _kinds(x)
    for refused, remedy in _REFUSED.items():
        if refused in kinds:
            raise _refusal(x, remedy)
    if ("tensorflow", "DatasetV2") in kinds:
        _check_complete(x, y, sample_weight, batch_size, validation_split)
        return PipelineRows(x)
    if isinstance(x, Source):
        _check_complete(x, y, sample_weight, batch_size, validation_split)
        return x.rows.shuffled_as(shuffle)
    if isinstance(x, keras.utils.PyDataset):
        raise _refusal(x, _AS_SOURCE)
    if x is None or isinstance(x, (str, bytes, Iterator)) or callable(x):
        raise _refusal(x, _AS_ARRAYS)
    return ArrayRows(
        x,
        y,
        sample_weight,
        batch_size=_DEFAULT_BATCH_SIZE if batch_size is None else batch_size,
        shuffle=shuffle,
        validation_split=validation_split,
    )


def rows_to_forget(forget: Any) -> KerasRows:
    """Return the rows of a forget set.

    Args:
        forget: x, (x, y) or (x, y, sample_weight) as for `fit`, a `pybrush_keras.Source`, or a tf.data pipeline with
            a batch step or without. A row is found by content only with all parts that it was trained with.

    Raises:
        UnsupportedError: for data whose rows cannot be picked, with what to pass instead.
        ConfigurationError: for arrays of unequal lengths.
    """
    if ("tensorflow", "DatasetV2") in _kinds(forget):
        return PipelineRows(forget if take_apart(forget).batch_size else forget.batch(1))
    parts = forget if isinstance(forget, tuple) else (forget,)
    if not 1 <= len(parts) <= 3:
        raise UnsupportedError(f"a forget set is x, (x, y) or (x, y, sample_weight); got a tuple of {len(parts)}.")
    return rows_of(*parts)


_AS_ARRAYS = "Pass arrays, pybrush_keras.Source(files, y, load=...), or a tf.data pipeline from from_tensor_slices."
_AS_SOURCE = (
    "It gives batches, and a stage needs single rows. Pass pybrush_keras.Source(entries, y, load=...), where load "
    "reads one row."
)
_REFUSED = {
    ("torch", "DataLoader"): "Pass the arrays it reads, or pybrush_keras.Source(entries, y, load=...) whose load "
    "reads one row of its data set.",
    ("grain", "MapDataset"): _AS_SOURCE,
    ("grain", "IterDataset"): _AS_SOURCE,
    ("grain", "DataLoader"): _AS_SOURCE,
    ("tensorflow", "DistributedDataset"): "Train on one device, with the tf.data pipeline itself.",
    ("tensorflow", "DistributedDatasetsFromFunction"): "Train on one device, with a tf.data pipeline.",
}
"""Top package and class -> what to do. By name, because none of these packages need be installed."""


def _check_complete(x: Any, y: Any, sample_weight: Any, batch_size: int | None, validation_split: float) -> None:
    """Refuse what belongs inside a data set rather than beside it."""
    beside = {"y": y, "sample_weight": sample_weight, "batch_size": batch_size, "validation_split": validation_split}
    for name, value in beside.items():
        if value is not None and (name != "validation_split" or value):
            remedy = "Pass validation_data=." if name == "validation_split" else f"Leave out {name}=: x has its own."
            raise UnsupportedError(f"{name} works with arrays alone; x is a {type(x).__name__}. {remedy}")


def _kinds(x: Any) -> set[tuple[str, str]]:
    return {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(x).__mro__}


def _refusal(x: Any, remedy: str) -> UnsupportedError:
    name = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
    return UnsupportedError(f"SISA picks the rows of each stage from the data, which a {name} cannot give. {remedy}")
