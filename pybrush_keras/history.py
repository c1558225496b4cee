"""The History of a fit under SISA: the epochs of all stages, with one entry for each epoch in every column."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras


class StageHistory(keras.callbacks.History):
    """The History of one stage; an epoch without some metric has None there, where Keras' own has no entry."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add an epoch to every column."""
        before = len(self.epoch)
        self.epoch.append(epoch)
        logs = logs or {}
        for name in [*self.history, *(name for name in logs if name not in self.history)]:
            self.history.setdefault(name, [None] * before).append(logs.get(name))


def joined(model: Any, histories: Iterable[Any]) -> Any:
    """Return one History of the stages of a model."""
    whole = StageHistory()
    whole.set_model(model)
    whole.on_train_begin()
    for history in histories:
        columns = history.history
        for place, epoch in enumerate(history.epoch):
            whole.on_epoch_end(epoch, {name: values[place] for name, values in columns.items()})
    return whole


def fill(callbacks: Iterable[Any], whole: Any) -> None:
    """Let a History that the user passed hold all stages too, not the last one alone."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.History):
            callback.epoch, callback.history = list(whole.epoch), {k: list(v) for k, v in whole.history.items()}
