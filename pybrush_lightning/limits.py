"""The limits that a user gives to a training, and what each stage makes of them.

Epochs and steps are cut into stages; what counts batches holds within a stage. A record keeps the limits, and
a request is served under those of the record. Guide: docs/pitfalls.md, "Limits".
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pybrush.learner import Horizon
from pybrush.plan.cost import epochs_per_slice
from pybrush.replaced import replaced
from pybrush_lightning import _private

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_log = logging.getLogger(__name__)

_SETTINGS = (
    *("limit_train_batches", "limit_val_batches", "val_check_interval", "check_val_every_n_epoch"),
    "reload_dataloaders_every_n_epochs",
)
"""Attributes of a trainer that its loops read; the integer 1 means one batch and the float 1.0 all of them."""


@dataclass(frozen=True)
class Limits:
    """When a training ends and validates, as the user said it.

    Attributes:
        max_epochs: -1 where only `max_steps` limits.
        max_steps: optimizer steps of a shard, -1 for no limit.
        min_epochs: epochs before which nothing may stop a training early.
        min_steps: the same in optimizer steps.
        slices: R, into which epochs and steps are cut.
        accumulate_grad_batches: the trainer's own number; a GradientAccumulationScheduler changes it in each stage.
        settings: the other attributes of the trainer, by name.
    """

    max_epochs: int
    max_steps: int
    min_epochs: int
    min_steps: int | None
    slices: int
    accumulate_grad_batches: int
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, trainer: Trainer, slices: int) -> Limits:
        """Return the limits of a trainer that Lightning has parsed already, outside of a stage."""
        epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        ends = (epochs, trainer.max_steps, trainer.min_epochs or 0, trainer.min_steps)
        own = vars(trainer)
        return cls(*ends, slices, trainer.accumulate_grad_batches, {name: own[name] for name in _SETTINGS})

    @property
    def epochs(self) -> int:
        """Epochs e of the plan; without a limit as many as there are steps, since every epoch has one at least."""
        return self.max_steps if self.max_epochs == -1 else self.max_epochs

    @property
    def horizon(self) -> int:
        """Epochs of a shard of which every slice is trained."""
        return self.slices * epochs_per_slice(self.epochs, self.slices)

    @property
    def shown_epochs(self) -> int:
        """What `trainer.max_epochs` reads while stages train."""
        return -1 if self.max_epochs == -1 else self.horizon

    def recorded(self) -> dict[str, Any]:
        """Return what a record keeps, plain JSON; `max_epochs` itself stands in the plan."""
        own = {"max_steps": self.max_steps, "min_epochs": self.min_epochs, "min_steps": self.min_steps}
        # As text, since 1 == 1.0 and they mean different numbers of batches.
        texts = {name: repr(value) for name, value in self.settings.items()}
        return {**own, "epochs_unlimited": self.max_epochs == -1, **texts}

    def limit(self, loop: Any, horizon: Horizon, steps: int) -> None:
        """Let a fit loop end as its stage does, which begins after some optimizer steps of its shard."""
        loop.epoch_loop.max_steps = -1 if self.max_steps == -1 else steps + self._share(self.max_steps)
        loop.epoch_loop.min_steps = steps + self._share(self.min_steps) if self.min_steps else None
        least = epochs_per_slice(self.min_epochs, self.slices) if self.min_epochs else 0
        loop.min_epochs = horizon.epochs_before + least if least else 0

    @contextmanager
    def in_stage(self, trainer: Trainer, batches: int) -> Iterator[None]:
        """Let a trainer's settings fit a stage of some batches, where Lightning would raise, and put them back."""
        train: Any = self.settings["limit_train_batches"]
        taken = min(batches, train) if isinstance(train, int) else max(1, int(batches * train))
        values: dict[str, Any] = {"accumulate_grad_batches": self.accumulate_grad_batches}
        if isinstance(train, float):
            values["limit_train_batches"] = taken if int(batches * train) < 1 else train
        interval: Any = self.settings["val_check_interval"]
        if isinstance(interval, int) and self.settings["check_val_every_n_epoch"] is not None:
            values["val_check_interval"] = min(interval, taken)
        with replaced(trainer, **values):
            yield

    def _share(self, steps: int) -> int:
        return -(-steps // self.slices)


@contextmanager
def limits_restored(trainer: Trainer, recorded: Mapping[str, Any], epochs: int) -> Iterator[None]:
    """Give a trainer the limits of a record, with the epochs of its plan, for a while."""
    loop = trainer.fit_loop
    settings = {name: ast.literal_eval(recorded[name]) for name in _SETTINGS}
    ends = {name: recorded[name] for name in ("max_steps", "min_steps")}
    max_epochs = -1 if recorded["epochs_unlimited"] else epochs
    with (
        replaced(trainer, **settings),
        replaced(loop.epoch_loop, **ends),
        replaced(loop, max_epochs=max_epochs, min_epochs=recorded["min_epochs"]),
    ):
        yield


def begin_anew(trainer: Trainer, horizon: Horizon) -> None:
    """Let what watches a training begin anew in each stage: early stopping, and reloads of validation data."""
    _private.forget_validation_reload(trainer)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the callback connector
        # The first stage of a shard starts from the callback's state at the first fit.
        if horizon.epochs_before and "EarlyStopping" in _private.ancestors(callback):
            _private.reset_early_stopping(callback)


def say_rows_are_recorded(trainer: Trainer) -> None:
    """Say that training data is not asked for again, where the trainer was told to."""
    if vars(trainer)["reload_dataloaders_every_n_epochs"]:
        _log.warning(
            "reload_dataloaders_every_n_epochs reloads validation data only: the training rows were recorded when the "
            "fit began, and training data is not asked for again."
        )
