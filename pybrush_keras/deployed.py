"""The model that a record deploys: its only constituent, or the aggregate of all."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from pybrush.record import Record
from pybrush_keras.aggregate import aggregate_model, check_rows, check_target
from pybrush_keras.copies import Arrays, check_copyable
from pybrush_keras.rows import KerasRows
from pybrush_keras.spaces import Space, infer_space, space_of
from pybrush_keras.state import array_of


def aggregate_of(record: Record, model: Any) -> Any:
    """Return one model that predicts with all constituents of a record.

    Args:
        record: the record.
        model: built as for the training; it is not changed.
    """
    settings = record.plan.settings
    space, example = space_of(model, settings["outputs"]), _example(settings["inputs"])
    return aggregate_model(model, constituents_of(record), space, settings["aggregate"], example)


def deployed(record: Record, model: Any) -> Any:
    """Return what predicts after a request: the model itself where there is one constituent, else the aggregate."""
    return model if len(record.constituents()) == 1 else aggregate_of(record, model)


def constituents_of(record: Record) -> dict[int, Arrays]:
    """Return the variables of each constituent, by shard, in the order of `model.variables`."""
    found: dict[int, Arrays] = {}
    for shard, key in sorted(record.constituents().items()):
        variables = record.store.load(key)[0]["model"]["variables"]
        found[shard] = [array_of(value) for _, value in variables]
    return found


def described_inputs(rows: KerasRows) -> Any:
    """Return structure, shapes and types of a row's inputs, as plain JSON: a subclassed model does not tell them."""
    inputs = rows.batch([0])[0]
    return keras.tree.map_structure(lambda array: {"shape": list(array.shape[1:]), "dtype": str(array.dtype)}, inputs)


def _example(described: Any) -> Any:
    """Return a batch of one row, all zeros, as `described_inputs` tells."""
    if isinstance(described, list):
        return [_example(part) for part in described]
    if described.keys() == {"shape", "dtype"} and isinstance(described["shape"], list):
        return np.zeros((1, *described["shape"]), described["dtype"])
    return {name: _example(part) for name, part in described.items()}


def checked_space(model: Any, declared: Space | None, rows: KerasRows, shards: int) -> Space | None:
    """Return what a model returns; with several shards it must be known, and the model be one that can be copied.

    Raises:
        ConfigurationError: naming the four spaces.
        UnsupportedError: where no copy can be made.
    """
    if shards == 1:
        return declared or infer_space(model)
    space = space_of(model, declared)
    batch = rows.batch(range(min(len(rows), rows.batch_size)))
    check_copyable(model, batch[0])
    check_target(batch, space)
    check_rows(model(batch[0], training=False), space)
    return space
