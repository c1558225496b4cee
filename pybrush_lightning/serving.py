"""How a request is served: in the one process that there is, or on all ranks inside of one fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pybrush import forget as core
from pybrush.asked import Asked
from pybrush.build import Sources
from pybrush.errors import ConfigurationError, RecordError, UnsupportedError
from pybrush.learner import Learner
from pybrush.method import ApproximateMethod, Terms
from pybrush.record import Record
from pybrush.record.plan import RecordPlan
from pybrush.replaced import replaced
from pybrush.result import UnlearnResult
from pybrush.standing import check_auto
from pybrush_lightning import _private, ranks
from pybrush_lightning.aggregate import AggregateModule
from pybrush_lightning.around_fit import Around, Given, Held, Job, loaders_of
from pybrush_lightning.fingerprint import check_processes
from pybrush_lightning.given import build_module, loaders, recorded_settings
from pybrush_lightning.learner import LightningLearner
from pybrush_lightning.limits import Limits
from pybrush_lightning.sample_ids import TorchRows, find_in, glimpse, roster_of
from pybrush_lightning.sisa import SISA, Members
from pybrush_lightning.stage_data import LoaderPlan, loader_plan
from pybrush_lightning.supported import check_training

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass(frozen=True)
class How:
    """How the caller wants it done.

    Attributes:
        method: as it was given.
        terms: method and guarantee as the core takes them.
        dry_run: only say what would be done.
    """

    method: str | ApproximateMethod
    terms: Terms
    dry_run: bool


def serve_here(trainer: Trainer, sisa: SISA, given: Given, asked: Asked, how: How) -> UnlearnResult:
    """Serve a request in the one process that there is; only what is trained runs inside of a fit."""
    record = _checked(sisa, how)
    with recorded_settings(trainer, record.plan):
        learner = learner_here(trainer, sisa, given, record)
        learner.run_fit = lambda build: in_fit(trainer, sisa, given, Job(build))
        served = _Request(trainer, sisa, record, learner.plan).serve(learner, asked, how)
        _take_over(learner, given, served)
    return _result(given, served)


def serve_on_ranks(trainer: Trainer, sisa: SISA, given: Given, asked: Asked, how: How) -> UnlearnResult:
    """Serve a request on all ranks, inside of one fit: in a new process the other ranks begin with it."""
    if how.terms.method is not None:
        raise UnsupportedError(
            f"the method {how.terms.method.name!r} runs in one process, and this trainer has {trainer.world_size}. "
            "Leave out method=, so that stages are rebuilt."
        )

    def run(learner: LightningLearner) -> _Served:
        def work(leader: Learner) -> _Served:
            return _Request(trainer, sisa, _checked(sisa, how), learner.plan).serve(leader, asked, how)

        served = ranks.together(trainer, learner, work)
        if how.dry_run:
            sisa.undo(trainer, given.module)  # the sanity check may have moved buffers
        _take_over(learner, given, served)
        return served

    return _result(given, on_ranks(trainer, sisa, given, lambda: _checked(sisa, how), run))


def learner_here(trainer: Trainer, sisa: SISA, given: Given, record: Record) -> LightningLearner:
    """Return the core's view of what a caller gave, where there is one process; call under `recorded_settings`.

    Raises:
        UnsupportedError: for what cannot be trained exactly.
    """
    loader, validation = loaders(trainer, given)
    build_module(trainer, given)
    check_training(trainer, given.module, loader)
    plan, limits = _plan_of(loader, record.plan), Limits.of(trainer, record.plan.slices)
    learner = sisa.learner(trainer, given.module, plan, limits, validation)
    learner.datamodule = given.datamodule
    return learner


def on_ranks(
    trainer: Trainer, sisa: SISA, given: Given, recorded: Callable[[], Record],
    work: Callable[[LightningLearner], Any], around: Around | None = None,
) -> Any:  # fmt: skip
    """Do something on all ranks, inside of one fit, and return what it returns.

    Args:
        trainer: the user's trainer.
        sisa: its callback.
        given: what the caller gave.
        recorded: returns the record, on rank 0.
        work: called with this rank's learner, under the record's settings.
        around: what is around each stage (`Job.around`).

    Raises:
        UnsupportedError: where processes are spawned for each call.
    """
    if _private.spawns(trainer):
        raise UnsupportedError(
            "unlearn and replay cannot run in processes that are spawned for each call. Use Trainer(strategy='ddp', "
            f"devices={trainer.world_size}) in a script: it serves the same record."
        )
    found: list[tuple[RecordPlan, Limits]] = []

    @contextmanager
    def settings() -> Iterator[None]:
        plan = ranks.from_zero(trainer, lambda: recorded().plan)
        with recorded_settings(trainer, plan):
            found.append((plan, Limits.of(trainer, plan.slices)))
            yield

    def run() -> Any:
        validation, (recorded_plan, limits) = _private.validation_source(trainer), found[0]
        plan = _plan_of(_private.train_source(trainer).dataloader(), recorded_plan)
        ranks.check_same_rows(trainer, lambda: glimpse(sisa.naming, plan.dataset))
        return work(sisa.learner(trainer, given.module, plan, limits, partial(loaders_of, validation)))

    # A trainer that was given no number of epochs begins a fit too; the record's is set inside.
    with replaced(trainer.fit_loop, max_epochs=trainer.fit_loop.max_epochs or 1):
        return in_fit(trainer, sisa, given, Job(run, settings, around))


def sources_of(record: Record, trainer: Trainer, sisa: SISA, learner: Learner, plan: LoaderPlan) -> Sources:
    """Compare fingerprints and name the rows: what stages of a record are trained from.

    Raises:
        FingerprintError: where model, data or settings are not those of the record.
    """
    check_processes(record, trainer)
    core.check_fingerprint(record, sisa.wish(record.plan.epochs, plan), learner)
    return Sources(learner, plan, roster_of(sisa.naming, plan.dataset, record.names))


def _checked(sisa: SISA, how: How) -> Record:
    record = record_of(sisa)
    check_auto(record, how.method, how.terms.guarantee)
    return record


def _plan_of(loader: Any, plan: RecordPlan) -> LoaderPlan:
    return loader_plan(loader).restored(plan.semantic["loader"])


def in_fit(trainer: Trainer, sisa: SISA, given: Given, job: Job) -> Any:
    """Run a job inside trainer.fit, where SISA's loop calls it, and return what it returns."""
    built: list[Any] = []
    sisa.job = replace(job, run=lambda: built.append(job.run()))
    try:
        with warnings.catch_warnings():
            # A request writes beside the checkpoints of the stages that stay, on purpose.
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            if given.datamodule is not None:
                trainer.fit(given.module, datamodule=given.datamodule)
            else:
                trainer.fit(given.module, given.train, given.validation)
    finally:
        sisa.job = None
    return built[0]


def _take_over(learner: LightningLearner, given: Given, served: _Served) -> None:
    """Let trainer and callback say what the module holds now."""
    sisa = learner.sisa
    if served.held is not None:
        sisa.given = given
        _private.set_progress(learner.trainer.fit_loop, learner.limits.epochs, learner.counters.steps, 0)
        sisa.mark(learner, served.held)


def _result(given: Given, served: _Served) -> UnlearnResult:
    """Return the result with this rank's model; raise what stopped the request after its commit."""
    if isinstance(served.outcome, ranks.Failure):
        raise served.outcome.error()
    if served.held is None:
        return served.outcome
    members, space, how = served.members
    model = AggregateModule(given.module, members, space, how) if members else given.module
    return replace(served.outcome, model=model)


@dataclass(frozen=True)
class _Served:
    """What came of a request, as every rank is told.

    Attributes:
        outcome: the result without the model, of which each rank has its own; or what stopped the request after
            its commit, from where it only goes forward.
        members: what predicts (`SISA.members`).
        held: which constituent the module holds now; None where nothing was touched.
    """

    outcome: UnlearnResult | ranks.Failure
    members: Members
    held: Held | None


@dataclass(frozen=True)
class _Request:
    """One call of `unlearn`, where the record is."""

    trainer: Trainer
    sisa: SISA
    record: Record
    plan: LoaderPlan

    def serve(self, learner: Learner, asked: Asked, how: How) -> _Served:
        """Compare fingerprints, name the rows, and let the core do the rest."""
        record, sisa = self.record, self.sisa
        sources = sources_of(record, self.trainer, sisa, learner, self.plan)
        dataset = self.plan.dataset
        rows, find = TorchRows(dataset), partial(find_in, dataset)
        wish = asked.wish(sisa.naming, record.names, rows, sources.roster, find)
        before = record.constituents()
        try:
            result = core.unlearn(record, sources, wish, aggregate=lambda _: None, terms=how.terms, dry_run=how.dry_run)
        except BaseException as error:
            if record.constituents() == before:
                raise
            return _Served(ranks.Failure.of(error), sisa.members(), Held.of(record))
        return _Served(result, sisa.members(), None if how.dry_run else Held.of(record))


def sisa_of(trainer: Trainer) -> SISA:
    """Return the SISA callback of a trainer.

    Raises:
        ConfigurationError: where there is none, or several.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the callback connector
    found = [callback for callback in callbacks if isinstance(callback, SISA)]
    if len(found) != 1:
        raise ConfigurationError(
            f"unlearn needs a Trainer with one SISA callback; this one has {len(found)}. Build it as for the fit: "
            "Trainer(callbacks=[SISA(record=...)])."
        )
    return found[0]


def record_of(sisa: SISA) -> Record:
    """Return the record of a SISA callback.

    Raises:
        RecordError: where there is none yet.
    """
    record = sisa.recorded()
    if record is None:
        raise RecordError(f"there is no record in {sisa.record}; fit with this SISA callback first.")
    return record
