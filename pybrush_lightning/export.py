"""The deployable model alone, apart from the record: a folder of weights and a description.

`record.export(folder)` writes one file of weights for each constituent, under the names of the module's own
`state_dict`, and `model.json` (`pybrush.record.exported`). `load_export(folder, module)` gives the model. Guide:
docs/security.md, "Deploy the model alone".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pybrush.attributes import plain_attributes
from pybrush.errors import UnsupportedError
from pybrush.record import Record
from pybrush.record.exported import Packed, read_constituent, read_description, refuse_constituent, write_export
from pybrush.record.trees import memory_order
from pybrush_lightning.aggregate import AggregateModule, Constituent, constituent_of, filled
from pybrush_lightning.attributes import known_parts
from pybrush_lightning.codec import laid_out

_WITHOUT_A_FILE = (torch.complex32, torch.complex128)
"""Element types that safetensors does not have."""


def export(record: Record, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the model that a record deploys (see `Record.export`)."""

    def pack(key: str) -> Packed:
        return _packed(constituent_of(record, key))

    def before() -> dict[str, Any]:
        attributes: dict[str, Any] = record.store.load("initial")[0]["module"]["attributes"]
        return attributes

    return write_export(record, folder, pack, lambda: _description(record), before, overwrite)


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
    described = read_description(folder)
    known = known_parts(module)
    attributes = {name: plain_attributes(part, known) for name, part in module.named_modules()}
    members = {
        entry["shard"]: Constituent(_read_tensors(folder, entry), attributes) for entry in described["constituents"]
    }
    if len(members) > 1:
        return AggregateModule(module, members, described["outputs"], described["aggregate"])
    (member,) = members.values()
    return filled(module, member).eval()


def _packed(member: Constituent) -> Packed:
    """Return a constituent as the bytes of a file; tied tensors under each of their names, as in a state_dict."""
    tensors = member.tensors
    strange = [name for name, tensor in tensors.items() if tensor.dtype in _WITHOUT_A_FILE]
    if strange:
        raise UnsupportedError(
            f"safetensors has no type for {', '.join(strange[:5])} ({tensors[strange[0]].dtype}). Save "
            "record.aggregate(module) in another way, and erase it yourself when samples are forgotten."
        )
    orders = {name: memory_order(tensor.shape, tensor.stride()) for name, tensor in tensors.items()}
    copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    kept = {name: order for name, order in orders.items() if order is not None}
    return Packed(safetensors.torch.save(copies, {"format": "pt"}), {"order": kept}, member.attributes)


def _description(record: Record) -> dict[str, Any]:
    settings = record.plan.settings
    return {
        "class": record.plan.semantic["parts"]["module"],
        "outputs": settings["outputs"],
        "aggregate": settings["aggregate"],
    }


def _read_tensors(folder: str | Path, entry: dict[str, Any]) -> dict[str, Tensor]:
    data = read_constituent(folder, entry)
    try:
        tensors = safetensors.torch.load(data)
        return {name: laid_out(tensor, entry["order"].get(name)) for name, tensor in tensors.items()}
    except (SafetensorError, ValueError) as error:
        refuse_constituent(folder, entry, error)
