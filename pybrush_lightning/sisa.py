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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pybrush import forget
from pybrush.errors import ConfigurationError, TrainingError, UnsupportedError
from pybrush.learner import Horizon
from pybrush.plan.cost import epochs_per_slice
from pybrush.plan.placement import positive
from pybrush.record import Record
from pybrush.record.create import PlanWish
from pybrush.record.secret import KeySource
from pybrush_lightning import _private, aggregate, checkpoints, state
from pybrush_lightning.learner import LightningLearner
from pybrush_lightning.randomness import kept_randomness
from pybrush_lightning.sample_ids import IdSource, Naming
from pybrush_lightning.stage_data import LoaderPlan, loader_plan
from pybrush_lightning.stage_loop import validation_kept_apart
from pybrush_lightning.supported import check_trainer

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_log = logging.getLogger(__name__)


@dataclass
class _Meter:
    """What is counted while a stage trains."""

    horizon: Horizon
    learning_rate_sum: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Given:
    """What the user last passed to fit, for requests in the same process."""

    module: Any = None
    train: Any = None
    validation: Any = None
    datamodule: Any = None


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
        aggregate_step: must be None: steps go through self(...).
        key: the record's 32 secret bytes or a callable; None: made once and kept beside the record.
        seed: of the training's randomness, 0 <= seed < 2^32; None: that of seed_everything, else drawn.
        content: "digest" keeps keyed digests of samples, "off" none.
        rebuild_all: must be False: a new generation is made by a new record.
        content_of: takes a raw sample and returns what is to be compared, for samples of unusual types.

    Raises:
        ConfigurationError: for values that cannot work.
        UnsupportedError: for `aggregate_step` and `rebuild_all`, which this version does not have.
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
        aggregate_step: Callable[..., Any] | None = None,
        key: KeySource = None,
        seed: int | None = None,
        content: str = "digest",
        rebuild_all: bool = False,
        content_of: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        if aggregate_step is not None or rebuild_all:
            raise UnsupportedError(
                "aggregate_step= and rebuild_all= are not part of this version: call self(...) in evaluation steps, "
                "and start a new record in another folder to train everything anew."
            )
        self.shards = None if shards is None else positive("shards", shards)
        self.slices = None if slices is None else positive("slices", slices)
        self.record = Path(record)
        self.naming = Naming(ids, subjects, content, content_of)
        self.how, self.space = _one_of("aggregate", aggregate, ("mean", "vote")), outputs
        _one_of("outputs", outputs, ("logits", "log_probs", "probs", "values"))
        self.key, self.seed = key, seed
        self.given = Given()
        self.job: Callable[[], Any] | None = None
        self.fitted: forget.Fitted | None = None
        self._stack = ExitStack()
        self._steps = 0
        self._calls: Any = None
        self._meter: _Meter | None = None
        self._mark: tuple[weakref.ref[Any], str] | None = None
        self._warned = False

    # What Lightning calls

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the fit loop's `run`; refuse what cannot be trained exactly, in one message."""
        if stage != "fit" or trainer.fast_dev_run:
            return
        self._stack.close()
        check_trainer(trainer, pl_module, self.slice_count())
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the callback connector
        callbacks.remove(self)
        callbacks.insert(0, self)
        loop, epochs = trainer.fit_loop, int(trainer.max_epochs or 0)
        before = state.read_module(pl_module)
        self._stack.enter_context(kept_randomness())
        self._stack.enter_context(validation_kept_apart(trainer))
        loop.run = lambda: self._run(trainer, pl_module, epochs)  # type: ignore[method-assign]
        self._stack.callback(vars(loop).pop, "run", None)
        loop.max_epochs = self.slice_count() * epochs_per_slice(epochs, self.slice_count())
        self._stack.callback(setattr, loop, "max_epochs", epochs)
        self._before = before

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the initial state before the sanity check; refuse a checkpoint that Lightning has loaded."""
        if trainer.fast_dev_run:
            return
        if _private.checkpoint_path(trainer):
            state.write_module(pl_module, self._before)
            raise UnsupportedError(
                "fit(ckpt_path=...) would make a model that has seen the data the start of every shard. Leave it out: "
                "an interrupted SISA fit goes on from its record when the script is run again."
            )
        self._before = state.read_module(pl_module)
        self._callbacks_before = state.read_callbacks(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Sum the learning rate over the steps of a stage."""
        if self._meter is not None:
            group = optimizer.param_groups[0]
            momentum = group.get("momentum", 0.0) or group.get("betas", (0.0,))[0]
            self._meter.learning_rate_sum += float(group["lr"]) / (1.0 - float(momentum))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Undo what `setup` did."""
        self._stack.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Undo what `setup` did."""
        self._stack.close()

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

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop answering with the aggregate."""
        if trainer.state.fn == "validate":
            self._answered()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop answering with the aggregate."""
        self._answered()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop answering with the aggregate."""
        self._answered()

    # What the rest of PyBrush calls

    def slice_count(self) -> int:
        """Return R: the argument's, else the record's, else 1."""
        if self.slices is not None:
            return self.slices
        recorded = self.recorded()
        return recorded.plan.slices if recorded is not None else 1

    def recorded(self) -> Record | None:
        """Return the opened record, or None where there is none yet."""
        if not (self.record / "ledger.sqlite").is_file():
            return None
        if self.fitted is None or self.fitted.record.folder != self.record:
            return Record.open(self.record, self.key)
        return self.fitted.record

    def wish(self, epochs: int, plan: LoaderPlan) -> PlanWish:
        """Return what a fit asks of the record."""
        seeded = os.environ.get("PL_GLOBAL_SEED")
        recorded = (self.record / "ledger.sqlite").is_file()
        drawn = int(seeded) if self.seed is None and seeded and not recorded else self.seed
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
        )

    def learner(
        self, trainer: Trainer, module: LightningModule, plan: LoaderPlan, epochs: int, validation: Any
    ) -> LightningLearner:
        """Return the core's view of trainer, module and loader."""
        slices = self.slice_count()
        horizon = slices * epochs_per_slice(epochs, slices)
        return LightningLearner(trainer, module, self, plan, horizon, epochs, slices, validation=validation)

    @contextmanager
    def in_stage(self, horizon: Horizon) -> Iterator[_Meter]:
        """Count what a stage takes, and register files that are written meanwhile with it."""
        trainer = self._trainer
        checkpoints.reset(trainer)
        self._mark, self._meter = None, _Meter(horizon)
        try:
            yield self._meter
            self._meter.notes["checkpoints"] = checkpoints.paths(trainer)
        finally:
            self._meter = None

    def before_save(self, trainer: Trainer, path: str | Path) -> None:
        """Register a checkpoint with the stage whose state it will hold; warn of a lone constituent."""
        if self._meter is not None:
            self._register(path, self._meter.horizon.key)
        elif self._mark is not None and self._mark[0]() is _private.connected_module(trainer):
            self._register(path, self._mark[1])
            record = self.recorded()
            if record is not None and len(record.constituents()) > 1 and not self._warned:
                self._warned = True
                _log.warning(
                    "%s holds one constituent of %d, not the model that predicts; "
                    "Record.open(%r).aggregate(module) is the model to deploy.",
                    path, len(record.constituents()), str(self.record),
                )  # fmt: skip

    def mark(self, trainer: Trainer, module: LightningModule, record: Record) -> None:
        """Note which constituent the module holds now, and let the trainer's checkpoints point to it."""
        held = record.constituents()
        key = held[max(held)]
        self._mark = (weakref.ref(module), key)
        checkpoints.point_to(trainer, dict(record.store.manifest(key).notes.get("checkpoints", {})))

    def aggregated(self, record: Record, module: LightningModule) -> Any:
        """Return what predicts: the module itself with one constituent, else one module of all."""
        members = aggregate.constituents_of(record)
        if len(members) == 1:
            return module
        return aggregate.AggregateModule(module, members, self.space, self.how)

    # The fit itself

    def _run(self, trainer: Trainer, module: LightningModule, epochs: int) -> None:
        """Stand in for the fit loop's run: build stages, for a fit or for a request."""
        self._trainer = trainer
        template = trainer.fit_loop
        if self.job is not None:
            self.job()
        else:
            self._fit(trainer, module, epochs)
        _private.set_progress(template, epochs, self._steps, 0)

    def _fit(self, trainer: Trainer, module: LightningModule, epochs: int) -> None:
        source = _private.train_source(trainer)
        plan = loader_plan(source.dataloader())
        validation = trainer.fit_loop.epoch_loop.val_loop._data_source
        learner = self.learner(trainer, module, plan, epochs, _loaders(validation))
        state.write_module(module, self._before)  # the sanity check may have moved buffers
        state.write_callbacks(trainer, self._callbacks_before)
        self.given = Given(
            module,
            None if source.is_module() else source.instance,
            None if validation.is_module() else validation.instance,
            getattr(trainer, "datamodule", None),
        )
        self.fitted = forget.fit(
            self.record, self.wish(epochs, plan), learner, plan, lambda namer: self.naming.roster(plan.dataset, namer)
        )
        self._steps = learner.counters.steps
        self.mark(trainer, module, self.fitted.record)

    def _register(self, path: str | Path, key: str) -> None:
        record = self.recorded()
        if record is not None:
            record.register_artefact(path, key, "checkpoint")

    def _answer(self, trainer: Trainer, module: LightningModule) -> None:
        """Let the module answer with the aggregate if it holds one of the record's constituents."""
        record = self.recorded()
        if record is None or len(record.constituents()) < 2 or trainer.fast_dev_run:
            return
        members = aggregate.constituents_of(record)
        if aggregate.held_shard(module, members) is None:
            self._check_monitored_best(trainer)
            _log.warning("the module holds none of the constituents of %s; it is evaluated as it is", self.record)
            return
        self._calls = self._stack.enter_context(aggregate.answering(module, members, self.space, self.how))

    def _check_monitored_best(self, trainer: Trainer) -> None:
        """Refuse to evaluate the best epoch of one shard as if it were the model."""
        callback = checkpoints.checkpoint_callbacks(trainer)[:1]
        loaded = _private.checkpoint_path(trainer)
        if callback and callback[0].monitor is not None and loaded and loaded == callback[0].best_model_path:
            raise UnsupportedError(
                "without a model Lightning loads ckpt_path='best', which is the best epoch of one shard, not the "
                "aggregate. Pass the model: trainer.test(model, dataloaders=...)."
            )

    def _answered(self) -> None:
        calls = getattr(self, "_calls", None)
        self._calls = None
        self._stack.close()
        if calls is not None and calls.count == 0:
            raise TrainingError(
                "no evaluation step called self(...), so nothing was answered by the aggregate. Call self(batch) in "
                "the step, or evaluate record.aggregate(module) in a loop of your own."
            )


def _loaders(source: Any) -> Any:
    """Return the validation loaders of a source, None where the user defined none."""
    loaders = source.dataloader() if source.is_defined() else None
    return None if loaders is None or (isinstance(loaders, Sequence) and not loaders) else loaders


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
    return value
