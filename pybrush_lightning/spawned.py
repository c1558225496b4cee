"""After ddp_spawn and ddp_fork: the process that spawned the others holds what they left in the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pybrush_lightning import _private, state
from pybrush_lightning.around_fit import Given, Held
from pybrush_lightning.sisa import SISA

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def after_spawn(trainer: Trainer) -> None:
    """Let the module hold the constituent that the processes that trained it left, bit for bit.

    Lightning itself hands back the state dict alone, without other buffers and attributes.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the callback connector
    for callback in callbacks:
        if isinstance(callback, SISA):
            _take_over(callback, trainer)


def _take_over(sisa: SISA, trainer: Trainer) -> None:
    record, module = sisa.recorded(), trainer.lightning_module
    if record is None or _private.is_trial_run(trainer):
        return
    held = Held.of(record)
    tree = record.store.load(held.key)[0]
    state.write_module(module, tree["module"])
    state.write_callbacks(trainer, module, tree["callbacks"])
    sisa.given = Given(module)
    sisa.point(trainer, module, held)
