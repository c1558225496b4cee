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
from pybrush_lightning.stage_data import loader_problems

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_CALLBACKS = {
    "GradientAccumulationScheduler": "set accumulate_grad_batches to one number",
    "StochasticWeightAveraging": "leave it out: averages over epochs cross the stages",
    "WeightAveraging": "leave it out: averages over epochs cross the stages",
    "BaseFinetuning": "freeze in the module's constructor",
    "OnExceptionCheckpoint": "leave it out: it makes each fit start from a checkpoint; SISA resumes from its record",
    "ModelPruning": "prune before training, or after it on the aggregate",
    "LearningRateFinder": "run it before, in a Trainer without SISA",
    "BatchSizeFinder": "run it before, in a Trainer without SISA",
    "SpikeDetection": "leave it out: what it skips depends on the losses of other rows and is kept in a file",
}
_PRECISIONS = ("32-true", "bf16-mixed")


def check_training(trainer: Trainer, module: LightningModule, slices: int, loader: Any = None) -> None:
    """Refuse what SISA does not handle, all of it in one message.

    Args:
        trainer: the user's trainer.
        module: the user's module.
        slices: R.
        loader: the training loader, where it is known already.

    Raises:
        UnsupportedError: listing each setting with what to do instead.
    """
    problems = [*_settings(trainer), *_limits(trainer), *_module(module), *_callbacks(trainer, slices)]
    problems += remote_folders(trainer)
    if loader is not None:
        problems += loader_problems(loader)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UnsupportedError(f"SISA cannot train this exactly; change {len(problems)} settings:\n{listed}")


def _settings(trainer: Trainer) -> Iterator[str]:
    yield from _processes(trainer)
    if str(trainer.precision) not in _PRECISIONS:
        yield f"precision={str(trainer.precision)!r}: use '32-true' or 'bf16-mixed'"
    own = vars(trainer)  # set by connectors, so the class does not declare them
    if own["overfit_batches"]:
        yield "overfit_batches: use it in a Trainer without SISA"
    if own["reload_dataloaders_every_n_epochs"]:
        yield "reload_dataloaders_every_n_epochs: leave it out, rows are recorded once"


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
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        yield f"max_epochs={trainer.max_epochs}: give Trainer a whole number of epochs of at least 1"
    limits = {
        "max_steps": trainer.max_steps != -1,
        "min_steps": bool(trainer.min_steps),
        "min_epochs": bool(trainer.min_epochs),
    }
    for name, is_set in limits.items():
        if is_set:
            yield f"{name}: leave it out, a stage ends by its epochs"
    # The integer 1 is one batch, the float 1.0 all of them.
    if isinstance(trainer.limit_train_batches, int) or trainer.limit_train_batches != 1.0:
        yield f"limit_train_batches={trainer.limit_train_batches}: leave it out, or train on a Subset"


def _module(module: LightningModule) -> Iterator[str]:
    if not module.automatic_optimization:
        yield "manual optimization: use automatic optimization"
    if _private.own_hook(module, "configure_callbacks") is not None:
        yield "configure_callbacks: give the callbacks to the Trainer"


def _callbacks(trainer: Trainer, slices: int) -> Iterator[str]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the callback connector
    ancestors = [_private.ancestors(callback) for callback in callbacks]
    if sum("SISA" in names for names in ancestors) > 1:
        yield "two SISA callbacks: give each record a Trainer of its own"
    for callback, names in zip(callbacks, ancestors, strict=True):
        for name in sorted(names & _CALLBACKS.keys()):
            yield f"{type(callback).__name__}: {_CALLBACKS[name]}"
        if "EarlyStopping" in names and slices > 1:
            yield "EarlyStopping with slices > 1: use slices=1, where a shard ends when Lightning stops it"
        if "Timer" in names and _private.has_time_limit(callback):
            yield "max_time or Timer: leave it out, the clock is not the same twice"


def check_schedulers(configs: list[Any], slices: int, epochs: int, horizon: int) -> None:
    """Refuse schedulers that cannot be cut into stages.

    A copy of each is stepped through the whole horizon. With one slice the horizon is the user's own number
    of epochs and nothing has to be checked.

    Raises:
        UnsupportedError: with what to do instead.
    """
    if slices == 1:
        return
    for config in configs:
        problem = _step_problem(config, epochs, horizon)
        if problem:
            raise UnsupportedError(
                f"{type(config.scheduler).__name__} {problem}. With slices > 1 a shard is trained for {horizon} "
                "epochs: build the scheduler from trainer.max_epochs, or use slices=1."
            )


def _step_problem(config: Any, epochs: int, horizon: int) -> str:
    """Return why a scheduler cannot be cut into stages, or ''."""
    if config.interval == "step":
        return "steps every batch, and the number of batches changes with each deletion"
    if isinstance(config.scheduler, ReduceLROnPlateau):
        return ""
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
