"""What SISA in Lightning can train the same way twice, and the refusal of everything else, in one message."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pybrush.errors import UnsupportedError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_CALLBACKS = {
    "GradientAccumulationScheduler": "set accumulate_grad_batches to one number",
    "StochasticWeightAveraging": "leave it out: averages over epochs cross the stages",
    "WeightAveraging": "leave it out: averages over epochs cross the stages",
    "BaseFinetuning": "freeze in the module's constructor",
    "ModelPruning": "prune before training, or after it on the aggregate",
    "LearningRateFinder": "run it before, in a Trainer without SISA",
    "BatchSizeFinder": "run it before, in a Trainer without SISA",
}


def check_trainer(trainer: Trainer, module: LightningModule, slices: int) -> None:
    """Refuse what SISA does not handle, all of it in one message.

    Raises:
        UnsupportedError: listing each setting with what to do instead.
    """
    problems = [*_settings(trainer), *_module(module), *_callbacks(trainer, slices)]
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UnsupportedError(f"SISA cannot train this exactly; change {len(problems)} settings:\n{listed}")


def _settings(trainer: Trainer) -> Iterator[str]:
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        yield f"max_epochs={trainer.max_epochs}: give Trainer a whole number of epochs of at least 1"
    limits = {"max_steps": trainer.max_steps != -1, "min_steps": bool(trainer.min_steps)}
    limits["min_epochs"] = bool(trainer.min_epochs)
    for name, is_set in limits.items():
        if is_set:
            yield f"{name}: leave it out, a stage ends by its epochs"
    if trainer.limit_train_batches != 1.0:
        yield "limit_train_batches: leave it out, or train on a Subset"
    if trainer.overfit_batches:
        yield "overfit_batches: use it in a Trainer without SISA"
    if trainer.reload_dataloaders_every_n_epochs:
        yield "reload_dataloaders_every_n_epochs: leave it out, rows are recorded once"
    if trainer.world_size != 1:
        yield f"{trainer.world_size} processes: train with devices=1 and num_nodes=1"
    if "16-mixed" == str(trainer.precision):
        yield "precision='16-mixed': use 'bf16-mixed' or 32"


def _module(module: LightningModule) -> Iterator[str]:
    if not module.automatic_optimization:
        yield "manual optimization: use automatic optimization"


def _callbacks(trainer: Trainer, slices: int) -> Iterator[str]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the callback connector
        names = {base.__name__ for base in type(callback).__mro__}
        for name in sorted(names & _CALLBACKS.keys()):
            yield f"{type(callback).__name__}: {_CALLBACKS[name]}"
        if "EarlyStopping" in names and slices > 1:
            yield "EarlyStopping with slices > 1: use slices=1, where a shard ends when Lightning stops it"
        if "Timer" in names and getattr(callback, "_duration", None) is not None:
            yield "max_time or Timer: leave it out, the clock is not the same twice"


def check_schedulers(configs: list[Any], slices: int, epochs: int, horizon: int) -> None:
    """Refuse schedulers that cannot be cut into stages.

    A deep copy of each is stepped through the whole horizon. With one slice the horizon is the user's own
    number of epochs and nothing has to be checked.

    Raises:
        UnsupportedError: with what to do instead.
    """
    if slices == 1:
        return
    for config in configs:
        if isinstance(config.scheduler, ReduceLROnPlateau):
            continue
        problem = _step_problem(config, epochs, horizon)
        if problem:
            raise UnsupportedError(
                f"{type(config.scheduler).__name__} {problem}. With slices > 1 a shard is trained for {horizon} epochs: "
                "build the scheduler from trainer.max_epochs, or use slices=1."
            )


def _step_problem(config: Any, epochs: int, horizon: int) -> str:
    """Return why a scheduler cannot be cut into stages, or ''."""
    if config.interval == "step":
        return "steps every batch, and the number of batches changes with each deletion"
    scheduler = copy.deepcopy(config.scheduler)
    rates = [list(scheduler.get_last_lr())]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*optimizer.step.*")
        for epoch in range(1, horizon):
            try:
                scheduler.step()
            except (ValueError, RuntimeError) as error:
                return f"raises in epoch {epoch} of {horizon} ({error})"
            rates.append(list(scheduler.get_last_lr()))
    if any(rate <= 0 for rates_now in rates for rate in rates_now):
        return f"reaches a rate of zero before epoch {horizon}"
    last = rates[min(epochs - 1, horizon - 1)]
    if any(rate > end for later in rates[epochs:] for rate, end in zip(later, last, strict=True)):
        return f"raises its rate again after epoch {epochs}"
    return ""
