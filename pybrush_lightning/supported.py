"""What SISA in Lightning can train the same way twice, and the refusal of everything else, in one message."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pybrush.errors import UnsupportedError
from pybrush_lightning import _private
from pybrush_lightning.checkpoints import remote_folders
from pybrush_lightning.limits import Limits
from pybrush_lightning.stage_data import loader_problems

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_CALLBACKS = {
    "StochasticWeightAveraging": "leave it out: averages over epochs cross the stages",
    "WeightAveraging": "leave it out: averages over epochs cross the stages",
    "BaseFinetuning": "freeze in the module's constructor",
    "OnExceptionCheckpoint": "leave it out: it makes each fit start from a checkpoint; SISA resumes from its record",
    "ModelPruning": "prune before training, or after it on the aggregate",
    "LearningRateFinder": "call Tuner(trainer).lr_find(...) before the fit",
    "BatchSizeFinder": "call Tuner(trainer).scale_batch_size(...) before the fit",
    "SpikeDetection": "leave it out: what it skips depends on the losses of other rows and is kept in a file",
}
_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed")


def check_training(trainer: Trainer, module: LightningModule, loader: Any = None) -> None:
    """Refuse what SISA does not handle, all of it in one message.

    Args:
        trainer: the user's trainer.
        module: the user's module.
        loader: the training loader, where it is known already.

    Raises:
        UnsupportedError: listing each setting with what to do instead.
    """
    problems = [*_settings(trainer), *_limits(trainer), *_module(module), *_callbacks(trainer)]
    problems += remote_folders(trainer)
    if loader is not None:
        problems += loader_problems(loader)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UnsupportedError(f"SISA cannot train this exactly; change {len(problems)} settings:\n{listed}")


def _settings(trainer: Trainer) -> Iterator[str]:
    yield from _processes(trainer)
    if str(trainer.precision) not in _PRECISIONS:
        yield f"precision={str(trainer.precision)!r}: use one of {', '.join(_PRECISIONS)}"


def _processes(trainer: Trainer) -> Iterator[str]:
    kind, count = type(trainer.strategy).__name__, trainer.world_size
    if count == 1:
        if not kind.startswith("SingleDevice"):
            yield f"strategy={kind}: leave strategy= out, one device is trained on"
        return
    if not _private.is_ddp(trainer):
        yield f"strategy={kind} with {count} processes: use strategy='ddp', or devices=1"
        return
    for name in _private.ddp_extras(trainer):
        yield f"{name} with strategy='ddp': leave it out, gradients are averaged by DDP alone"


def _limits(trainer: Trainer) -> Iterator[str]:
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    if epochs == 0 or (epochs == -1 and trainer.max_steps == -1):
        yield f"max_epochs={trainer.max_epochs}: give Trainer a whole number of epochs of at least 1, or max_steps"
    if trainer.max_steps == 0:
        yield "max_steps=0: give Trainer at least one step, or leave it out"
    if not trainer.limit_train_batches:
        yield f"limit_train_batches={trainer.limit_train_batches}: give Trainer at least one batch, or a share of them"
    if _private.validates_by_the_clock(trainer):
        yield "val_check_interval as a time: give a number of batches, the clock is not the same twice"


def _module(module: LightningModule) -> Iterator[str]:
    if _private.own_hook(module, "configure_callbacks") is not None:
        yield "configure_callbacks: give the callbacks to the Trainer"


def _callbacks(trainer: Trainer) -> Iterator[str]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the callback connector
    ancestors = [_private.ancestors(callback) for callback in callbacks]
    if sum("SISA" in names for names in ancestors) > 1:
        yield "two SISA callbacks: give each record a Trainer of its own"
    for callback, names in zip(callbacks, ancestors, strict=True):
        for name in sorted(names & _CALLBACKS.keys()):
            yield f"{type(callback).__name__}: {_CALLBACKS[name]}"
        if "Timer" in names and _private.has_time_limit(callback):
            yield "max_time or Timer: leave it out, the clock is not the same twice"


def check_schedulers(configs: list[Any], limits: Limits) -> None:
    """Refuse schedulers that cannot be cut into stages.

    A copy of each is stepped through the whole horizon. With one slice the horizon is the user's own number
    of epochs and nothing has to be checked.

    Raises:
        UnsupportedError: with what to do instead.
    """
    if limits.slices == 1:
        return
    for config in configs:
        problem = _step_problem(config, limits)
        if problem:
            raise UnsupportedError(
                f"{type(config.scheduler).__name__} {problem}. With slices > 1 a shard is trained for {limits.horizon} "
                "epochs: build the scheduler from trainer.max_epochs, or use slices=1."
            )


def _step_problem(config: Any, limits: Limits) -> str:
    """Return why a scheduler cannot be cut into stages, or ''."""
    if config.interval == "step":
        return "steps every batch, and the number of batches changes with each deletion"
    if isinstance(config.scheduler, ReduceLROnPlateau) or limits.max_epochs == -1:
        return ""  # without a number of epochs there is no horizon to step through
    return _rate_problem(config, limits.epochs, limits.horizon)


def _rate_problem(config: Any, epochs: int, horizon: int) -> str:
    """Return why a scheduler's rates cannot go on from some epochs to a horizon, or ''."""
    try:
        rates = _rates(config, horizon)
    except (ValueError, RuntimeError) as error:
        return f"raises within {horizon} epochs ({error})"
    if any(rate <= 0 for rates_now in rates for rate in rates_now):
        return f"reaches a rate of zero before epoch {horizon}"
    last = rates[min(epochs - 1, horizon - 1)]
    if any(rate > end for later in rates[epochs:] for rate, end in zip(later, last, strict=True)):
        return f"raises its rate again after epoch {epochs}"
    return ""


def _rates(config: Any, horizon: int) -> list[list[float]]:
    """Return the rates of each epoch of a horizon; the scheduler itself stays where it is."""
    optimizer = config.scheduler.optimizer
    # Parameters and their momentum are shared with the copy, which changes rates only.
    shared = [optimizer.state, *(p for group in optimizer.param_groups for p in group["params"])]
    scheduler = copy.deepcopy(config.scheduler, {id(item): item for item in shared})
    rates = [list(scheduler.get_last_lr())]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*optimizer.step.*")
        for epoch in range(1, horizon):
            if epoch % config.frequency == 0:
                scheduler.step()
            rates.append(list(scheduler.get_last_lr()))
    return rates
