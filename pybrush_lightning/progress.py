"""What the trainer's progress bar says of a stage: shard, slice, and the time until all stages are built."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pybrush.learner import Horizon
from pybrush.plan.outlook import clock
from pybrush.replaced import replaced
from pybrush_lightning import _private

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@contextmanager
def shown(trainer: Trainer, horizon: Horizon) -> Iterator[None]:
    """Let the bar show, before its own metrics, which shard and slice of how many it is, and the time left."""
    bar = trainer.progress_bar_callback
    if bar is None:
        yield
        return
    started, batches = time.perf_counter(), _private.progress(trainer.fit_loop)[2]
    own, outlook = bar.get_metrics, horizon.outlook

    def get_metrics(*args: Any, **kwargs: Any) -> dict[str, Any]:
        share = _share(trainer, horizon, batches)
        return {
            "shard": f"{horizon.shard + 1}/{outlook.shards}",
            "slice": f"{horizon.slice + 1}/{outlook.slices}",
            "left": clock(outlook.left(share, time.perf_counter() - started)),
            **own(*args, **kwargs),
        }

    with replaced(bar, get_metrics=get_metrics):
        _private.refresh_metrics(bar, trainer)
        yield


def _share(trainer: Trainer, horizon: Horizon, before: int) -> float:
    """Return the part of a stage's batches that is done, from 0 to 1."""
    batches = trainer.num_training_batches * horizon.epochs
    return min(1.0, (_private.progress(trainer.fit_loop)[2] - before) / batches) if batches else 0.0
