"""Every private name of TensorFlow that PyBrush uses to take a tf.data pipeline apart; each has a canary test.

TensorFlow is imported by the functions that need it: where an object of it came in, it is there already.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def tensorflow() -> Any:
    """Return the tensorflow package; for where one of its objects came in, so that it is imported already."""
    return importlib.import_module("tensorflow")


def step_kind(dataset: Any) -> str:
    """Return the step that made a data set: "Map" for `_MapDataset` and `_ParallelMapDataset`, and so on."""
    return type(dataset).__name__.removeprefix("_").removeprefix("Parallel").removesuffix("Dataset")


def step_input(dataset: Any) -> Any:
    """Return the data set that a step was applied to; None for a source, and for a step with several inputs."""
    return getattr(dataset, "_input_dataset", None)


def sliced_tensors(dataset: Any) -> list[Any]:
    """Return the tensors that from_tensor_slices was given, flat, each with the rows on axis 0."""
    return list(dataset._tensors)


def counted_range(dataset: Any) -> range:
    """Return what Dataset.range counts."""
    return range(int(dataset._start), int(dataset._stop), int(dataset._step))


def zipped(dataset: Any) -> Any:
    """Return the structure of data sets that were zipped."""
    return dataset._datasets


def mapped_function(dataset: Any) -> Callable[..., list[Any]]:
    """Return the traced function of a map step: flat tensors of one element to flat tensors."""
    function: Callable[..., list[Any]] = dataset._map_func.function
    return function


def batch_settings(dataset: Any) -> tuple[int, bool]:
    """Return batch_size and drop_remainder of a batch step."""
    return int(dataset._batch_size), bool(dataset._drop_remainder)


def reshuffles(dataset: Any) -> bool:
    """Return whether a shuffle step draws another order in every epoch."""
    return bool(dataset._reshuffle_each_iteration)


def cache_file(dataset: Any) -> str:
    """Return the file of a cache step; "" where it keeps rows in memory."""
    name: str = dataset._filename.numpy().decode()
    return name


def step_count(dataset: Any) -> int:
    """Return the number of elements that a take or skip step was given."""
    return int(dataset._count)
