"""What a training in Lightning depends on: sources, settings, optimizers, callbacks, validation data.

Plain attributes of module and callbacks are not listed: they are part of the initial state, which every
stage starts from, so whatever a later module holds there is replaced.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import sys
import sysconfig
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import ConcatDataset, DataLoader, Subset, default_collate

from pybrush.content import encode
from pybrush.errors import ContentError
from pybrush_lightning import state

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_SILENT = ("LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor")
"""Callbacks that only look on, by class name."""


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
        "hyperparameters": {str(name): _plain(value) for name, value in module.hparams.items()},
        "parameters": {
            name: [str(p.dtype), *p.shape] for name, p in module.named_parameters(remove_duplicate=False)
        },
        "optimization": optimization,
        "trainer": {
            "precision": str(trainer.precision),
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "gradient_clip_val": trainer.gradient_clip_val,
            "gradient_clip_algorithm": str(trainer.gradient_clip_algorithm or "norm"),
            "world_size": trainer.world_size,
        },
        "callbacks": [
            f"{name}: {callback.state_key}"
            for name, callback in state.stateful_callbacks(trainer)
            if type(callback).__name__ not in _SILENT
        ],
    }


def describe_optimization(optimizers: Iterable[Any], configs: Iterable[Any]) -> dict[str, Any]:
    """Return optimizers and schedulers as plain JSON; nothing that depends on the number of rows."""
    return {
        "optimizers": [
            {"class": type(o).__qualname__, "groups": len(o.param_groups), "defaults": _plain(o.defaults)}
            for o in optimizers
        ],
        "schedulers": [
            {
                "class": type(c.scheduler).__qualname__,
                "interval": c.interval,
                "frequency": c.frequency,
                "monitor": c.monitor,
            }
            for c in configs
        ],
    }


def sources(module: LightningModule, loader: DataLoader[Any]) -> dict[str, str]:
    """Return the source text of the user's classes and functions, "unknown" where there is none."""
    kinds = [base for part in module.modules() for base in type(part).__mro__]
    kinds += [base for dataset in _datasets(loader.dataset) for base in type(dataset).__mro__]
    found: dict[str, str] = {}
    for kind in dict.fromkeys(kinds):
        if not _is_installed(kind):
            name = kind.__qualname__ if kind.__qualname__ not in found else f"{kind.__module__}.{kind.__qualname__}"
            found[name] = _source(kind)
    if loader.collate_fn is not default_collate and not _is_installed(loader.collate_fn):
        found["collate_fn"] = _source(loader.collate_fn)
    return found


def environment(trainer: Trainer) -> dict[str, Any]:
    """Return versions, device, threads and processor features."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "device": str(trainer.strategy.root_device),
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def validation_digest(loaders: Any) -> str:
    """Return a digest of the validation data, for trainings that something in it steers.

    Raises:
        ContentError: where a sample has no canonical encoding.
    """
    total = hashlib.sha256()
    for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
        dataset = getattr(loader, "dataset", loader)
        if not hasattr(dataset, "__len__"):
            raise ContentError(
                "validation data steers this training (EarlyStopping or a plateau scheduler), so it must be a map-style "
                f"data set that can be read again; got {type(dataset).__name__}."
            )
        total.update(len(dataset).to_bytes(8, "little"))
        for index in range(len(dataset)):
            total.update(encode(dataset[index]))
    return total.hexdigest()


def _datasets(dataset: Any) -> list[Any]:
    """Return a data set and those it is cut or joined from."""
    if isinstance(dataset, Subset):
        return _datasets(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [below for part in dataset.datasets for below in _datasets(part)]
    return [dataset]


def _is_installed(item: Any) -> bool:
    """Whether a class or function comes from the standard library or an installed distribution."""
    module = sys.modules.get(getattr(item, "__module__", ""), None)
    file = getattr(module, "__file__", None)
    if module is None or (file is None and module.__name__ != "__main__"):
        return module is not None
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return file is not None and any(file.startswith(place) for place in places)


def _source(item: Any) -> str:
    try:
        return inspect.getsource(item)
    except (OSError, TypeError):
        return "unknown"


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; for other types, the name of the type."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return f"<{type(value).__qualname__}>"
