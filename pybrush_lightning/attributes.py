"""State that modules and callbacks keep outside of parameters and buffers: their attributes.

Plain values (`pybrush.record.states`) are stored with each stage. What refers to the module's own parts is
no state. Any other value cannot be stored: it is looked at before and after each stage, and a change is
refused, since later shards would see what earlier ones left there. Guide: docs/pitfalls.md.
"""

from __future__ import annotations

import copy
import hashlib
import pickle  # digests of attributes are compared in memory; nothing pickled is kept or loaded
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pybrush.errors import ConfigurationError, TrainingError, UnsupportedError
from pybrush.record import trees
from pybrush_lightning import _private

Attributes = dict[str, Any]

Known = frozenset[int]
"""Identities of a module's own parts: references to them are no state of their own."""


def known_parts(module: torch.nn.Module) -> Known:
    """Return the identities of a module's submodules, parameters and buffers."""
    parts = [*module.modules(), *module.parameters(), *module.buffers()]
    return frozenset(map(id, parts))


def plain_attributes(owner: Any, known: Known) -> Attributes:
    """Return copies of the attributes that a state can hold."""
    # Not deepcopy, which refuses tensors that are still part of a graph.
    return {n: trees.unpack(*trees.pack(value)) for n, value in _attributes(owner, known) if _is_plain(value)}


def write_attributes(owner: Any, stored: Attributes, known: Known) -> None:
    """Set the stored attributes and take away plain ones that were not there then."""
    present = dict(_attributes(owner, known))
    for name in [name for name, value in present.items() if name not in stored and _is_plain(value)]:
        delattr(owner, name)
    for name, value in stored.items():
        setattr(owner, name, placed_like(value, present.get(name)))


def placed_like(value: Any, present: Any) -> Any:
    """Return a copy of a stored value, its tensors on the device of those that it replaces."""
    device = _device_of(present)
    if device is None or device.type == "cpu":
        return copy.deepcopy(value)
    placed: Any = apply_to_collection(copy.deepcopy(value), torch.Tensor, lambda tensor: tensor.to(device))
    return placed


def pointed_elsewhere(owner: Any, replaced: Mapping[int, torch.Tensor]) -> Attributes:
    """Return the attributes that refer to tensors which are replaced elsewhere, with the new ones in their place.

    Args:
        owner: a submodule, for example one with `self.kernels = [self.first.weight, self.second.weight]`.
        replaced: the new tensors by the identity of the old ones.
    """
    return {
        name: apply_to_collection(value, torch.Tensor, lambda tensor: replaced.get(id(tensor), tensor))
        for name, value in vars(owner).items()
        if name not in _private.INTERNAL_ATTRIBUTES and any(id(t) in replaced for t in _tensors_in(value))
    }


def opaque_digests(owners: Iterable[tuple[str, Any]], known: Known) -> dict[str, str]:
    """Return a digest of each attribute that a state cannot hold, by its full name."""
    return {
        f"{place}.{name}": _digest(value)
        for place, owner in owners
        for name, value in _attributes(owner, known)
        if not _is_plain(value)
    }


def check_opaque(before: dict[str, str], after: dict[str, str]) -> None:
    """Refuse attributes that changed in a stage and cannot be stored with it.

    Raises:
        TrainingError: naming them.
    """
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise TrainingError(
            f"training changed {', '.join(changed)}, of types that a stage cannot store, so later shards would see "
            "what earlier ones left there. Keep such state in buffers, tensors or plain values, or return it from the "
            "callback's state_dict()."
        )


def check_no_data(owners: Iterable[tuple[str, Any]], known: Known, datasets: Iterable[Any]) -> None:
    """Refuse attributes that are the training data: stored with every stage, they would outlive any request.

    Raises:
        ConfigurationError: naming them.
    """
    data = {address for dataset in datasets for value in vars(dataset).values() for address in _addresses(value)}
    found = [
        f"{place}.{name}"
        for place, owner in owners
        for name, value in _attributes(owner, known)
        if _is_plain(value) and not data.isdisjoint(_addresses(value))
    ]
    if found:
        raise ConfigurationError(
            f"{', '.join(found)} is training data, which would be stored with every stage and outlive a request. Keep "
            "the data out of module and callbacks, in a data set or data module."
        )


def _addresses(value: Any) -> Iterator[int]:
    """Return where the tensors and arrays in a value, and its containers, lie in memory."""
    if isinstance(value, torch.Tensor):
        yield value.untyped_storage().data_ptr() if value.layout is torch.strided else id(value)
    elif isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        yield value.__array_interface__["data"][0]
    elif _inside(value):
        yield id(value)
        for item in _inside(value):
            yield from _addresses(item)


def _attributes(owner: Any, known: Known) -> Iterator[tuple[str, Any]]:
    """Return the attributes that are neither the frameworks' nor behaviour nor references to known parts."""
    for name, value in list(vars(owner).items()):
        behaviour = callable(value) and not isinstance(value, (type, torch.nn.Module))
        if name not in _private.INTERNAL_ATTRIBUTES and not behaviour and not _refers(value, known):
            yield name, value


def _refers(value: Any, known: Known) -> bool:
    try:
        return _is_reference(value, known)
    except RecursionError:  # a container that holds itself
        return False


def _is_reference(value: Any, known: Known) -> bool:
    """Whether a value is one of the known parts, an optimizer or scheduler, or a container of nothing else."""
    inside = _inside(value)
    if inside:
        return all(_is_reference(item, known) for item in inside)
    return id(value) in known or isinstance(value, (Optimizer, LRScheduler))


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []


def _tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    try:
        return [tensor for item in _inside(value) for tensor in _tensors_in(item)]
    except RecursionError:  # a container that holds itself
        return []


def _is_plain(value: Any) -> bool:
    try:
        trees.pack(value)
    except UnsupportedError:
        return False
    # A stored one would come back as a copy that nothing trains.
    return not _holds_trainable(value)


def _holds_trainable(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.requires_grad and value.is_leaf
    return any(map(_holds_trainable, _inside(value)))


def _device_of(value: Any) -> torch.device | None:
    """Return the device of the first tensor in a value, None where it holds none."""
    if isinstance(value, torch.Tensor):
        return value.device
    return next((device for device in map(_device_of, _inside(value)) if device is not None), None)


def _digest(value: Any) -> str:
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError, RuntimeError):
        return f"object {id(value)}"
