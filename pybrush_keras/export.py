"""The deployable model alone, apart from the record: a folder of weights and a description.

`record.export(folder)` writes one file of weights for each constituent, `model.variables` by position and name, and
`model.json` (`pybrush.record.exported`). `load_export(folder, model)` gives the model. A file that holds structure and
weights together, without any need of this package, is `record.aggregate(model).save("model.keras")`; no request finds
that one. Guide: docs/security.md, "Deploy the model alone".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from pybrush.errors import UnsupportedError
from pybrush.record import Record
from pybrush.record.exported import Packed, read_constituent, read_description, refuse_constituent, write_export
from pybrush_keras.aggregate import aggregate_model, compile_alike
from pybrush_keras.copies import filled
from pybrush_keras.spaces import space_of
from pybrush_keras.state import array_of


def export(record: Record, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the model that a record deploys (see `Record.export`)."""

    def pack(key: str) -> Packed:
        return _packed(record.store.load(key)[0]["model"])

    def before() -> Any:
        return record.store.load("initial")[0]["model"]["settings"]["attributes"]

    return write_export(record, folder, pack, lambda: _description(record), before, overwrite)


def load_export(folder: str | Path, model: Any, example: Any = None) -> Any:
    """Return the model in a folder that `Record.export` wrote, ready to predict.

    Args:
        folder: the exported folder.
        model: a model that is built as for the training, with variables; it is copied and not changed.
        example: a batch of inputs, see `pybrush_keras.copies.inputs_of`.

    Returns:
        The model's own kind where there is one constituent; else one model that answers with all of them. It is
        compiled with the losses and metrics of `model`.

    Raises:
        RecordError: where a file is not there: a request has taken it, or it was not copied.
        CorruptRecordError: where a file is not what was exported.
        ConfigurationError: where the model has other variables.
        UnsupportedError: where the model cannot be copied.
    """
    described = read_description(folder)
    members = {entry["shard"]: _read_arrays(folder, entry) for entry in described["constituents"]}
    if len(members) > 1:
        space = space_of(model, described["outputs"])
        return aggregate_model(model, members, space, described["aggregate"], example)
    (arrays,) = members.values()
    alone = filled(model, arrays, example)
    compile_alike(model, alone)
    return alone


def _packed(state: dict[str, Any]) -> Packed:
    """Return a constituent as the bytes of a file, whose names begin with the position in `model.variables`."""
    variables: Sequence[tuple[str, Any]] = state["variables"]
    values = {f"{position:06d}/{name}": value for position, (name, value) in enumerate(variables)}
    halves = [name for name, value in values.items() if isinstance(value, dict)]
    arrays = {name: value["bfloat16"] if name in halves else value for name, value in values.items()}
    strange = [name for name, array in arrays.items() if array.dtype.kind not in "fiub"]
    if strange:
        raise UnsupportedError(
            f"safetensors has no type for {', '.join(strange[:5])} ({arrays[strange[0]].dtype}). Save "
            "record.aggregate(model) in another way, and erase it yourself when samples are forgotten."
        )
    # A copy in C order, since safetensors writes the memory as it lies.
    plain = {name: np.array(array, order="C") for name, array in arrays.items()}
    return Packed(
        safetensors.numpy.save(plain, {"format": "np"}), {"bfloat16": halves}, state["settings"]["attributes"]
    )


def _description(record: Record) -> dict[str, Any]:
    settings = record.plan.settings
    return {
        "class": record.plan.semantic["layers"][0][0],
        "outputs": settings["outputs"],
        "aggregate": settings["aggregate"],
    }


def _read_arrays(folder: str | Path, entry: dict[str, Any]) -> list[NDArray[Any]]:
    data = read_constituent(folder, entry)
    try:
        arrays = safetensors.numpy.load(data)
    except (SafetensorError, ValueError) as error:
        refuse_constituent(folder, entry, error)
    halves = set(entry["bfloat16"])
    return [array_of({"bfloat16": arrays[name]} if name in halves else arrays[name]) for name in sorted(arrays)]
