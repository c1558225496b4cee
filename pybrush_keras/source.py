"""Indexed data for Keras: rows in memory or read one by one, with the ids, subjects and times that name them.

    source = Source(paths, labels, load=read_image, ids=paths, subjects=owners, batch_size=64)
    model.fit(source, epochs=5, callbacks=[SISA(ids="ids", subjects="subjects")])

It is a `keras.utils.PyDataset` too, so that fit without SISA, evaluate and predict take it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from pybrush.errors import ConfigurationError
from pybrush_keras.array_rows import ArrayRows, check_batches
from pybrush_keras.loaded_rows import LoadedRows

_COLUMNS = ("ids", "subjects", "times")


class Source(keras.utils.PyDataset):
    """Rows at known positions, in batches.

    `len(source)` counts batches and `source[i]` is batch i, as in every PyDataset, in data order: evaluate and
    predict always read them so. `source.workers = 4` reads batches in four threads.

    Args:
        x: arrays as for `model.fit`, or with `load` a sequence with one entry a row, such as paths of files.
        y: targets: an array or a nested structure of arrays, or None.
        sample_weight: weights, likewise.
        ids: one id a row, or None; `SISA(ids="ids")` takes them.
        subjects: whose each row is; `SISA(subjects="subjects")` takes them.
        times: the date of each row; `SISA(times="times")` takes them.
        load: turns one entry of x into an array, or a dictionary or tuple of arrays, of the same shape for every
            row. It must return the same for the same entry, so it must not draw random numbers: augment in the
            model, by layers such as keras.layers.RandomFlip.
        batch_size: rows in a batch.
        shuffle: whether fit trains on the rows in another order in every epoch; "batch" shuffles whole batches. Under
            PYBRUSH_NO_PATCH=1 call fit(source, shuffle=False) inside `with source.shuffled():`.

    Attributes:
        rows: the rows one by one, `pybrush_keras.rows.KerasRows`.

    Raises:
        ConfigurationError: where something has not one entry for each row, there are no rows, or a setting is wrong.
        UnsupportedError: for arrays that Keras does not take.

    Example:
        >>> source = Source(np.zeros((5, 2)), np.arange(5), ids=list("abcde"), batch_size=2)
        >>> len(source), source[2][1].tolist(), source.rows.column("ids")
        (3, [4], ['a', 'b', 'c', 'd', 'e'])
    """

    def __init__(  # noqa: PLR0913 (one argument for each thing that is known of a row)
        self,
        x: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        ids: Sequence[Any] | None = None,
        subjects: Sequence[Any] | None = None,
        times: Sequence[Any] | None = None,
        load: Callable[[Any], Any] | None = None,
        batch_size: int = 32,
        shuffle: bool | str = True,
    ) -> None:
        super().__init__()
        check_batches(batch_size, shuffle)
        held = ArrayRows(x, y, sample_weight) if load is None else LoadedRows(x, y, sample_weight, load)
        columns = dict(zip(_COLUMNS, (ids, subjects, times), strict=True))
        self.batch_size, self.shuffle = batch_size, shuffle
        self.rows = SourceRows(self, held, _checked(columns, len(held)), shuffle)
        self._order: NDArray[np.int64] | None = None
        self._shuffle_now: bool | str = False

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} batches; got index {index}.")
        order = np.arange(len(self.rows)) if self._order is None else self._order
        return self.rows.batch(order[index * self.batch_size : (index + 1) * self.batch_size])

    @contextmanager
    def shuffled(self, shuffle: bool | str = True) -> Iterator[None]:
        """Inside, every epoch has an order of its own, as the Source says; afterwards data order again.

        Args:
            shuffle: what `fit` was told: False keeps data order, "batch" shuffles whole batches.
        """
        self._shuffle_now = _combined(self.shuffle, shuffle)
        try:
            yield
        finally:
            self._shuffle_now, self._order = False, None

    def on_epoch_end(self) -> None:
        """Draw the next epoch's order inside `shuffled`; Keras calls this before the first epoch too.

        Not on_epoch_begin: threads read batches by then.
        """
        if self._shuffle_now:
            # From Python's generator, which keras.utils.set_random_seed seeds.
            self._order = _drawn(len(self.rows), self.batch_size, self._shuffle_now, random.getrandbits(64))


class SourceRows:
    """The rows of a Source.

    Attributes:
        source: the Source.
        held: the rows without their names.
        shuffle: True, False or "batch".
        drop_last: False: a short last batch is trained on.
        validation: None.
    """

    drop_last = False
    validation = None

    def __init__(
        self, source: Source, held: ArrayRows | LoadedRows, columns: dict[str, list[Any]], shuffle: bool | str
    ) -> None:
        self.source, self.held, self.shuffle = source, held, shuffle
        self._columns = columns

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        return self.held[position]

    @property
    def batch_size(self) -> int:
        """Rows in a batch."""
        return self.source.batch_size

    @property
    def whole_length(self) -> int:
        """Number of rows."""
        return len(self.held)

    def shuffled_as(self, shuffle: bool | str) -> SourceRows:
        """Return the rows with what `fit` was told too: False there keeps data order, "batch" shuffles batches."""
        return SourceRows(self.source, self.held, self._columns, _combined(self.source.shuffle, shuffle))

    def batch(self, positions: Sequence[int] | NDArray[np.int64]) -> tuple[Any, ...]:
        """Return the rows at some positions as one batch: (x,), (x, y) or (x, y, sample_weight), in their order."""
        return self.held.batch(positions)

    def column(self, name: str) -> Sequence[Any] | None:
        """Return "ids", "subjects" or "times" as passed, else a key of x; None where there is none."""
        return self._columns[name] if name in self._columns else self.held.column(name)

    def positions_of(self, forget: Any) -> list[int] | None:
        """Return where the rows of a forget set lie in these, if it is made of the same arrays or files.

        Args:
            forget: the rows of a forget set: of this Source, of one over views of its x, or of views of its arrays.

        Returns:
            Positions in the order of the forget set; None where this is not certain.
        """
        if isinstance(forget, SourceRows) and forget.source is self.source:
            return list(range(len(self)))
        return self.held.positions_of(forget.held if isinstance(forget, SourceRows) else forget)


def _checked(columns: dict[str, Sequence[Any] | None], length: int) -> dict[str, list[Any]]:
    """Return the columns that were passed, as lists."""
    listed = {
        name: entries.tolist() if hasattr(entries, "tolist") else list(entries)
        for name, entries in columns.items()
        if entries is not None
    }
    for name, entries in listed.items():
        if len(entries) != length:
            raise ConfigurationError(f"{name} needs one entry for each of the {length} rows; got {len(entries)}.")
    return listed


def _combined(source: bool | str, fit: bool | str) -> bool | str:
    """Return how rows are shuffled, by what a Source and what fit say."""
    if not source or not fit:
        return False
    return "batch" if "batch" in (source, fit) else True


def _drawn(length: int, batch_size: int, shuffle: bool | str, seed: int) -> NDArray[np.int64]:
    """Return an order of the rows for one epoch."""
    generator = np.random.default_rng(seed)
    if shuffle != "batch":
        return generator.permutation(length)
    # A short batch stays the last one: Keras cuts batches by their place.
    whole = np.arange(length - length % batch_size).reshape(-1, batch_size)
    return np.concatenate([generator.permutation(whole).reshape(-1), np.arange(whole.size, length)])
