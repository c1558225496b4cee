"""Rows held in memory: NumPy arrays, tensors, pandas tables, and dictionaries, tuples and lists of these.

Two forms of each array are kept. The raw one has the user's own values and dtype: samples are named by its
content. The fed one is what Keras would train on: floats in `keras.config.floatx()`, a pandas column as
shape (n, 1). They are one object where nothing has to change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import keras
import numpy as np
from keras import tree
from numpy.typing import NDArray

from pybrush.errors import ConfigurationError, UnsupportedError
from pybrush_keras.views import places_of

_NAMES = ("x", "y", "sample_weight")


class ArrayRows:
    """Rows of arrays as `keras.Model.fit` takes them.

    Args:
        x: inputs: an array or a nested structure of arrays; axis 0 counts the rows.
        y: targets, likewise, or None.
        sample_weight: weights, likewise, or None. Without targets Keras does not use them, nor does this class.
        batch_size: rows in a batch.
        shuffle: True, False or "batch", as for `fit`.
        validation_split: share of the rows, the last ones, that is only validated on; in [0, 1).

    Attributes:
        source: x as it was passed, without the rows that validation_split took.
        given: (x,), (x, y) or (x, y, sample_weight) as they were passed.
        raw: the same as NumPy arrays of the user's own values and dtypes.
        batch_size: rows in a batch.
        shuffle: True, False or "batch".
        drop_last: False: Keras trains on a short last batch.
        whole_length: number of rows before validation rows were split off. What has one entry for each of them
            is cut as the arrays are: `entries[:len(rows)]` belongs to the rows.

    Raises:
        ConfigurationError: for arrays of unequal lengths, no rows, or a split that leaves one side empty.
        UnsupportedError: for sparse and ragged arrays, and for what is no array.
    """

    drop_last = False

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int = 32,
        shuffle: bool | str = True,
        validation_split: float = 0.0,
    ) -> None:
        check_batches(batch_size, shuffle)
        self.batch_size, self.shuffle = batch_size, shuffle
        self.given = pack(x, y, sample_weight)
        self.raw = tree.map_structure(as_array, self.given)
        self.whole_length = common_length(self.raw)
        if len(self.raw) == 3:
            _for_each_output(*self.raw[1:])  # raises before anything is trained
        self._length = kept = _rows_to_train(self.whole_length, validation_split)
        self.source = x
        if kept < self.whole_length:
            self.source = tree.map_structure(lambda leaf: leaf if leaf is None else leaf[:kept], x)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        if not 0 <= position < self._length:
            raise IndexError(f"there are {self._length} rows; got position {position}.")
        row: tuple[Any, ...] = tree.map_structure(
            lambda leaf: leaf if leaf is None else raw_value(leaf[position]), self.raw
        )
        return row

    def batch(self, positions: Sequence[int] | NDArray[np.int64]) -> tuple[Any, ...]:
        """Return the rows at some positions as one batch: (x,), (x, y) or (x, y, sample_weight), in their order."""
        picked = np.asarray(positions, dtype=np.int64)
        return as_batch(tree.map_structure(lambda leaf: leaf if leaf is None else leaf[picked], self.fed))

    def column(self, name: str) -> Sequence[Any] | None:
        """Return the array that x, a dictionary, has under a name: one entry a row; None where there is none."""
        x = self.raw[0]
        if not isinstance(x, dict) or not isinstance(x.get(name), np.ndarray):
            return None
        entries: Sequence[Any] = x[name][: self._length]
        return entries

    @cached_property
    def validation(self) -> tuple[Any, Any, Any] | None:
        """What `validation_data=` takes of the rows that were split off: (x, y, sample_weight), or None."""
        if self._length == self.whole_length:
            return None
        rest = tree.map_structure(lambda leaf: leaf if leaf is None else leaf[self._length :], self.fed)
        x, y, sample_weight = (*rest, None, None)[:3]
        return x, y, sample_weight

    def positions_of(self, forget: Any) -> list[int] | None:
        """Return where the rows of a forget set lie in these, if it is made of the same memory; reads no data.

        Args:
            forget: the rows of a forget set. Its x must be the very object that was trained on, or NumPy views of
                whole rows of it; y and sample_weight too, where it has them.

        Returns:
            Positions in the order of the forget set; None where this is not certain.
        """
        if not isinstance(forget, ArrayRows) or len(forget.given) > len(self.given):
            return None
        places = _shared_places(self, forget)
        if places is None:
            return None
        positions = list(places)[: len(forget)]
        return positions if max(positions) < self._length else None

    @cached_property
    def fed(self) -> Any:
        """The arrays as Keras trains on them."""
        fed = tree.map_structure(as_fed, self.given, self.raw)
        return (*fed[:2], _for_each_output(*fed[1:])) if len(fed) == 3 else fed


def check_batches(batch_size: Any, shuffle: Any) -> None:
    """Refuse settings of batches that Keras does not have.

    Raises:
        ConfigurationError: naming the setting.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ConfigurationError(f"batch_size must be a whole number of rows, at least 1; got {batch_size!r}.")
    if shuffle not in (True, False, "batch"):
        raise ConfigurationError(f"shuffle must be True, False or 'batch'; got {shuffle!r}.")


def pack(x: Any, y: Any, sample_weight: Any) -> tuple[Any, ...]:
    """Return (x,), (x, y) or (x, y, sample_weight): what Keras trains on of these."""
    if y is None:
        return (x,)
    return (x, y) if sample_weight is None else (x, y, sample_weight)


def as_array(leaf: Any) -> NDArray[Any] | None:
    """Return an array or tensor as a NumPy array of its own values and dtype.

    Raises:
        UnsupportedError: for sparse and ragged ones, and for what is no array.
    """
    if leaf is None or type(leaf) is np.ndarray:
        return leaf
    _check_dense(leaf)
    if hasattr(leaf, "iloc"):
        array = np.asarray(leaf.to_numpy())
    elif keras.ops.is_tensor(leaf):
        array = keras.ops.convert_to_numpy(leaf)
    elif hasattr(leaf, "__array__"):
        array = np.asarray(leaf.detach().cpu() if hasattr(leaf, "detach") else leaf)
    else:
        raise UnsupportedError(
            "the data must be arrays or tensors, or dictionaries, tuples and lists of these; "
            f"got a {type(leaf).__module__}.{type(leaf).__qualname__}. Pass np.array(...) of what it holds, or "
            "pybrush_keras.Source(files, y, load=...) for rows that are read one by one."
        )
    return array


def as_fed(given: Any, raw: NDArray[Any] | None) -> NDArray[Any] | None:
    """Return an array as Keras trains on it.

    Args:
        given: what the user passed.
        raw: the same as a NumPy array.
    """
    if raw is None:
        return None
    floats = keras.config.floatx()
    if hasattr(given, "columns"):
        # A table with one column of other floats becomes floats as a whole, before it becomes an array.
        other = any(_is_other_float(str(dtype), floats) for dtype in given.dtypes)
        return np.asarray(given.astype(floats).to_numpy()) if other else raw
    fed = np.expand_dims(raw, -1) if hasattr(given, "iloc") else raw
    return fed.astype(floats) if _is_other_float(fed.dtype.name, floats) else fed


def common_length(arrays: Any) -> int:
    """Return the number of rows that all arrays of (x,), (x, y) or (x, y, sample_weight) have.

    Raises:
        ConfigurationError: where they differ, or there are none.
    """
    first, expected = "", 0
    for path, leaf in tree.flatten_with_path(arrays):
        if leaf is None:
            continue
        name = _NAMES[path[0]] + "".join(f"[{key!r}]" for key in path[1:])
        if leaf.ndim == 0:
            raise ConfigurationError(f"axis 0 of every array counts the rows; {name} is a single value.")
        if first and len(leaf) != expected:
            raise ConfigurationError(
                f"every array needs one entry for each row; {first} has {expected} rows and {name} has {len(leaf)}."
            )
        first, expected = first or name, len(leaf)
    if not expected:
        raise ConfigurationError("the training data needs at least one row; got none.")
    return expected


def as_batch(arrays: Any) -> tuple[Any, ...]:
    """Return a structure of NumPy arrays as a batch that the active backend takes.

    TensorFlow has no lists in a batch (it would stack them), and takes text only as tensors.
    """
    if keras.config.backend() == "tensorflow":
        arrays = tree.map_structure(_text_as_tensor, tree.lists_to_tuples(arrays))
    batch: tuple[Any, ...] = arrays
    return batch


def raw_value(entry: Any) -> Any:
    """Return an entry of an array as a raw sample has it: text as str and bytes, or lists of these."""
    if isinstance(entry, (np.str_, np.bytes_)):
        return entry.item()
    return entry.tolist() if isinstance(entry, np.ndarray) and entry.dtype.kind in "OSU" else entry


def _for_each_output(y: Any, sample_weight: Any) -> Any:
    """Return weights as Keras uses them: one array of one weight a row goes to every output."""
    if not tree.is_nested(y):
        return sample_weight
    if not tree.is_nested(sample_weight):
        if sample_weight.ndim > 1 and sample_weight.shape[1:] != (1,):
            raise ConfigurationError(
                "one array of weights for several targets must have one weight for each row; got shape "
                f"{sample_weight.shape}. Pass sample_weight in the structure of y."
            )
        return tree.map_structure(lambda _: sample_weight, y)
    try:
        tree.assert_same_structure(y, sample_weight)
    except ValueError as error:
        raise ConfigurationError(f"sample_weight must be one array, or have the structure of y: {error}") from error
    return sample_weight


def _check_dense(leaf: Any) -> None:
    kind = type(leaf)
    sparse = kind.__module__.startswith(("scipy.sparse", "jax.experimental.sparse")) or getattr(
        leaf, "is_sparse", False
    )
    if sparse or kind.__name__ in ("SparseTensor", "RaggedTensor"):
        raise UnsupportedError(
            f"rows must be dense arrays; got a {kind.__module__}.{kind.__qualname__}. Pass a dense array: "
            "matrix.toarray(), tf.sparse.to_dense(tensor) or ragged.to_tensor()."
        )


def _rows_to_train(length: int, validation_split: float) -> int:
    """Return how many rows are left to train on; Keras' own rule."""
    if not validation_split:
        return length
    kept = math.floor(length * (1.0 - validation_split))
    if not 0 < kept < length:
        raise ConfigurationError(
            f"validation_split must leave rows on both sides; {validation_split} of {length} rows leaves "
            f"{kept} to train on."
        )
    return kept


def _is_other_float(dtype: str, floats: str) -> bool:
    return dtype.startswith(("float", "bfloat")) and dtype != floats


def _text_as_tensor(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU":
        return keras.ops.convert_to_tensor(leaf, dtype="string")
    return leaf


def _shared_places(rows: ArrayRows, forget: ArrayRows) -> range | None:
    """Return the positions in `rows` that all arrays of `forget` agree on."""
    count = len(forget.given)
    mine, theirs = rows.given[:count], forget.given
    try:
        tree.assert_same_structure(mine, theirs)
    except ValueError:
        return None
    leaves = map(tree.flatten, (mine, theirs, rows.raw[:count], forget.raw))
    found = {
        range(rows.whole_length) if given is part else places_of(whole, view)
        for given, part, whole, view in zip(*leaves, strict=True)
        if given is not None or part is not None
    }
    return found.pop() if len(found) == 1 else None
