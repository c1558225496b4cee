"""The batches of one stage, as Keras reads them: cut before the fit, in the record's order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from pybrush.plan.order import Positions, Seeds, batch_order, cut
from pybrush_keras.arguments import Settings
from pybrush_keras.rows import KerasRows


class StageData(keras.utils.PyDataset):
    """The rows of one stage in batches.

    It is told the epoch by a callback: Keras calls `on_epoch_end` before the first epoch too, and reads some
    batches to learn their shapes.

    Args:
        data: Keras' rows.
        settings: how they become batches.
        rows: epoch, counted inside the stage -> positions in order.
        seeds: of the stage.
    """

    def __init__(self, data: KerasRows, settings: Settings, rows: Callable[[int], Positions], seeds: Seeds) -> None:
        super().__init__()
        self._data, self._settings, self._rows, self._seeds = data, settings, rows, seeds
        self.tell(0)

    def tell(self, epoch: int) -> None:
        """Cut the batches of an epoch, counted inside the stage."""
        batches = cut(self._rows(epoch), self._settings.batch_size, self._settings.drop_last)
        if self._settings.shuffle == "batch":
            batches = [batches[place] for place in batch_order(len(batches), self._seeds(epoch, "batches"))]
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        return self._data.batch(np.asarray(self._batches[index], dtype=np.int64))
