"""SISA as a Lightning callback: shards, slices and a record, with module and loader untouched.

    trainer = L.Trainer(max_epochs=20, callbacks=[SISA(shards=4, slices=3, record="records/faces")])
    trainer.fit(model, train_loader)
    result = trainer.unlearn(forget_loader)

`setup` takes over `run` of the trainer's own fit loop; each stage is then one fresh fit loop on the same
trainer. Source: Bourtoule et al., Machine Unlearning, IEEE S&P 2021 (arXiv 1912.03817). Guide:
docs/pitfalls.md.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pybrush import forget
from pybrush.errors import UnsupportedError
from pybrush.learner import Horizon, Learner
from pybrush.naming import IdSource, Naming
from pybrush.plan.placement import one_of, positive
from pybrush.preprocessing import noted, say_found
from pybrush.record import Record
from pybrush.record.create import PlanWish, check_encrypt
from pybrush.record.opened import Opened
from pybrush.record.secret import KeySource
from pybrush_lightning import _private, aggregate, checkpoints, loggers, ranks, resume
from pybrush_lightning.aggregate_step import AggregateStep, check_part
from pybrush_lightning.around_fit import (
    Before,
    Given,
    Held,
    Job,
    Mark,
    Meter,
    Optimization,
    given_to,
    loaders_of,
    recorded_stage,
)
from pybrush_lightning.evaluation import Evaluation, held_shard
from pybrush_lightning.fingerprint import check_processes, datasets_of
from pybrush_lightning.kinds import KINDS, reading
from pybrush_lightning.learner import LightningLearner
from pybrush_lightning.limits import Limits, say_rows_are_recorded
from pybrush_lightning.randomness import kept_randomness
from pybrush_lightning.sample_ids import glimpse, roster_of
from pybrush_lightning.stage_data import LoaderPlan, loader_plan
from pybrush_lightning.stage_loop import validation_kept_apart
from pybrush_lightning.state import check_data_apart
from pybrush_lightning.supported import check_training

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_log = logging.getLogger(__name__)

Members = tuple[dict[int, aggregate.Constituent], aggregate.Space, aggregate.How]
"""Constituents by shard, what they return, and what is made of it."""


class SISA(_private.CallbackBase):
    """Trains in shards and slices and leaves a record from which samples can be forgotten.

    Args:
        shards: number of shards S; None: the record's, else 1.
        slices: number of slices R of each shard; None: the record's, else 1.
        record: folder of the record; made at the first fit.
        ids: what names a sample: "content" (the keyed digest of the raw sample), "position", a column's
            name, a sequence with one entry a row, or a callable of the data set.
        subjects: the persons each row belongs to: a column's name, a sequence or a callable; a person's rows
            lie in one shard and slice.
        aggregate: "mean" of probabilities or "vote".
        outputs: what the module returns: "logits", "log_probs", "probs" or "values".
        aggregate_step: for evaluation steps that do not call self(...): the name of the submodule that they
            call, or a function of (module, batch, batch_idx) that takes their place, in which module(...) is
            the aggregate. `outputs` says what is called returns.
        key: the record's 32 secret bytes or a callable; None: made once and kept beside the record.
        seed: of the training's randomness, 0 <= seed < 2^32; None: that of seed_everything, else drawn.
        content: "digest" keeps keyed digests of samples, "off" none.
        rebuild_all: must be False: a new generation is made by a new record.
        content_of: takes a raw sample and returns what is to be compared, for samples of unusual types.
        encrypt: whether each stage is encrypted under a key of its own, which a request destroys with the stage; fixed
            by the first fit. None: the record's, else False. The keys lie beside the record, in `<record>.keys`.
        times: the date of each row, for retention windows: a column's name, a sequence or a callable; None: the day
            on which it is recorded.

    Raises:
        ConfigurationError: for values that cannot work.
        MissingExtraError: for `encrypt=True` where the extra `encrypt` is not installed.
        UnsupportedError: for `rebuild_all`, which this version does not have.
    """

    def __init__(  # noqa: PLR0913 (one argument for each thing a user may decide)
        self,
        shards: int | None = None,
        slices: int | None = None,
        *,
        record: str | os.PathLike[str],
        ids: IdSource = "content",
        subjects: IdSource | None = None,
        aggregate: aggregate.How = "mean",
        outputs: aggregate.Space = "logits",
        aggregate_step: AggregateStep = None,
        key: KeySource = None,
        seed: int | None = None,
        content: str = "digest",
        rebuild_all: bool = False,
        content_of: Callable[[Any], Any] | None = None,
        encrypt: bool | None = None,
        times: IdSource | None = None,
    ) -> None:
        super().__init__()
        if rebuild_all:
            raise UnsupportedError(
                "rebuild_all= is not part of this version: start a new record in another folder to train everything "
                "anew."
            )
        self.shards = None if shards is None else positive("shards", shards)
        self.slices = None if slices is None else positive("slices", slices)
        self.record = Path(record).absolute()  # some frameworks change the working folder later
        self.naming = Naming(ids, subjects, content, content_of, times)
        self.how, self.space = one_of("aggregate", aggregate, ("mean", "vote")), outputs
        one_of("outputs", outputs, ("logits", "log_probs", "probs", "values"))
        check_encrypt(encrypt)
        self.key, self.seed, self.step, self.encrypt = key, seed, aggregate_step, encrypt
        self._begin(aggregate_step)

    def _begin(self, step: AggregateStep) -> None:
        """Know of no record, trainer or module yet, as in a process that has just begun."""
        self.given = Given()
        self.job: Job | None = None
        self._opened = Opened()
        self._stack = ExitStack()
        self._connected: Optimization | None = None
        self._before: Before | None = None
        self._evaluation = Evaluation(step)
        self._meter: Meter | None = None
        self._mark: Mark | None = None
        self._steps = loggers.LogSteps()
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings, all that a process that ddp_spawn starts is told."""
        anew = object.__new__(type(self))
        anew._begin(self.step)
        return {name: value for name, value in vars(self).items() if name not in vars(anew)}

    def __setstate__(self, settings: dict[str, Any]) -> None:
        vars(self).update(settings)
        self._begin(self.step)

    # What Lightning calls

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the fit loop's `run`; refuse what cannot be trained exactly, in one message."""
        self._close()
        if _private.is_trial_run(trainer):
            if stage == "fit":
                _log.warning("a trial run (fast_dev_run, overfit_batches or a Tuner): SISA makes no record of it")
            return
        if stage != "fit":
            self._stack.enter_context(resume.best_refused(trainer, self.recorded))
            return
        if self.job is not None:
            self._stack.enter_context(self.job.settings())
        source = _private.train_source(trainer)
        check_training(trainer, pl_module, None if source.is_module() else source.instance)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the callback connector
        callbacks.remove(self)
        callbacks.insert(0, self)
        say_rows_are_recorded(trainer)
        slices = ranks.from_zero(trainer, self.slice_count)
        loop, limits = trainer.fit_loop, Limits.of(trainer, slices)
        self._connected = _private.optimization(trainer)
        self._stack.enter_context(kept_randomness())
        self._stack.enter_context(validation_kept_apart(trainer))
        self._stack.enter_context(resume.own_unread(trainer, self.recorded))
        loop.run = lambda: self._run(trainer, pl_module, limits)  # type: ignore[method-assign]
        self._stack.callback(vars(loop).pop, "run", None)
        loop.max_epochs = limits.shown_epochs
        self._stack.callback(setattr, loop, "max_epochs", limits.max_epochs)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the initial state before the sanity check moves it, and after every on_fit_start."""
        if not _private.is_trial_run(trainer):
            self._before = Before.of(trainer, pl_module, self._mark)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Sum the learning rate over the steps of a stage."""
        if self._meter is not None and optimizer.param_groups:
            group = optimizer.param_groups[0]
            momentum = group.get("momentum", 0.0) or group.get("betas", (0.0,))[0]
            self._meter.learning_rate_sum += float(group.get("lr", 0.0)) / (1.0 - float(momentum))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Undo what `setup` did, and what an unfinished fit did to the user's objects."""
        self._close()
        self.undo(trainer, pl_module)

    def undo(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the user's objects back as they were when the fit began, unless it is over."""
        if self._connected is not None:
            _private.connect_optimization(trainer, *self._connected)
        if self._before is not None:
            self._before.put_back(trainer, pl_module)
            self._mark = self._before.mark
        self._keep()

    def _keep(self) -> None:
        """Let the user's objects stay as they are now, whatever comes."""
        self._before = self._connected = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Undo what `setup` did."""
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer with the aggregate in trainer.validate; inside a fit each shard is validated by itself."""
        if trainer.state.fn == "validate":
            self._answer(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer with the aggregate."""
        self._answer(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer with the aggregate."""
        self._answer(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the targets."""
        self._evaluation.check_batch(batch)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the targets."""
        self._evaluation.check_batch(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop answering with the aggregate."""
        if trainer.state.fn == "validate":
            self._evaluation.end(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop answering with the aggregate."""
        self._evaluation.end(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop answering with the aggregate."""
        self._evaluation.end(trainer)

    # What the rest of PyBrush calls

    def slice_count(self) -> int:
        """Return R: the argument's, else the record's, else 1."""
        if self.slices is not None:
            return self.slices
        recorded = self.recorded()
        return recorded.plan.slices if recorded is not None else 1

    def recorded(self) -> Record | None:
        """Return the opened record, or None where there is none yet, or only one that was never finished."""
        return self._opened.of(self.record, self.key)

    def wish(self, epochs: int, plan: LoaderPlan) -> PlanWish:
        """Return what a fit asks of the record."""
        seeded = os.environ.get("PL_GLOBAL_SEED")
        drawn = int(seeded) if self.seed is None and seeded and self.recorded() is None else self.seed
        return PlanWish(
            shards=self.shards,
            slices=self.slices,
            epochs=epochs,
            seed=drawn,
            order="sequential" if plan.sequential else "shuffled",
            naming=self.naming.kind,
            contents="off" if self.naming.content == "off" else "digest",
            adapter="lightning",
            key=self.key,
            settings={"outputs": self.space, "aggregate": self.how},
            encrypt=self.encrypt,
        )

    def learner(
        self, trainer: Trainer, module: LightningModule, plan: LoaderPlan, limits: Limits, validation: Any
    ) -> LightningLearner:
        """Return the core's view of trainer, module and loader."""
        return LightningLearner(trainer, module, self, plan, limits, validation=validation)

    @contextmanager
    def in_stage(self, trainer: Trainer, horizon: Horizon) -> Iterator[Meter]:
        """Count what a stage takes, show it, and register files that are written meanwhile with it."""
        around = None if self.job is None else self.job.around
        around = around or partial(recorded_stage, self.recorded(), self._steps)
        with around(trainer, horizon) as folders:
            self._meter = Meter(horizon, folders)
            try:
                yield self._meter
                self._meter.notes["checkpoints"] = checkpoints.found(trainer)
                self._mark = Mark(weakref.ref(trainer.lightning_module), horizon.key)  # until the fit has ended
            finally:
                self._meter = None

    def before_save(self, trainer: Trainer, path: str | Path) -> None:
        """Register a checkpoint with the stage whose state it will hold; warn of a lone constituent."""
        if not _private.is_trial_run(trainer):
            ranks.from_zero(trainer, lambda: self._register(trainer, path))

    def _register(self, trainer: Trainer, path: str | Path) -> None:
        record = self.recorded()
        if record is None:
            return
        if self._meter is not None:
            checkpoints.register_folders(record, path, self._meter.horizon.key, self._meter.folders)
            checkpoints.register(record, path, self._meter.horizon.key)
        elif self._mark is not None and self._mark.module() is _private.connected_module(trainer):
            checkpoints.register(record, path, self._mark.key)
            self._warn_of_one(record, path)

    def mark(self, learner: LightningLearner, held: Held) -> None:
        """Note which constituent the module holds now, and let checkpoints and optimizers fit it."""
        self.point(learner.trainer, learner.module, held)
        learner.connect_held_optimization()
        _private.set_log_step(learner.trainer.fit_loop, self._steps.next)

    def point(self, trainer: Trainer, module: LightningModule, held: Held) -> None:
        """Note which constituent a module holds now, and let the ModelCheckpoints point to its files."""
        self._mark = Mark(weakref.ref(module), held.key)
        checkpoints.point_to(trainer, held.checkpoints)

    # The fit itself

    def _run(self, trainer: Trainer, module: LightningModule, limits: Limits) -> None:
        """Stand in for the fit loop's run: build stages, for a fit or for a request."""
        before = self._before or Before.of(trainer, module, self._mark)  # without a sanity check
        self._before = before
        if self.job is not None:
            self.job.run()
        else:
            self._fit(trainer, module, limits, before)
        self._keep()

    def _fit(self, trainer: Trainer, module: LightningModule, limits: Limits, before: Before) -> None:
        source, loop = _private.train_source(trainer), trainer.fit_loop
        plan = loader_plan(source.dataloader())
        validation = _private.validation_source(trainer)
        learner = self.learner(trainer, module, plan, limits, partial(loaders_of, validation))
        check_data_apart(trainer, module, datasets_of(plan.dataset))
        ranks.check_same_rows(trainer, lambda: glimpse(self.naming, plan.dataset))
        check_part(module, self._evaluation.part)
        if (self.shards or 1) > 1 and ranks.from_zero(trainer, lambda: self.recorded() is None):
            aggregate.check_first_target(plan.loader, self.space)
        before.write(trainer, module)  # the sanity check may have moved buffers
        self.given = given_to(module, source, validation)
        wish = noted(self.wish(limits.epochs, plan), reading(plan.loader), (module, self.given.datamodule), KINDS)
        held = ranks.together(trainer, learner, lambda leader: self._fit_record(trainer, leader, plan, wish))
        _private.set_progress(loop, limits.epochs, learner.counters.steps, 0)
        self.mark(learner, held)

    def _fit_record(self, trainer: Trainer, learner: Learner, plan: LoaderPlan, wish: PlanWish) -> Held:
        recorded = self.recorded()
        if recorded is None:
            say_found(wish)
        else:
            check_processes(recorded, trainer)
        fitted = forget.fit(self.record, wish, learner, plan, lambda namer: roster_of(self.naming, plan.dataset, namer))
        return Held.of(fitted.record)

    def _close(self) -> None:
        self._stack.close()
        self._evaluation.close()

    def _warn_of_one(self, record: Record, path: str | Path) -> None:
        count = len(record.constituents())
        if count > 1 and not self._warned:
            self._warned = True
            _log.warning(
                "%s holds one constituent of %d, not the model that predicts; "
                "Record.open(%r).aggregate(module) is the model to deploy.",
                path, count, str(self.record),
            )  # fmt: skip

    # Evaluation

    def _answers_as(self, record: Record) -> tuple[aggregate.Space, aggregate.How]:
        """Return output space and kind of aggregate: the arguments', or the record's where they are the defaults."""
        held = record.plan.settings
        space = self.space if self.space != "logits" else held["outputs"]
        return space, self.how if self.how != "mean" else held["aggregate"]

    def _answer(self, trainer: Trainer, module: LightningModule) -> None:
        """Let the module answer with the aggregate if it holds one of the record's constituents."""
        if _private.is_trial_run(trainer):
            return
        members, space, how = ranks.from_zero(trainer, self.members)
        if not members:
            return
        if held_shard(module, members) is None:
            _log.warning("the module holds none of the constituents of %s; it is evaluated as it is", self.record)
            return
        self._evaluation.begin(module, members, space, how)

    def members(self) -> Members:
        """Return what predicts together, none where one constituent does or there is no record."""
        record = self.recorded()
        if record is None or len(record.constituents()) < 2:
            return {}, self.space, self.how
        return aggregate.constituents_of(record), *self._answers_as(record)
