"""The rows of a tf.data pipeline, read at the positions that are asked for.

A small pipeline over the picked rows runs the user's own map functions, as they were traced. It is traced
once; reading a batch is one call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from pybrush.errors import ConfigurationError, UnsupportedError
from pybrush_keras import _private_tf
from pybrush_keras.array_rows import as_batch, raw_value
from pybrush_keras.tf_steps import Counted, Function, Mapped, Picked, Source, Zipped, take_apart

_CHUNK = 1024
"""Rows read at once where a whole column is asked for."""


class PipelineRows:
    """Rows of a `tf.data.Dataset` that ends in batches.

    A raw sample is a row after the maps that come before the batch step. Maps after it are applied to each batch
    that is trained on, as a collate function is.

    Args:
        dataset: a finite pipeline from from_tensor_slices or range, by zip, map, batch, shuffle, cache in memory,
            take, skip, prefetch and with_options.

    Attributes:
        source: the data set as it was passed.
        pipeline: its steps, taken apart.
        cached_rows: position -> arrays of the row, where the pipeline has a cache step.
        batch_size: rows in a batch, from the batch step.
        shuffle: True with a shuffle step before the batch step, "batch" with one after it alone, else False. The
            buffer's size is not kept: all rows are shuffled.
        drop_last: whether the batch step drops a short last batch.
        whole_length: number of rows.
        validation: None.

    Raises:
        UnsupportedError: for a pipeline that hides the place of a row, and one of ragged or sparse elements.
        ConfigurationError: where there are no rows.
    """

    validation = None

    def __init__(self, dataset: Any) -> None:
        self.source = dataset
        self.cached_rows: dict[int, tuple[Any, ...]] = {}
        self.pipeline = take_apart(dataset)
        if self.pipeline.batch_size is None:
            raise UnsupportedError(
                "the tf.data pipeline has no batch step, so Keras would take each row for a batch. End it with "
                ".batch(32)."
            )
        if not self.pipeline.length:
            raise ConfigurationError("the training data needs at least one row; the tf.data pipeline has none.")
        _check_parts(dataset.element_spec)
        self.batch_size, self.shuffle = self.pipeline.batch_size, self.pipeline.shuffle
        self.drop_last, self.whole_length = self.pipeline.drop_last, self.pipeline.length

    def __len__(self) -> int:
        return self.whole_length

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        if not 0 <= position < self.whole_length:
            raise IndexError(f"there are {self.whole_length} rows; got position {position}.")
        rows = _as_tuple(self._rows([position]))
        row: tuple[Any, ...] = keras.tree.map_structure(lambda leaf: raw_value(leaf[0]), rows)
        return row

    def batch(self, positions: Sequence[int] | NDArray[np.int64]) -> tuple[Any, ...]:
        """Return the rows at some positions as one batch: (x,), (x, y) or (x, y, sample_weight), in their order."""
        batch = self._rows(positions)
        if self.pipeline.batch_maps:
            batch = _as_arrays(self._batch_function(batch))
        for leaf in keras.tree.flatten(batch):
            if not leaf.ndim or len(leaf) != len(positions):
                raise UnsupportedError(
                    "a map after the batch step of the tf.data pipeline must keep one entry for each row; it made "
                    f"shape {leaf.shape} of {len(positions)} rows. Put it before the batch step."
                )
        return as_batch(_as_tuple(batch))

    def column(self, name: str) -> Sequence[Any] | None:
        """Return one entry a row: "file_paths", or what x, a dictionary, has under a name; None where there is none.

        The files are those that Keras lists of a folder, or the one column of text that a map reads files by.
        """
        if name == "file_paths" and self.pipeline.file_paths is not None:
            return self.pipeline.file_paths
        entries: list[Any] = []
        for at in range(0, len(self), _CHUNK):
            x = _as_tuple(self._rows(range(at, min(at + _CHUNK, len(self)))))[0]
            if not isinstance(x, dict) or not isinstance(x.get(name), np.ndarray):
                return None
            entries.extend(x[name].tolist())
        return [entry.decode() if isinstance(entry, bytes) else entry for entry in entries]

    def positions_of(self, forget: Any) -> list[int] | None:
        """Return where the rows of a forget set lie in these, if both are cut by take and skip from one data set.

        Args:
            forget: the rows of a forget set.

        Returns:
            Positions in the order of the forget set; None where this is not certain.
        """
        if not isinstance(forget, PipelineRows):
            return None
        mine, places = _uncut(self.pipeline.rows, range(len(self)))
        theirs, wanted = _uncut(forget.pipeline.rows, range(len(forget)))
        if mine is not theirs or not all(place in places for place in wanted):
            return None
        return [places.index(place) for place in wanted]

    def _rows(self, positions: Sequence[int] | NDArray[np.int64]) -> Any:
        """Return rows before any map of batches: NumPy arrays with the rows on axis 0."""
        if not self.pipeline.is_cached:
            return self._read(positions)
        nest, kept = _private_tf.tensorflow().nest, self.cached_rows
        missing = [position for position in dict.fromkeys(map(int, positions)) if position not in kept]
        if missing:
            kept.update(zip(missing, zip(*nest.flatten(self._read(missing)), strict=True), strict=True))
        leaves = zip(*(kept[int(position)] for position in positions), strict=True)
        return nest.pack_sequence_as(self._row_function.structured_outputs, [_stacked(leaf) for leaf in leaves])

    def _read(self, positions: Sequence[int] | NDArray[np.int64]) -> Any:
        tf = _private_tf.tensorflow()
        with tf.device("CPU:0"):
            return _as_arrays(self._row_function(tf.constant(np.asarray(positions, dtype=np.int64))))

    @cached_property
    def _row_function(self) -> Any:
        """Positions, shape (n,), to tensors of the rows there; traced once for any number of them."""
        tf = _private_tf.tensorflow()
        signature = [tf.TensorSpec([None], tf.int64)]
        read = tf.function(
            functools.partial(_read_on_cpu, self.pipeline.rows), input_signature=signature, autograph=False
        )
        return read.get_concrete_function()

    @cached_property
    def _batch_function(self) -> Any:
        """Rows to what the maps after the batch step make of them."""
        tf = _private_tf.tensorflow()

        def finish(batch: Any) -> Any:
            dataset = tf.data.Dataset.from_tensors(batch)
            for step, function in self.pipeline.batch_maps:
                dataset = dataset.map(_applied(step, function))
            return dataset.get_single_element()

        rows = self._row_function.structured_outputs
        signature = tf.nest.map_structure(lambda leaf: tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype), rows)
        return tf.function(finish, input_signature=[signature], autograph=False)


def _as_arrays(tensors: Any) -> Any:
    return keras.tree.map_structure(lambda tensor: tensor.numpy(), tensors)


def _stacked(entries: Sequence[Any]) -> NDArray[Any]:
    if not isinstance(entries[0], bytes):
        return np.stack(entries)
    # NumPy's own type of bytes cuts zeros at the end off.
    array = np.empty(len(entries), dtype=object)
    array[:] = entries
    return array


def _as_tuple(element: Any) -> tuple[Any, ...]:
    return element if isinstance(element, tuple) else (element,)


def _check_parts(element: Any) -> None:
    if not 1 <= len(_as_tuple(element)) <= 3:
        raise UnsupportedError(
            "each element of the tf.data pipeline must be x, (x, y) or (x, y, sample_weight); got a tuple of "
            f"{len(element)}. Several inputs are one x: a dictionary, or a tuple inside the tuple."
        )


def _uncut(rows: Source, places: range) -> tuple[Any, range]:
    """Return the data set that rows are cut from, and which of its rows they are."""
    if isinstance(rows, Picked):
        return _uncut(rows.below, rows.places[places.start : places.stop : places.step])
    return rows.dataset, places


def _read_on_cpu(rows: Source, positions: Any) -> Any:
    # As tf.data does: on an accelerator every call would copy the whole source there.
    with _private_tf.tensorflow().device("CPU:0"):
        return _gathered(rows, positions)


def _gathered(rows: Source, positions: Any) -> Any:
    """Return the rows at some positions as tensors with the rows on axis 0."""
    tf = _private_tf.tensorflow()
    if isinstance(rows, Mapped) or _has_map(rows):
        return _dataset(rows, positions).batch(tf.size(positions, out_type=tf.int64)).get_single_element()
    if isinstance(rows, Picked):
        return _gathered(rows.below, rows.places.start + rows.places.step * positions)
    if isinstance(rows, Zipped):
        return tf.nest.map_structure(lambda part: _gathered(part, positions), rows.below)
    if isinstance(rows, Counted):
        return tf.cast(rows.numbers.start + rows.numbers.step * positions, rows.dataset.element_spec.dtype)
    return tf.nest.pack_sequence_as(rows.dataset.element_spec, [tf.gather(whole, positions) for whole in rows.tensors])


def _dataset(rows: Source, positions: Any) -> Any:
    """Return a data set of the rows at some positions, one by one."""
    tf = _private_tf.tensorflow()
    if isinstance(rows, Mapped):
        calls = tf.data.AUTOTUNE if rows.is_parallel else None
        return _dataset(rows.below, positions).map(_applied(rows.dataset, rows.function), num_parallel_calls=calls)
    if isinstance(rows, Picked):
        return _dataset(rows.below, rows.places.start + rows.places.step * positions)
    if isinstance(rows, Zipped):
        return tf.data.Dataset.zip(tf.nest.map_structure(lambda part: _dataset(part, positions), rows.below))
    return tf.data.Dataset.from_tensor_slices(_gathered(rows, positions))


def _has_map(rows: Source) -> bool:
    if isinstance(rows, Zipped):
        return any(map(_has_map, _private_tf.tensorflow().nest.flatten(rows.below)))
    return isinstance(rows, Mapped) or (isinstance(rows, Picked) and _has_map(rows.below))


def _applied(step: Any, function: Function) -> Callable[..., Any]:
    """Return a map function that does what a map step of the user does."""
    tf = _private_tf.tensorflow()

    def apply(*element: Any) -> Any:
        return tf.nest.pack_sequence_as(step.element_spec, function(*tf.nest.flatten(element)))

    applied: Callable[..., Any] = tf.autograph.experimental.do_not_convert(apply)
    return applied
