"""The full state of a module under training, as one typed tree, and back.

More than `state_dict()`: buffers that are not persistent, plain attributes of every submodule and callback,
`training` flags, optimizers, schedulers and loop counters. What later training depends on and this tree
lacks would leak from one shard into the next. Guide: docs/pitfalls.md.
"""

from __future__ import annotations

import copy
import hashlib
import pickle  # digests of attributes are compared in memory; nothing pickled is kept or loaded
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pybrush.errors import FingerprintError, TrainingError, UnsupportedError
from pybrush.record import states
from pybrush_lightning import _private

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Tree = dict[str, Any]

_STATELESS = ("ModelCheckpoint", "ProgressBar", "ModelSummary", "Timer", "SISA", "OnExceptionCheckpoint")
"""Callbacks that hold no training state, by the name of a class in their ancestry (both packages)."""

_NOT_ATTRIBUTES = (torch.nn.Module, Optimizer, LRScheduler, ReduceLROnPlateau)


def read_module(module: LightningModule) -> Tree:
    """Return tensors, flags and plain attributes of a module and its submodules."""
    return {
        "parameters": dict(_tensors(module.named_parameters(remove_duplicate=False))),
        "buffers": dict(_tensors(module.named_buffers(remove_duplicate=False))),
        "trainable": {name: p.requires_grad for name, p in module.named_parameters(remove_duplicate=False)},
        "training": {name: part.training for name, part in module.named_modules()},
        "attributes": {name: plain_attributes(part) for name, part in module.named_modules()},
    }


def write_module(module: LightningModule, tree: Tree) -> None:
    """Put a module into the state that `read_module` returned, in place.

    Raises:
        FingerprintError: where parameters have other names or shapes.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    check_shapes(parameters, tree["parameters"])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tree["parameters"][name])
            parameter.grad = None
            parameter.requires_grad_(tree["trainable"][name])
        _write_buffers(module, tree["buffers"])
    for name, part in module.named_modules():
        part.training = tree["training"][name]
        write_attributes(part, tree["attributes"][name])


def check_shapes(parameters: dict[str, Any], stored: dict[str, Any]) -> None:
    """Compare names and shapes of parameters with stored ones."""
    own = {name: tuple(value.shape) for name, value in parameters.items()}
    held = {name: tuple(value.shape) for name, value in stored.items()}
    if own != held:
        wrong = sorted(name for name in own.keys() | held.keys() if own.get(name) != held.get(name))
        raise FingerprintError(
            f"the module's parameters are not those of the record; {len(wrong)} differ in name or shape: "
            f"{', '.join(wrong[:5])}. Build the module as it was trained."
        )


def read_callbacks(trainer: Trainer) -> Tree:
    """Return `state_dict()` and plain attributes of every callback that may hold training state."""
    return {
        name: {"state": callback.state_dict(), "attributes": plain_attributes(callback)}
        for name, callback in stateful_callbacks(trainer)
    }


def write_callbacks(trainer: Trainer, tree: Tree) -> None:
    """Put callbacks into the state that `read_callbacks` returned."""
    for name, callback in stateful_callbacks(trainer):
        write_attributes(callback, tree[name]["attributes"])
        callback.load_state_dict(copy.deepcopy(tree[name]["state"]))


def stateful_callbacks(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """Return the callbacks that may hold training state, each under a name that is the same in every process."""
    seen: dict[str, int] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the callback connector
        kind = type(callback)
        if any(base.__name__ in _STATELESS for base in kind.__mro__):
            continue
        number = seen[kind.__qualname__] = seen.get(kind.__qualname__, -1) + 1
        yield f"{kind.__qualname__}.{number}", callback


def read_optimization(trainer: Trainer) -> Tree:
    """Return the state of optimizers, schedulers and precision of a running stage."""
    return {
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "precision": trainer.precision_plugin.state_dict(),
    }


def write_optimization(trainer: Trainer, tree: Tree) -> None:
    """Put fresh optimizers and schedulers into the state that `read_optimization` returned."""
    for optimizer, state in zip(trainer.optimizers, tree["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    for config, state in zip(trainer.lr_scheduler_configs, tree["schedulers"], strict=True):
        config.scheduler.load_state_dict(state)
    trainer.precision_plugin.load_state_dict(tree["precision"])


def plain_attributes(owner: Any) -> Tree:
    """Return copies of the attributes that a state can hold."""
    return {name: copy.deepcopy(value) for name, value in _attributes(owner) if _is_plain(value)}


def write_attributes(owner: Any, stored: Tree) -> None:
    """Set the stored attributes and take away plain ones that were not there then."""
    for name in [name for name, value in _attributes(owner) if name not in stored and _is_plain(value)]:
        delattr(owner, name)
    for name, value in stored.items():
        setattr(owner, name, copy.deepcopy(value))


def opaque_digests(module: LightningModule, trainer: Trainer) -> dict[str, str]:
    """Return a digest of each attribute that a state cannot hold, by its full name."""
    owners = [(f"module.{name}".rstrip("."), part) for name, part in module.named_modules()]
    owners += stateful_callbacks(trainer)
    return {
        f"{place}.{name}": _digest(value)
        for place, owner in owners
        for name, value in _attributes(owner)
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
            f"training changed {', '.join(changed)}, of types that a stage cannot store, so later shards would see what "
            "earlier ones left there. Keep such state in buffers, tensors or plain values, or return it from the "
            "callback's state_dict()."
        )


def _tensors(named: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Detach tensors and bring them to the CPU; names that share one tensor go on sharing it."""
    copies: dict[int, torch.Tensor] = {}
    for name, tensor in named:
        if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
            raise UnsupportedError(f"parameter {name} has no shape yet; run one batch through the module before fit.")
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
        yield name, copies[id(tensor)]


def _write_buffers(module: LightningModule, stored: dict[str, torch.Tensor]) -> None:
    own = dict(module.named_buffers(remove_duplicate=False))
    for name, value in stored.items():
        there = own.get(name)
        if there is not None and there.shape == value.shape and there.dtype == value.dtype:
            there.copy_(value)
            continue
        owner, _, last = name.rpartition(".")
        device = module.device if there is None else there.device
        setattr(module.get_submodule(owner), last, value.to(device, copy=True))
    for name in own.keys() - stored.keys():
        owner, _, last = name.rpartition(".")
        delattr(module.get_submodule(owner), last)


def _attributes(owner: Any) -> Iterator[tuple[str, Any]]:
    """Return a module's or callback's own attributes that are neither the frameworks' nor behaviour."""
    for name, value in list(vars(owner).items()):
        behaviour = isinstance(value, _NOT_ATTRIBUTES) or (callable(value) and not isinstance(value, type))
        if name not in _private.INTERNAL_ATTRIBUTES and not behaviour:
            yield name, value


def _is_plain(value: Any) -> bool:
    try:
        states.pack(value)
    except UnsupportedError:
        return False
    return True


def _digest(value: Any) -> str:
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError, RuntimeError):
        return f"object {id(value)}"
