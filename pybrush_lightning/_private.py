"""Every private name of Lightning that PyBrush uses, in one place (lightning >=2.6,<2.7).

Each has a canary test. `lightning.pytorch` and `pytorch_lightning` are different classes with the same
shape, so everything is reached from the instances at hand, never by isinstance on a trainer.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning_utilities.core import rank_zero

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    CallbackBase = Callback
else:

    def _callback_base() -> type:
        """Return a base that the trainers of both Lightning packages accept as a callback."""
        if importlib.util.find_spec("pytorch_lightning") is None:
            return Callback
        # Importing it moves Lightning's messages to another logger, past what the user has set for the first.
        log = rank_zero.log
        other = importlib.import_module("pytorch_lightning").Callback
        rank_zero.log = log
        return type("CallbackBase", (Callback, other), {})

    CallbackBase = _callback_base()

INTERNAL_ATTRIBUTES = frozenset(vars(LightningModule())) | {
    "_hparams", "_hparams_name", "_hparams_initial", "_log_hyperparams", "trainer", "prepare_data_per_node",
}  # fmt: skip
"""Attributes of a module that belong to Lightning or torch; their state is stored by other means."""


def trainer_classes() -> list[type]:
    """Return the Trainer classes of the Lightning packages that are installed."""
    return [package.Trainer for package in _packages()]


def module_classes() -> tuple[type, ...]:
    """Return the LightningModule classes of the Lightning packages that are installed."""
    return tuple(package.LightningModule for package in _packages())


def _packages() -> list[Any]:
    names = ("lightning.pytorch", "pytorch_lightning")
    return [importlib.import_module(name) for name in names if importlib.util.find_spec(name.split(".")[0])]


def connected_module(trainer: Trainer) -> LightningModule | None:
    """Return the module that the trainer was last given, without connecting anything."""
    module: LightningModule | None = trainer.strategy._lightning_module
    return module


def train_source(trainer: Trainer) -> Any:
    """Return the object from which the fit loop requests its loader."""
    return trainer.fit_loop._data_source


def checkpoint_path(trainer: Trainer) -> str:
    """Return the checkpoint that the running call loads, or ''."""
    return str(trainer._checkpoint_connector._ckpt_path or "")


def reset_metrics(trainer: Trainer) -> None:
    """Forget logged metrics, so that none of another shard is monitored."""
    trainer._logger_connector.reset_results()
    trainer._logger_connector.reset_metrics()


def _package(trainer: Trainer) -> str:
    return "pytorch_lightning" if type(trainer.fit_loop).__module__.startswith("pytorch_l") else "lightning.pytorch"


def make_optimizers(trainer: Trainer, module: LightningModule) -> tuple[list[Any], list[Any]]:
    """Call configure_optimizers as Lightning does; return optimizers and scheduler configs, connected to nothing."""
    optimizer_module = importlib.import_module(f"{_package(trainer)}.core.optimizer")
    optimizers, configs = optimizer_module._init_optimizers_and_lr_schedulers(module)
    return optimizers, configs


def set_up_optimizers(trainer: Trainer) -> None:
    """Make fresh optimizers and schedulers and connect them to trainer and precision."""
    trainer.strategy.setup_optimizers(trainer)
    trainer.strategy.setup_precision_plugin()


@contextmanager
def attached(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Attach a module to a trainer that does not run, and detach it again."""
    strategy, before = trainer.strategy, trainer.strategy._lightning_module
    own = module._trainer
    strategy._lightning_module = module
    module.trainer = trainer
    try:
        yield
    finally:
        strategy._lightning_module = before
        module._trainer = own


def set_progress(loop: Any, epochs: int, steps: int, batches: int) -> None:
    """Let a fit loop stand where `epochs`, optimizer `steps` and `batches` are done."""
    for progress, count in ((loop.epoch_progress, epochs), (loop.epoch_loop.batch_progress, batches)):
        for tracker in (progress.total, progress.current):
            for name in ("ready", "started", "processed", "completed"):
                setattr(tracker, name, count)
    step = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    step.total.ready = step.total.completed = steps
    loop.epoch_loop._batches_that_stepped = steps


def progress(loop: Any) -> tuple[int, int, int]:
    """Return epochs, optimizer steps and batches that a fit loop has done."""
    epochs = int(loop.epoch_progress.current.processed)
    return epochs, int(loop.epoch_loop.global_step), int(loop.epoch_loop.batch_progress.total.ready)


def reset_checkpoint_callback(callback: Any) -> None:
    """Let a ModelCheckpoint forget what it saved: each stage has its own best files."""
    worst = torch.tensor(float("inf") if callback.mode == "min" else -float("inf"))
    fresh = {
        "best_k_models": {}, "kth_best_model_path": "", "best_model_score": None, "best_model_path": "",
        "last_model_path": "", "current_score": None, "kth_value": worst, "_last_global_step_saved": 0,
        "_last_checkpoint_saved": "", "_last_time_checked": None,
    }  # fmt: skip
    for name, value in fresh.items():
        setattr(callback, name, value)
