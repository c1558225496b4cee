"""The full state of a module under training, as one typed tree, and back.

More than `state_dict()`: buffers that are not persistent, plain attributes of every submodule and callback,
`training` flags, optimizers, schedulers and loop counters. What later training depends on and this tree
lacks would leak from one shard into the next. Guide: docs/pitfalls.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule

from pybrush.attributes import check_no_data, opaque_digests, plain_attributes, write_attributes
from pybrush.errors import FingerprintError, UnsupportedError
from pybrush_lightning import _private
from pybrush_lightning.attributes import known_parts

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Tree = dict[str, Any]

_STATELESS = {
    *("ModelCheckpoint", "ProgressBar", "ModelSummary", "Timer", "SISA"),
    *("LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor", "SaveConfigCallback"),
}
"""Callbacks that hold no training state, by the name of a class of Lightning or PyBrush in their ancestry."""


def read_module(module: LightningModule) -> Tree:
    """Return tensors, flags and plain attributes of a module and its submodules."""
    known = known_parts(module)
    return {
        "parameters": dict(_tensors(module.named_parameters(remove_duplicate=False))),
        "buffers": dict(_tensors(module.named_buffers(remove_duplicate=False))),
        "trainable": {name: p.requires_grad for name, p in module.named_parameters(remove_duplicate=False)},
        "training": {name: part.training for name, part in module.named_modules()},
        "attributes": {name: plain_attributes(part, known) for name, part in module.named_modules()},
    }


def write_module(module: LightningModule, tree: Tree) -> None:
    """Put a module into the state that `read_module` returned, in place.

    Raises:
        FingerprintError: where its parts have other names, or its parameters other shapes.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    _check_same(_shapes(parameters), _shapes(tree["parameters"]))
    _check_same(dict.fromkeys(dict(module.named_modules())), dict.fromkeys(tree["training"]))
    with torch.no_grad():
        for name, parameter in parameters.items():
            fill(parameter, tree["parameters"][name])
            parameter.grad = None
            parameter.requires_grad_(tree["trainable"][name])
        _write_buffers(module, tree["buffers"])
    known = known_parts(module)
    for name, part in module.named_modules():
        part.training = tree["training"][name]
        write_attributes(part, tree["attributes"][name], known)


def fill(tensor: torch.Tensor, stored: torch.Tensor) -> None:
    """Write stored values into a tensor, in their own type: a module is float32 until a trainer has converted it."""
    if tensor.dtype != stored.dtype:
        tensor.data = torch.empty_like(tensor, dtype=stored.dtype)
    tensor.copy_(stored)


def read_callbacks(trainer: Trainer, module: LightningModule) -> Tree:
    """Return `state_dict()` and plain attributes of every callback that may hold training state."""
    known = known_parts(module)
    return {
        name: {"state": copy.deepcopy(callback.state_dict()), "attributes": plain_attributes(callback, known)}
        for name, callback in stateful_callbacks(trainer)
    }


def write_callbacks(trainer: Trainer, module: LightningModule, tree: Tree) -> None:
    """Put callbacks into the state that `read_callbacks` returned."""
    known = known_parts(module)
    for name, callback in stateful_callbacks(trainer):
        write_attributes(callback, tree[name]["attributes"], known)
        callback.load_state_dict(copy.deepcopy(tree[name]["state"]))


def stateful_callbacks(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """Return the callbacks that may hold training state, each under a name that is the same in every process."""
    seen: dict[str, int] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the callback connector
        kind = type(callback)
        if _private.ancestors(callback) & _STATELESS:
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


def read_start(trainer: Trainer) -> Tree | None:
    """Return the part of the optimization that a shard does not make anew: a gradient scaler's state, if there is one.

    The trainer's own scaler goes on from wherever the stage that ran last left it.
    """
    precision = trainer.precision_plugin.state_dict()
    return {"precision": precision} if precision else None


def write_optimization(trainer: Trainer, tree: Tree) -> None:
    """Put fresh optimizers and schedulers into the state that `read_optimization` or `read_start` returned."""
    if "optimizers" in tree:
        for optimizer, state in zip(trainer.optimizers, tree["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for config, state in zip(trainer.lr_scheduler_configs, tree["schedulers"], strict=True):
            config.scheduler.load_state_dict(state)
    trainer.precision_plugin.load_state_dict(tree["precision"])


def opaque(trainer: Trainer, module: LightningModule) -> dict[str, str]:
    """Return digests of what module and callbacks hold and a state cannot.

    A callback with a `state_dict` of its own answers for its attributes itself.
    """
    callbacks = [(n, c) for n, c in stateful_callbacks(trainer) if _private.own_hook(c, "state_dict") is None]
    return opaque_digests([*_parts(module), *callbacks], known_parts(module))


def check_data_apart(trainer: Trainer, module: LightningModule, datasets: list[Any]) -> None:
    """Refuse a module or callback that holds the training data itself (see `check_no_data`)."""
    check_no_data([*_parts(module), *stateful_callbacks(trainer)], known_parts(module), datasets)


def _parts(module: LightningModule) -> list[tuple[str, Any]]:
    return [(f"module.{name}".rstrip("."), part) for name, part in module.named_modules()]


def _shapes(named: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


def _check_same(own: dict[str, Any], held: dict[str, Any]) -> None:
    """Compare names of parts, or of parameters and their shapes, with stored ones."""
    if own != held:
        missing = object()
        wrong = sorted(n for n in own.keys() | held.keys() if own.get(n, missing) != held.get(n, missing))
        raise FingerprintError(
            f"the module is not built as that of the record; {len(wrong)} parts differ in name or shape: "
            f"{', '.join(wrong[:5])}. Build it as it was trained."
        )


def _tensors(named: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Detach tensors and bring them to the CPU; names that share one tensor go on sharing it."""
    copies: dict[int, torch.Tensor] = {}
    for name, tensor in named:
        if torch.nn.parameter.is_lazy(tensor):
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
