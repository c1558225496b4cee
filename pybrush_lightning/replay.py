"""`replay(trainer, ...)`: stages of a record are trained again and compared with what is stored.

Nothing of the record changes, and module, callbacks and trainer are as before. Guide: docs/guarantees.md, "Verify, in
three depths".
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.pytorch import LightningModule

from pybrush import replay as core
from pybrush.errors import UnsupportedError
from pybrush.learner import Learner
from pybrush_lightning import _private, ranks
from pybrush_lightning.around_fit import Around, Given, Job, nothing_kept, unrecorded_stage
from pybrush_lightning.given import completed, recorded_settings
from pybrush_lightning.learner import LightningLearner
from pybrush_lightning.randomness import kept_randomness
from pybrush_lightning.serving import in_fit, learner_here, on_ranks, record_of, sisa_of, sources_of
from pybrush_lightning.sisa import SISA
from pybrush_lightning.stage_data import LoaderPlan

if TYPE_CHECKING:
    from lightning.pytorch import Trainer as AnyTrainer

T = TypeVar("T")


def replay(
    trainer: AnyTrainer,
    *,
    model: LightningModule | None = None,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: Any = None,
    stages: core.Which = "touched",
    tolerance: core.Tolerance | None = None,
) -> core.Replay:
    """Train stages of the record again, each from its parent's stored state, and compare with what is stored.

    Model and data are given as to `trainer.unlearn`. What comes of the training is compared in memory and dropped;
    checkpoints are not written and loggers get nothing meanwhile. Files that callbacks write by other means are
    written again, as in every training.

    Args:
        trainer: a Trainer with a SISA callback.
        model: the module; None: the one that this trainer fitted.
        train_dataloaders: the training loader; None: the one of the fit in this process.
        val_dataloaders: the validation loaders, if something monitors them.
        datamodule: in place of the loaders.
        stages: "touched": those that the last request rebuilt, without a request the cheapest one; "all"; or
            (shard, slice) pairs, counted from 0.
        tolerance: how far numbers may be apart; None: `pybrush.Tolerance()`.

    Returns:
        The outcome of each stage, and by how much it differs.

    Raises:
        ConfigurationError: for stages that the record does not have.
        FingerprintError: where module or settings are not those of the record.
        MissingRowsError: where the data no longer holds a row of such a stage.
        PyBrushError: see `pybrush.errors`; record and user's objects are as before.

    Example:
        >>> replay(trainer, model=model, train_dataloaders=loader).outcome  # doctest: +SKIP
        'bit_identical'
    """
    if _private.is_trial_run(trainer):
        raise UnsupportedError("fast_dev_run and overfit_batches train something else; replay with a Trainer without.")
    sisa = sisa_of(trainer)
    given = completed(Given(model, train_dataloaders, val_dataloaders, datamodule), sisa.given)
    asked = _Asked(trainer, sisa, given, stages, tolerance)
    with kept_randomness(), nothing_kept(trainer), tempfile.TemporaryDirectory() as scratch:
        around = partial(unrecorded_stage, Path(scratch))
        return asked.on_ranks(around) if ranks.is_many(trainer) else asked.here(around)


@dataclass(frozen=True)
class _Asked:
    """One call of `replay`."""

    trainer: AnyTrainer
    sisa: SISA
    given: Given
    stages: core.Which
    tolerance: core.Tolerance | None

    def here(self, around: Around) -> core.Replay:
        """Replay in the one process that there is; only what is trained runs inside of a fit."""
        record = record_of(self.sisa)
        with recorded_settings(self.trainer, record.plan):
            learner = learner_here(self.trainer, self.sisa, self.given, record)
            learner.run_fit = lambda build: in_fit(
                self.trainer, self.sisa, self.given, Job(lambda: self._undone(build), around=around)
            )
            return self._compared(learner, learner.plan)

    def on_ranks(self, around: Around) -> core.Replay:
        """Replay on all ranks, inside of one fit."""

        def run(learner: LightningLearner) -> core.Replay:
            work = partial(self._compared, plan=learner.plan)
            return self._undone(lambda: ranks.together(self.trainer, learner, work))

        found: core.Replay = on_ranks(self.trainer, self.sisa, self.given, lambda: record_of(self.sisa), run, around)
        return found

    def _compared(self, learner: Learner, plan: LoaderPlan) -> core.Replay:
        record = record_of(self.sisa)
        sources = sources_of(record, self.trainer, self.sisa, learner, plan)
        return core.replay(record, sources, self.stages, self.tolerance)

    def _undone(self, work: Callable[[], T]) -> T:
        """Do what runs inside a fit, and put the user's objects back before the fit ends."""
        found = work()
        self.sisa.undo(self.trainer, self.given.module)
        return found
