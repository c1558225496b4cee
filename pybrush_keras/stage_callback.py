"""What goes on inside a stage's fit: its data is told the epoch, generators are seeded, steps are counted."""

from __future__ import annotations

from typing import Any

import keras

from pybrush.learner import Horizon
from pybrush.plan.order import Seeds
from pybrush_keras import _private
from pybrush_keras.progress import LABELS
from pybrush_keras.randomness import seed_epoch
from pybrush_keras.stage_data import StageData


class StageCallback(keras.callbacks.Callback):
    """The first callback of a stage's fit.

    Args:
        data: the stage's batches.
        horizon: where the stage stands.
        seeds: of the stage.
    """

    def __init__(self, data: StageData, horizon: Horizon, seeds: Seeds) -> None:
        super().__init__()
        self._data, self._horizon, self._seeds = data, horizon, seeds
        self.steps = self._iterations = 0
        self.learning_rate_sum = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Note where the optimizer stands."""
        self._iterations = _iterations(self.model.optimizer)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Seed everything for the epoch, before the user's callbacks, and cut its batches."""
        inside = epoch - self._horizon.epochs_before
        seed_epoch(self._seeds(inside, "train"))
        self._data.tell(inside)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Label the epoch's logs, which all callbacks after this one are given."""
        begun, self._iterations = self._iterations, _iterations(self.model.optimizer)
        self.steps += self._iterations - begun
        self.learning_rate_sum += _rates(self.model.optimizer, begun, self._iterations)
        if logs is not None:
            logs |= dict(zip(LABELS, (self._horizon.shard, self._horizon.slice), strict=True))


def _iterations(optimizer: Any) -> int:
    return 0 if optimizer is None else int(keras.ops.convert_to_numpy(optimizer.iterations))


def _rates(optimizer: Any, begun: int, ended: int) -> float:
    """Return the learning rate summed over the steps of an epoch, each lr / (1 - momentum)."""
    if optimizer is None:
        return 0.0
    inner = _private.own_optimizer(optimizer)
    momentum = float(getattr(inner, "momentum", 0.0) or getattr(inner, "beta_1", 0.0))
    schedule = _private.schedule_of(inner)
    if schedule is None:
        return (ended - begun) * float(keras.ops.convert_to_numpy(inner.learning_rate)) / (1.0 - momentum)
    return sum(float(keras.ops.convert_to_numpy(schedule(step))) for step in range(begun, ended)) / (1.0 - momentum)
