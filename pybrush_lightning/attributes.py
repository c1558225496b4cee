"""Attributes of modules: which are torch's or Lightning's, and which refer to tensors that are replaced.

What is stored of them, and what is refused, is the core's: `pybrush.attributes`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pybrush.attributes import Attributes, inside
from pybrush_lightning import _private

REMEDY = "Keep such state in buffers, tensors or plain values, or return it from the callback's state_dict()."
"""Where users of Lightning keep what a stage must store."""


@dataclass(frozen=True)
class KnownParts:
    """What the core must know of attributes in torch, and of one module's parts.

    Attributes:
        identities: of the module's submodules, parameters and buffers: references to them are no state of their own.
    """

    identities: frozenset[int]

    def is_internal(self, owner: Any, name: str) -> bool:  # noqa: ARG002 (the name alone decides)
        """Whether an attribute is torch's or Lightning's."""
        return name in _private.INTERNAL_ATTRIBUTES

    def is_part(self, value: Any) -> bool:
        """Whether a value is a part of the module, an optimizer or a scheduler."""
        return id(value) in self.identities or isinstance(value, (Optimizer, LRScheduler))

    def holds_state(self, value: Any) -> bool:
        """Whether a value is a module."""
        return isinstance(value, torch.nn.Module)

    def is_trainable(self, value: Any) -> bool:
        """Whether a value is a tensor that an optimizer may have."""
        return isinstance(value, torch.Tensor) and value.requires_grad and value.is_leaf

    def address(self, value: Any) -> int | None:
        """Return where a tensor lies in memory, views of it at the same place."""
        if not isinstance(value, torch.Tensor):
            return None
        return value.untyped_storage().data_ptr() if value.layout is torch.strided else id(value)

    def read(self, value: Any) -> Any:
        """Return a value as it is: torch keeps attributes as they were set."""
        return value

    def compared(self, value: Any) -> Any:
        """Return a value as it is: pickles of modules are the same each time."""
        return value

    def placed(self, value: Any, present: Any) -> Any:
        """Return a copy of a stored value, its tensors on the device of those that it replaces."""
        return placed_like(value, present)


def known_parts(module: torch.nn.Module) -> KnownParts:
    """Return what is known of a module: its submodules, parameters and buffers."""
    parts = [*module.modules(), *module.parameters(), *module.buffers()]
    return KnownParts(frozenset(map(id, parts)))


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


def _tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    try:
        return [tensor for item in inside(value) for tensor in _tensors_in(item)]
    except RecursionError:  # a container that holds itself
        return []


def _device_of(value: Any) -> torch.device | None:
    """Return the device of the first tensor in a value, None where it holds none."""
    if isinstance(value, torch.Tensor):
        return value.device
    return next((device for device in map(_device_of, inside(value)) if device is not None), None)
