"""What loggers get of a stage: steps that never come twice, and the columns `pybrush/shard` and `pybrush/slice`.

Each shard is trained from step 0 on, so rows of two shards would share their steps. The step that goes to
loggers therefore counts on through all stages that a trainer logs; `global_step`, which module and callbacks
see, stays the stage's own. Guide: docs/pitfalls.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pybrush.learner import Horizon
from pybrush.replaced import replaced
from pybrush_lightning import _private

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class LogSteps:
    """The step that a trainer's loggers get next, whatever stage runs."""

    def __init__(self) -> None:
        self.next = 0

    @contextmanager
    def counted(self, trainer: Trainer) -> Iterator[None]:
        """Let the stage loop that is installed go on counting, and take note of where it ends."""
        loop = trainer.fit_loop
        _private.set_log_step(loop, self.next)
        try:
            yield
        except BaseException:
            self.next = _private.log_step(loop) + 1  # a row of the step that failed may be logged already
            raise
        self.next = _private.log_step(loop)


@contextmanager
def columns(trainer: Trainer, horizon: Horizon) -> Iterator[None]:
    """Let every row that is logged say its shard and slice, counted from 0."""
    place = {"pybrush/shard": horizon.shard, "pybrush/slice": horizon.slice}
    with ExitStack() as stack:
        for logger in {id(logger): logger for logger in trainer.loggers}.values():
            stack.enter_context(replaced(logger, log_metrics=_adding(logger.log_metrics, place)))
        yield


@contextmanager
def silenced(trainer: Trainer) -> Iterator[None]:
    """Let a trainer's loggers be ones that keep nothing, as in Lightning's own trial runs."""
    held = trainer.loggers
    trainer.loggers = [_private.silent_logger(trainer) for _ in held]
    try:
        yield
    finally:
        trainer.loggers = held


def _adding(log_metrics: Callable[..., Any], place: Mapping[str, int]) -> Callable[..., Any]:
    """Return `log_metrics` of a logger with two columns more."""

    def log(metrics: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return log_metrics({**metrics, **place}, *args, **kwargs)

    return log
