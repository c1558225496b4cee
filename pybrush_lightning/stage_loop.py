"""One stage is one fresh fit loop on the user's trainer.

A subclass of the trainer's own loop class, so that every hook, logger, bar and precision plugin runs as
always. It starts at the epoch and step where the parent stage ended, reads the whole horizon as
`max_epochs`, and is done at its own last epoch. One long loop with switches at epoch ends breaks
EarlyStopping, max_steps and schedulers (docs/pitfalls.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pybrush.learner import Horizon
from pybrush.plan.order import Seeds
from pybrush_lightning import _private
from pybrush_lightning.limits import Limits
from pybrush_lightning.randomness import kept_randomness, seed_all

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Counters:
    """Where training stands: epochs, optimizer steps, batches."""

    epochs: int
    steps: int
    batches: int


def stage_loop(trainer: Trainer, limits: Limits, horizon: Horizon, seeds: Seeds, start: Counters) -> Any:
    """Return a fit loop for one stage, standing where its parent ended; it is not installed yet."""
    template = trainer.fit_loop
    loop = _loop_class(_own_class(template))(trainer, max_epochs=limits.shown_epochs)
    limits.limit(loop, horizon, start.steps)
    loop.stage_end = horizon.epochs_before + horizon.epochs
    loop.stage_start = horizon.epochs_before
    loop.stage_seeds = seeds
    loop.epoch_loop.val_loop = template.epoch_loop.val_loop
    _private.set_progress(loop, start.epochs, start.steps, start.batches)
    return loop


def counters(loop: Any) -> Counters:
    """Return where a fit loop stands."""
    return Counters(*_private.progress(loop))


@contextmanager
def installed(trainer: Trainer, loop: Any) -> Iterator[None]:
    """Let a loop be the trainer's fit loop for a while; its workers end with it, also on error.

    The trainer has its own loop back before that: Ctrl-C may come again while the other one is torn down.
    """
    template = trainer.fit_loop
    trainer.fit_loop = loop
    try:
        yield
    except BaseException:
        trainer.fit_loop = template
        with suppress(RuntimeError):  # a loop that was stopped while it began cannot be; the first error tells why
            loop.teardown()
        raise
    trainer.fit_loop = template
    loop.teardown()


@contextmanager
def validation_kept_apart(trainer: Trainer) -> Iterator[None]:
    """Run every validation, and every loading of its data, between a saved and a restored random state.

    Hooks come too late for this: the validation loader draws before the first of them.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop

    def apart(method: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with kept_randomness():
                return method()

        return run

    loop.run, loop.setup_data = apart(loop.run), apart(loop.setup_data)  # type: ignore[method-assign]  # instance's
    try:
        yield
    finally:
        del loop.run, loop.setup_data


def _own_class(loop: Any) -> type:
    kind: type = type(loop)
    return kind.__bases__[0] if hasattr(kind, "is_stage_loop") else kind


@cache
def _loop_class(base: Any) -> Any:
    """Return the stage loop of a Lightning package's fit loop class."""

    class StageLoop(base):  # type: ignore[misc]  # the base is known at run time only
        is_stage_loop = True
        stage_start = 0
        stage_end = 0
        stage_seeds: Seeds

        @property
        def done(self) -> bool:
            """Whether the stage's last epoch was run, or Lightning itself ends the fit."""
            if self.epoch_progress.current.processed >= self.stage_end:
                self.epoch_progress.current.completed = self.epoch_progress.current.processed
                return True
            return bool(super().done)

        def setup_data(self) -> None:
            """Take the stage's loader as it is: it holds this rank's share of the rows already."""
            with _private.samplers_kept(self.trainer):
                super().setup_data()

        def on_advance_start(self) -> None:
            """Seed everything for the epoch, before any of its hooks."""
            epoch = self.epoch_progress.current.processed - self.stage_start
            seed_all(self.stage_seeds(epoch, "train", self.trainer.global_rank))
            super().on_advance_start()

    return StageLoop
