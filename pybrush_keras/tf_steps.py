"""Which rows does a tf.data pipeline give, and through which functions? Told from its steps, without reading any.

A pipeline is walked from its last step to its sources and put together again without what only orders or
buffers rows (shuffle, batch, prefetch, cache in memory): a row's place among the sources is then certain.
Steps after which it is not are refused, each with what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pybrush.errors import UnsupportedError
from pybrush_keras import _private_tf

Function = Callable[..., list[Any]]
"""A map function as it was traced: the flat tensors of an element to flat tensors."""


@dataclass(frozen=True)
class Slices:
    """Rows of tensors.

    Attributes:
        dataset: the step, by which two pipelines are known to share it.
        tensors: the rows are on axis 0 of each.
    """

    dataset: Any
    tensors: Sequence[Any]


@dataclass(frozen=True)
class Counted:
    """Rows that are numbers, of Dataset.range."""

    dataset: Any
    numbers: range


@dataclass(frozen=True)
class Picked:
    """Some rows of another source: row i is the one at places[i]."""

    below: Source
    places: range


@dataclass(frozen=True)
class Zipped:
    """Rows of several sources side by side, in the structure that `dataset` has."""

    dataset: Any
    below: Any


@dataclass(frozen=True)
class Mapped:
    """Rows of another source after a function."""

    dataset: Any
    below: Source
    function: Function
    is_parallel: bool


Source = Slices | Counted | Picked | Zipped | Mapped


@dataclass(frozen=True)
class Pipeline:
    """A tf.data pipeline, taken apart.

    Attributes:
        rows: where single rows come from.
        length: how many there are.
        file_paths: the file of each, where the pipeline has them.
        batch_size: rows in a batch; None where there is no batch step.
        drop_last: whether a short last batch is dropped.
        shuffle: True, False or "batch".
        is_cached: whether rows are kept in memory once read.
        batch_maps: the map steps after the batch step, in order, each with its function.
    """

    rows: Source
    length: int
    file_paths: Sequence[str] | None = None
    batch_size: int | None = None
    drop_last: bool = False
    shuffle: bool | str = False
    is_cached: bool = False
    batch_maps: tuple[tuple[Any, Function], ...] = ()


def take_apart(dataset: Any) -> Pipeline:
    """Walk a pipeline from its last step to its sources.

    Raises:
        UnsupportedError: for a step after which a row's place is not certain, with what to write instead.
    """
    steps, at = [], dataset
    while _private_tf.step_input(at) is not None:
        steps.append(at)
        at = _private_tf.step_input(at)
    for step in steps:
        if _private_tf.step_kind(step) not in _STEPS:
            raise _refused(_private_tf.step_kind(step))
    pipeline = _with_files(_source(at), at)
    for step in reversed(steps):
        _check_dense(step)
        pipeline = _with_files(_STEPS[_private_tf.step_kind(step)](pipeline, step), step)
    return pipeline


def _source(dataset: Any) -> Pipeline:
    kind = _private_tf.step_kind(dataset)
    _check_dense(dataset)
    if kind == "TensorSlice":
        tensors = _private_tf.sliced_tensors(dataset)
        return Pipeline(Slices(dataset, tensors), int(tensors[0].shape[0]))
    if kind == "Range":
        numbers = _private_tf.counted_range(dataset)
        return Pipeline(Counted(dataset, numbers), len(numbers))
    if kind == "Zip":
        return _zip(dataset)
    raise _refused(kind)


def _check_dense(step: Any) -> None:
    tf = _private_tf.tensorflow()
    for spec in tf.nest.flatten(step.element_spec):
        if not isinstance(spec, tf.TensorSpec):
            raise UnsupportedError(
                f"rows must be dense arrays; the tf.data pipeline has elements of {type(spec).__name__}. Make them "
                "dense, by tf.sparse.to_dense or ragged.to_tensor(), before from_tensor_slices or in a map."
            )


def _zip(dataset: Any) -> Pipeline:
    nest = _private_tf.tensorflow().nest
    structure = _private_tf.zipped(dataset)
    flat = [take_apart(part) for part in nest.flatten(structure)]
    if any(part.batch_size is not None or part.shuffle for part in flat):
        raise UnsupportedError(
            "a tf.data pipeline zipped from shuffled or batched parts does not tell which rows belong together. Call "
            "Dataset.zip first, then shuffle and batch."
        )
    pipeline = Pipeline(
        Zipped(dataset, nest.pack_sequence_as(structure, [part.rows for part in flat])),
        length=min(part.length for part in flat),
        is_cached=any(part.is_cached for part in flat),
    )
    files = [part.file_paths for part in flat if part.file_paths is not None]
    return replace(pipeline, file_paths=files[0][: pipeline.length]) if len(files) == 1 else pipeline


def _with_files(pipeline: Pipeline, step: Any) -> Pipeline:
    """Add the file list that Keras hangs on the data set of a directory."""
    files = getattr(step, "file_paths", None)
    return pipeline if files is None or len(files) != pipeline.length else replace(pipeline, file_paths=files)


def _map(pipeline: Pipeline, step: Any) -> Pipeline:
    function = _private_tf.mapped_function(step)
    operations = _operations(function)
    drawn = sorted(name for name in operations if _DRAWS.match(name))
    if drawn:
        raise UnsupportedError(
            f"a map of the tf.data pipeline draws random numbers or changes a variable ({', '.join(drawn)}), so that a "
            "request would train on other rows than a fresh fit. Augment in the model, by layers such as "
            "keras.layers.RandomFlip, whose random numbers SISA seeds."
        )
    if pipeline.batch_size is None:
        is_parallel = "Parallel" in type(step).__name__
        files = pipeline.file_paths or (
            _only_text(pipeline.rows, pipeline.length) if "ReadFile" in operations else None
        )
        return replace(pipeline, rows=Mapped(step, pipeline.rows, function, is_parallel), file_paths=files)
    if pipeline.drop_last:
        raise UnsupportedError(
            "a map after batch(..., drop_remainder=True) takes batches of one size alone, and stages have others. "
            "Put map before batch, or leave out drop_remainder."
        )
    return replace(pipeline, batch_maps=(*pipeline.batch_maps, (step, function)))


def _batch(pipeline: Pipeline, step: Any) -> Pipeline:
    if pipeline.batch_size is not None:
        raise UnsupportedError("the tf.data pipeline batches batches; SISA picks single rows. Leave one batch step.")
    size, drop = _private_tf.batch_settings(step)
    return replace(pipeline, batch_size=size, drop_last=drop)


def _shuffle(pipeline: Pipeline, step: Any) -> Pipeline:
    if not _private_tf.reshuffles(step):
        raise UnsupportedError(
            "shuffle(..., reshuffle_each_iteration=False) of the tf.data pipeline fixes an order that PyBrush cannot "
            "read from it. Shuffle the arrays before from_tensor_slices, and call shuffle without the argument."
        )
    return replace(pipeline, shuffle=True if pipeline.batch_size is None else pipeline.shuffle or "batch")


def _cache(pipeline: Pipeline, step: Any) -> Pipeline:
    file = _private_tf.cache_file(step)
    if file:
        raise UnsupportedError(
            f"cache({file!r}) of the tf.data pipeline writes rows to a file, where forgotten rows would stay. "
            "Call cache() for a cache in memory."
        )
    if pipeline.shuffle:
        raise UnsupportedError(
            "cache() after shuffle in the tf.data pipeline repeats the first epoch's order in all others. Call cache() "
            "before shuffle."
        )
    return replace(pipeline, is_cached=True)


def _skip(pipeline: Pipeline, step: Any) -> Pipeline:
    count = _private_tf.step_count(step)
    return _cut(pipeline, slice(pipeline.length if count < 0 else count * (pipeline.batch_size or 1), None))


def _take(pipeline: Pipeline, step: Any) -> Pipeline:
    count = _private_tf.step_count(step)
    return _cut(pipeline, slice(None if count < 0 else count * (pipeline.batch_size or 1)))


def _cut(pipeline: Pipeline, part: slice) -> Pipeline:
    if pipeline.shuffle:
        raise UnsupportedError(
            "take and skip after shuffle in the tf.data pipeline give other rows in every epoch. Call them before "
            "shuffle."
        )
    places = range(pipeline.length)[part]
    files = None if pipeline.file_paths is None else pipeline.file_paths[part]
    return replace(pipeline, rows=Picked(pipeline.rows, places), length=len(places), file_paths=files)


def _same(pipeline: Pipeline, _step: Any) -> Pipeline:
    return pipeline


_STEPS: dict[str, Callable[[Pipeline, Any], Pipeline]] = {
    "Map": _map,
    "Batch": _batch,
    "Shuffle": _shuffle,
    "Cache": _cache,
    "Skip": _skip,
    "Take": _take,
    "Prefetch": _same,
    "Options": _same,
}

_DRAWS = re.compile(
    "Random|Stateful(Random|Standard|Uniform|Truncated)|(Parameterized)?TruncatedNormal|Multinomial"
    "|SampleDistortedBoundingBox|Rng|Assign.*Variable|ResourceScatter|Anonymous.*Seed"
)
"""Operations that give another result each time; those called Stateless do not."""


def _operations(function: Any) -> set[str]:
    """Return the operations of a traced function, and of the functions that it calls."""
    graph = function.graph.as_graph_def()
    nested = (node.op for called in graph.library.function for node in called.node_def)
    return {node.op for node in graph.node} | set(nested)


def _only_text(rows: Source, length: int) -> list[str] | None:
    """Return the one column of text among the sources; None where there is none or several."""
    columns = list(_texts(rows, range(length)))
    return columns[0] if len(columns) == 1 else None


def _texts(rows: Source, places: range) -> list[list[str]]:
    if isinstance(rows, Mapped):
        return _texts(rows.below, places)
    if isinstance(rows, Picked):
        return _texts(rows.below, rows.places[places.start : places.stop : places.step])
    if isinstance(rows, Zipped):
        return [text for part in _private_tf.tensorflow().nest.flatten(rows.below) for text in _texts(part, places)]
    if isinstance(rows, Counted):
        return []
    found = [tensor.numpy() for tensor in rows.tensors if tensor.dtype.name == "string" and tensor.shape.rank == 1]
    return [[text[place].decode() for place in places] for text in found]


_REMEDIES = {
    "Repeat": "Leave out repeat: epochs= of fit counts the epochs.",
    "FlatMap": "Pass pybrush_keras.Source(entries, y, load=...), whose load reads one row.",
    "Filter": "Filter the arrays before from_tensor_slices.",
    "Unbatch": "Leave out the batch step before it.",
    "Shard": "Cut the arrays before from_tensor_slices.",
    "PaddedBatch": "Pad the rows to one length in a map before batch.",
    "Concatenate": "Join the arrays before from_tensor_slices.",
}


def _refused(kind: str) -> UnsupportedError:
    remedy = _REMEDIES.get(
        kind,
        "Read the rows into arrays, or start from Dataset.from_tensor_slices with map, shuffle, batch, cache, take, "
        "skip and prefetch.",
    )
    return UnsupportedError(f"the tf.data pipeline has a {kind} step, which hides the place of a row. {remedy}")
