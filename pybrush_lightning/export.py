"""The deployable model alone, apart from the record: a folder of weights and a description.

`record.export(folder)` writes one file of weights for each constituent, under the names of the module's own
`state_dict`, and `model.json`. Each file is registered with the stage whose weights it holds, so a later request that
replaces the stage removes it. `load_export(folder, module)` gives the model. Guide: docs/security.md, "Deploy the model
alone".
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pybrush.attributes import plain_attributes
from pybrush.errors import ConfigurationError, CorruptRecordError, RecordError, UnsupportedError
from pybrush.record import Record, states
from pybrush.record.files import make_folder, sync_folder, unlink, write_new
from pybrush.record.locks import request_lock
from pybrush.record.trees import memory_order
from pybrush_lightning.aggregate import AggregateModule, Constituent, constituent_of, filled
from pybrush_lightning.attributes import known_parts
from pybrush_lightning.checkpoints import is_remote
from pybrush_lightning.codec import laid_out

_log = logging.getLogger(__name__)

FORMAT = 1
DESCRIPTION = "model.json"

_WITHOUT_A_FILE = (torch.complex32, torch.complex128)
"""Element types that safetensors does not have."""

_AGAIN = "Export the record again."


def export(record: Record, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the model that a record deploys (see `Record.export`)."""
    place = _checked_place(record, folder)
    with request_lock(record.folder):  # no request replaces a stage meanwhile
        keys = sorted(record.constituents().items())
        missing = [str(shard) for shard, key in keys if not record.store.has(key)]
        if missing or not keys:
            raise RecordError(
                f"{record.folder} has no finished constituent of shards {', '.join(missing) or 'at all'}: finish the "
                "fit or the request first."
            )
        _make_place(place, overwrite)
        try:
            _write(record, place, keys)
        except BaseException:
            _clear(place)
            raise
    return place


def load_export(folder: str | Path, module: nn.Module) -> nn.Module:
    """Return the model in a folder that `Record.export` wrote, ready to predict.

    Args:
        folder: the exported folder.
        module: a module that is built as for the training; it is copied and not changed.

    Returns:
        The module's own kind where there is one constituent; else one module that answers with all of them.

    Raises:
        RecordError: where a file is not there: a request has taken it, or it was not copied.
        CorruptRecordError: where a file is not what was exported.
        ConfigurationError: where the module has other parameters or buffers.
    """
    place = Path(folder)
    described = _read_description(place)
    _say_left_out(described["attributes_left_out"])
    known = known_parts(module)
    attributes = {name: plain_attributes(part, known) for name, part in module.named_modules()}
    members = {
        entry["shard"]: Constituent(_read_tensors(place, entry), attributes) for entry in described["constituents"]
    }
    if len(members) > 1:
        return AggregateModule(module, members, described["outputs"], described["aggregate"])
    (member,) = members.values()
    return filled(module, member).eval()


# Writing


def _checked_place(record: Record, folder: str | Path) -> Path:
    """Refuse places from which a request could not remove the files, or in which they would do harm."""
    if is_remote(folder):
        raise UnsupportedError(f"{folder} is no local folder, so a later request could not erase the model there.")
    place = Path(folder).absolute()
    if place.resolve().is_relative_to(record.folder.resolve()):
        raise ConfigurationError(f"{place} lies in the record itself; export to a folder outside of {record.folder}.")
    return place


def _make_place(place: Path, overwrite: bool) -> None:
    """Make the folder, or take an earlier export out of it."""
    if place.exists() and not place.is_dir():
        raise ConfigurationError(f"{place} is a file; name a folder for the exported model.")
    make_folder(place)
    if any(place.iterdir()) and not overwrite:
        raise ConfigurationError(
            f"{place} is not empty; name another folder, or pass overwrite=True to replace the export in it."
        )
    _clear(place)


def _clear(place: Path) -> None:
    """Take an export out of a folder, the description first; other files stay."""
    unlink(place / DESCRIPTION)
    for path in sorted(place.glob("constituent_*.safetensors")):
        unlink(path)


def _write(record: Record, place: Path, keys: list[tuple[int, str]]) -> None:
    start = record.store.load("initial")[0]["module"]["attributes"]
    found = [_write_constituent(record, place, shard, key, start) for shard, key in keys]
    left_out = sorted({name for _, changed in found for name in changed})
    _say_left_out(left_out)
    described = _description(record, [entry for entry, _ in found], left_out)
    # Last, so that a folder that has it is whole.
    write_new(place / DESCRIPTION, json.dumps(described, sort_keys=True, indent=1).encode())
    sync_folder(place)


def _write_constituent(
    record: Record, place: Path, shard: int, key: str, start: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Write one constituent; return its entry in the description, and the attributes that training changed."""
    member = constituent_of(record, key)
    orders = {name: memory_order(tensor.shape, tensor.stride()) for name, tensor in member.tensors.items()}
    path = place / f"constituent_{shard}.safetensors"
    data = _packed(member.tensors)
    record.register_artefact(path, key, "export")
    write_new(path, data)
    entry = {
        "file": path.name,
        "order": {name: order for name, order in orders.items() if order is not None},
        "sha256": hashlib.sha256(data).hexdigest(),
        "shard": shard,
    }
    return entry, list(_changed(start, member.attributes))


def _packed(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors as the bytes of a file; tied ones under each of their names, as in a state_dict."""
    strange = [name for name, tensor in tensors.items() if tensor.dtype in _WITHOUT_A_FILE]
    if strange:
        raise UnsupportedError(
            f"safetensors has no type for {', '.join(strange[:5])} ({tensors[strange[0]].dtype}). Save "
            "record.aggregate(module) in another way, and erase it yourself when samples are forgotten."
        )
    copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, {"format": "pt"})


def _description(record: Record, entries: list[dict[str, Any]], left_out: list[str]) -> dict[str, Any]:
    settings = record.plan.settings
    return {
        "format": FORMAT,
        "class": record.plan.semantic["parts"]["module"],
        "outputs": settings["outputs"],
        "aggregate": settings["aggregate"],
        "constituents": entries,
        "attributes_left_out": left_out,
    }


def _changed(start: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Return the names of the plain attributes that are not what they were before the training."""
    for part in sorted(start.keys() | now.keys()):
        before, after = start.get(part, {}), now.get(part, {})
        for name in sorted(before.keys() | after.keys()):
            if name not in before or name not in after or _digest(before[name]) != _digest(after[name]):
                yield f"{part}.{name}".lstrip(".")


def _digest(value: Any) -> str:
    return states.init_digest(value)


def _say_left_out(names: list[str]) -> None:
    if names:
        _log.warning(
            "training changed %d attributes that are no parameters or buffers, such as %s; they are not in the export. "
            "Where forward reads them, make them buffers.",
            *(len(names), names[0]),
        )


# Reading


def _read_description(place: Path) -> dict[str, Any]:
    path = place / DESCRIPTION
    try:
        described: dict[str, Any] = json.loads(path.read_bytes())
        known = described["format"] == FORMAT
    except FileNotFoundError as error:
        raise RecordError(f"{place} holds no finished export: {path.name} is missing. {_AGAIN}") from error
    except (ValueError, TypeError, LookupError) as error:
        raise CorruptRecordError(f"{path} cannot be read ({error!r}). {_AGAIN}") from error
    if not known:
        raise UnsupportedError(f"{path} is of format {described['format']!r}, and this version reads {FORMAT}.")
    return described


def _read_tensors(place: Path, entry: dict[str, Any]) -> dict[str, Tensor]:
    path = place / entry["file"]
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RecordError(
            f"{path} is not there: a request has removed it, since it held forgotten samples, or it was not copied. "
            f"{_AGAIN}"
        ) from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CorruptRecordError(f"{path} is not the file that was exported. {_AGAIN}")
    try:
        tensors = safetensors.torch.load(data)
        return {name: laid_out(tensor, entry["order"].get(name)) for name, tensor in tensors.items()}
    except (SafetensorError, ValueError) as error:
        raise CorruptRecordError(f"{path} cannot be read ({error}). {_AGAIN}") from error
