"""What a training in Lightning depends on: sources, settings, optimizers, callbacks, validation data.

Plain attributes of module and callbacks are not listed: they are part of the initial state, which every
stage starts from, so whatever a later module holds there is replaced.
"""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import Iterable
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import ConcatDataset, DataLoader, Subset

from pybrush.content import encode
from pybrush.errors import ContentError, FingerprintError
from pybrush.hashing import chained
from pybrush.names import Namer
from pybrush.record import Record
from pybrush.user_code import code_of, is_installed, plain_of, short_of, source_of, sources_of
from pybrush_lightning import _private, state
from pybrush_lightning.compiled import is_compiled

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_TRUE = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
"""Precisions to which a trainer converts a module itself."""

_BY_LIGHTNING_CLI = ("_instantiator", "_class_path")
"""Hyperparameters that say how a module was built: a script builds the same one without them."""


def semantic(trainer: Trainer, module: LightningModule, loader: DataLoader[Any], optimization: dict[str, Any]) -> Any:
    """Return the semantic fingerprint as plain JSON.

    Args:
        trainer: with the recorded settings in force.
        module: the user's module.
        loader: the user's training loader.
        optimization: what `describe_optimization` returned.
    """
    return {
        "source": sources(module, loader),
        "hyperparameters": hyperparameters(module),
        "parts": parts(module),
        "parameters": {
            name: [str(_trained_type(p, str(trainer.precision))), *p.shape]
            for name, p in module.named_parameters(remove_duplicate=False)
        },
        "optimization": optimization,
        "trainer": {
            "precision": str(trainer.precision),
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "gradient_clip_val": trainer.gradient_clip_val,
            "gradient_clip_algorithm": getattr(trainer.gradient_clip_algorithm, "value", None),
            "world_size": trainer.world_size,
            **({"ddp": plain_of(_private.ddp_settings(trainer))} if trainer.world_size > 1 else {}),
        },
        "callbacks": [f"{name}: {callback.state_key}" for name, callback in state.stateful_callbacks(trainer)],
    }


def _trained_type(parameter: torch.Tensor, precision: str) -> torch.dtype:
    """Return the type in which a parameter is trained: where a request begins, the trainer has converted nothing."""
    return _TRUE.get(precision, parameter.dtype) if parameter.is_floating_point() else parameter.dtype


def hyperparameters(module: LightningModule) -> dict[str, Any]:
    """Return what save_hyperparameters stored, as plain JSON."""
    given = {name: value for name, value in module.hparams.items() if name not in _BY_LIGHTNING_CLI}
    return {str(name): short_of(plain_of(value)) for name, value in given.items()}


def parts(module: torch.nn.Module) -> dict[str, str]:
    """Return the class of each submodule and the name of each function held as an attribute."""
    found = {}
    for place, part in module.named_modules():
        found[place or "module"] = type(part).__qualname__
        compiled = {*_private.compiled_steps(part), "_compiled_call_impl"}
        for name, value in vars(part).items():
            if isinstance(value, (FunctionType, BuiltinFunctionType)) and name not in compiled:
                found[f"{place}.{name}".lstrip(".")] = value.__name__
    return found


def check_processes(record: Record, trainer: Trainer) -> None:
    """Refuse another number of processes than the record's, which cuts other batches.

    Raises:
        FingerprintError: saying how to build the trainer.
    """
    recorded, now = record.plan.semantic["trainer"]["world_size"], trainer.world_size
    if recorded != now:
        settings = f"devices={recorded}" + (", strategy='ddp'" if recorded > 1 else "")
        raise FingerprintError(
            f"{record.folder} was trained by {recorded} processes and this trainer has {now}, so batches would be cut "
            f"in another way. Use Trainer({settings})."
        )


def describe_optimization(optimizers: Iterable[Any], configs: Iterable[Any]) -> dict[str, Any]:
    """Return optimizers and schedulers as plain JSON; nothing that depends on the number of rows."""
    return {
        "optimizers": [
            {
                "class": type(o).__qualname__,
                "defaults": plain_of(o.defaults),
                "groups": list(map(_group, o.param_groups)),
            }
            for o in optimizers
        ],
        "schedulers": [
            {
                "class": type(c.scheduler).__qualname__,
                "interval": c.interval,
                "frequency": c.frequency,
                "monitor": c.monitor,
                "settings": {} if c.interval == "step" else _settings(c.scheduler),
            }
            for c in configs
        ],
    }


def _settings(scheduler: Any) -> dict[str, Any]:
    """Return the constructor's arguments that a scheduler kept; its counters belong to torch's version."""
    names = inspect.signature(type(scheduler)).parameters.keys() - {"optimizer", "last_epoch"}
    return {name: plain_of(vars(scheduler)[name]) for name in sorted(names) if name in vars(scheduler)}


def _group(group: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a parameter group; a scheduler may have set the first rate from the number of rows."""
    rate = group.get("initial_lr", group["lr"]) if "lr" in group else None
    rest = {name: value for name, value in group.items() if name not in ("params", "lr")}
    return {"count": len(group["params"]), "rate": plain_of(rate), **plain_of(rest)}


def sources(module: LightningModule, loader: DataLoader[Any]) -> dict[str, str]:
    """Return the source text of the user's classes and functions, "unknown" where there is none."""
    kinds = [base for part in module.modules() for base in type(part).__mro__]
    kinds += [base for dataset in datasets_of(loader.dataset) for base in type(dataset).__mro__]
    found = sources_of(kinds)
    collate = code_of(loader.collate_fn)
    if not is_installed(collate):
        found["collate_fn"] = source_of(collate)
    return found


def environment(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return versions, device, threads and processor features, and whether the module was compiled."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "device": str(trainer.strategy.root_device),
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "compiled": is_compiled(module),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def worker_init(loader: DataLoader[Any]) -> str | None:
    """Return the name of what seeds the workers: they start with other numbers under another one."""
    function: Any = loader.worker_init_fn
    if function is None:
        return "pl_worker_init_function" if int(os.environ.get("PL_SEED_WORKERS", "0")) else None
    return str(getattr(function.func if isinstance(function, partial) else function, "__name__", "unknown"))


def validation_digest(loaders: Any, namer: Namer) -> str:
    """Return a keyed digest of the validation data, for trainings that something in it steers.

    Raises:
        ContentError: where a sample has no canonical encoding.
    """
    digests = []
    for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
        dataset: Any = getattr(loader, "dataset", loader)
        if not hasattr(dataset, "__len__"):
            raise ContentError(
                "validation data steers this training (EarlyStopping or a plateau scheduler), so it must be a "
                f"map-style data set that can be read again; got {type(dataset).__name__}."
            )
        digests.append(namer.contents(encode(dataset[index]) for index in range(len(dataset))).tobytes())
    return chained("pybrush-meaning", *digests).hex()


def datasets_of(dataset: Any) -> list[Any]:
    """Return a data set and those it is cut or joined from."""
    if isinstance(dataset, Subset):
        return datasets_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [below for part in dataset.datasets for below in datasets_of(part)]
    return [dataset]
