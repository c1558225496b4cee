"""Rows that are read one by one by a function of the user, such as images from files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import tree
from numpy.typing import NDArray

from pybrush.errors import ConfigurationError, UnsupportedError
from pybrush_keras.array_rows import ArrayRows, as_array, as_batch, as_fed, raw_value
from pybrush_keras.views import places_of


class LoadedRows:
    """Rows whose x is what `load` makes of an entry.

    Args:
        entries: one a row: a list, tuple, array or anything else that can be listed.
        y: targets: an array or a nested structure of arrays, or None.
        sample_weight: weights, likewise.
        load: turns an entry into an array, or a dictionary or tuple of arrays.

    Attributes:
        entries: as passed, or listed.
        load: as passed.

    Raises:
        ConfigurationError: where targets or weights have not one entry for each row, or there are no rows.
        UnsupportedError: for entries that cannot be listed, and targets that are no arrays.
    """

    def __init__(self, entries: Any, y: Any, sample_weight: Any, load: Callable[[Any], Any]) -> None:
        self.entries, self.load = _listed(entries), load
        # Entries take the place of x, so that lengths are compared and rows are found as those of arrays are.
        self._places = ArrayRows(np.arange(len(self.entries)), y, sample_weight)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        _, *rest = self._places[position]
        return tree.map_structure(raw_value, self._loaded(position)), *rest

    def batch(self, positions: Sequence[int] | NDArray[np.int64]) -> tuple[Any, ...]:
        """Return the rows at some positions as one batch: (x,), (x, y) or (x, y, sample_weight), in their order."""
        _, *rest = self._places.batch(positions)
        rows = [self._loaded(int(position)) for position in positions]
        try:
            x = tree.map_structure(lambda *leaves: np.stack(leaves), *rows)
        except ValueError as error:
            raise ConfigurationError(
                "load must return arrays of one structure and shape for every row of a batch, padded or resized where "
                f"they differ: {error}"
            ) from error
        return *as_batch((tree.map_structure(as_fed, x, x),)), *rest

    def column(self, name: str) -> Sequence[Any] | None:
        """Return None: what is read row by row has no columns."""
        del name
        return None

    def positions_of(self, forget: Any) -> list[int] | None:
        """Return where the rows of a forget set lie in these; None where this is not certain.

        Args:
            forget: rows that the same function loads from the same entries or NumPy views of them.
        """
        if not isinstance(forget, LoadedRows) or forget.load is not self.load:
            return None
        if forget.entries is self.entries:
            return list(range(len(self)))
        if not isinstance(self.entries, np.ndarray) or not isinstance(forget.entries, np.ndarray):
            return None
        places = places_of(self.entries, forget.entries)
        return None if places is None else list(places)

    def _loaded(self, position: int) -> Any:
        loaded = self.load(self.entries[position])
        if isinstance(loaded, list):
            raise UnsupportedError(
                f"load must return an array, or a dictionary or tuple of arrays; got a list of {len(loaded)}. Return "
                "np.array(...) of it."
            )
        return tree.map_structure(_as_leaf, loaded)


def _listed(entries: Any) -> Any:
    if isinstance(entries, (list, tuple, np.ndarray)):
        return entries
    if isinstance(entries, (str, bytes)) or not hasattr(entries, "__iter__") or not hasattr(entries, "__len__"):
        raise UnsupportedError(
            "with load=, x must be a sequence with one entry for each row, such as a list of paths; got a "
            f"{type(entries).__name__}."
        )
    return list(entries)


def _as_leaf(value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        # NumPy's own types of text cut zeros at the end off.
        return np.array(value, dtype=object)
    return np.asarray(value) if isinstance(value, (bool, int, float)) else as_array(value)
