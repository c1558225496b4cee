"""What Keras' progress bar says of a stage: shard, slice, and the time until all stages are built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from pybrush.learner import Horizon
from pybrush.plan.outlook import clock
from pybrush_keras import _private

LABELS = ("shard", "slice")
"""Entries of an epoch's logs that say which stage it is of, for History and files; the bar has a line for them."""


class StageBar(keras.callbacks.ProgbarLogger):
    """Keras' own bar, with a line above the epochs of each stage where there are several.

    Args:
        horizon: where the stage stands.
    """

    def __init__(self, horizon: Horizon) -> None:
        super().__init__()
        self._horizon = horizon

    def on_train_begin(self, logs: Any = None) -> None:
        """Say which stage begins."""
        outlook = self._horizon.outlook
        if self.verbose and outlook.shards * outlook.slices > 1:
            shard, cell = self._horizon.shard + 1, self._horizon.slice + 1
            _private.show(
                f"Shard {shard}/{outlook.shards}, slice {cell}/{outlook.slices}: stage {outlook.number} of "
                f"{outlook.count}, {clock(outlook.left())} left"
            )
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Show an epoch's metrics without the labels."""
        super().on_epoch_end(epoch, {name: value for name, value in (logs or {}).items() if name not in LABELS})


def bar(callbacks: tuple[Any, ...], verbose: Any, horizon: Horizon) -> list[StageBar]:
    """Return the bar of a stage, in a list; none where nothing is to be shown, or the user has a bar of their own."""
    own = any(isinstance(callback, keras.callbacks.ProgbarLogger) for callback in callbacks)
    return [] if own or verbose == 0 else [StageBar(horizon)]
