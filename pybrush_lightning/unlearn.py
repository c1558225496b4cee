"""`trainer.unlearn(...)`: requests on a record, from the trainer that made it or any other.

Importing PyBrush gives every Trainer class of the installed Lightning packages the method; setting
PYBRUSH_NO_PATCH=1 leaves them alone, and `pybrush_lightning.unlearn(trainer, ...)` does the same.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.utilities import GradClipAlgorithmType

from pybrush import forget as core
from pybrush.build import Sources
from pybrush.errors import ConfigurationError, RecordError, UnsupportedError
from pybrush.learner import Learner
from pybrush.record import Record
from pybrush.record.record import RecordPlan
from pybrush.result import UnlearnResult
from pybrush_lightning import _private, checkpoints, ranks
from pybrush_lightning.aggregate import AggregateModule
from pybrush_lightning.around_fit import Given, Held, Job, loaders_of
from pybrush_lightning.asked import Asked
from pybrush_lightning.fingerprint import check_processes
from pybrush_lightning.learner import LightningLearner
from pybrush_lightning.randomness import kept_randomness
from pybrush_lightning.sample_ids import glimpse
from pybrush_lightning.sisa import SISA, Members
from pybrush_lightning.stage_data import LoaderPlan, loader_plan
from pybrush_lightning.supported import check_training

if TYPE_CHECKING:
    from lightning.pytorch import Trainer as AnyTrainer


def unlearn(  # noqa: PLR0913 (one argument for each thing a request may say)
    trainer: AnyTrainer,
    forget: Any = None,
    *,
    ids: Sequence[Any] | None = None,
    rows: Sequence[int] | None = None,
    subjects: Sequence[Any] | None = None,
    model: LightningModule | None = None,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: Any = None,
    retain: Any = None,
    method: str = "auto",
    guarantee: Any = None,
    audit: Any = None,
    purge: Literal["delete", "list"] = "delete",
    duplicates: Literal["report", "forget"] = "report",
    missing: bool = False,
    accept_changes: Sequence[str] = (),
    rebuild_all: bool = False,
    dry_run: bool = False,
) -> UnlearnResult:
    """Forget samples: remove them from the model, the stages, the checkpoints and the record.

    Args:
        trainer: a Trainer with a SISA callback.
        forget: a DataLoader or map-style data set of the rows to forget.
        ids: ids of the samples to forget, as given to SISA.
        rows: positions in the training data set as it is now.
        subjects: persons of whom everything is forgotten; with `forget`, whose rows are meant.
        model: the module; None: the one that this trainer fitted.
        train_dataloaders: the training loader; None: the one of the fit in this process.
        val_dataloaders: the validation loaders, if something monitors them.
        datamodule: in place of the loaders.
        retain: must be None; approximate methods will take it.
        method: "auto" or "rebuild".
        guarantee: None, "exact", or a Budget.
        audit: must be None; statistical audits come with their own version.
        purge: "delete": registered checkpoints of stages that saw the samples are removed.
        duplicates: "report" rows equal to a forgotten one, or "forget" them too.
        missing: forget what is recorded and no longer in the training data.
        accept_changes: must be empty in this version.
        rebuild_all: must be False in this version.
        dry_run: only say what would be done, and what it would cost.

    Returns:
        The result; `result.model` is what to deploy.

    Raises:
        ForgetError: where the request cannot be served as asked; nothing was touched.
        FingerprintError: where module or settings are not those of the record.
        PyBrushError: see `pybrush.errors`; the user's objects are as before.
    """
    _check_unused(
        retain=retain is not None, audit=audit is not None, purge=purge != "delete",
        accept_changes=bool(accept_changes), rebuild_all=rebuild_all,
    )  # fmt: skip
    core.check_guarantee(method, guarantee)
    if duplicates not in ("report", "forget"):
        raise ConfigurationError(f"duplicates must be 'report' or 'forget'; got {duplicates!r}.")
    if _private.is_trial_run(trainer):
        raise UnsupportedError("fast_dev_run never touches a record; unlearn with a Trainer without it.")
    sisa = _sisa_of(trainer)
    given = _given(sisa, Given(model, train_dataloaders, val_dataloaders, datamodule))
    asked = Asked(forget, ids, rows, subjects, missing, duplicates)
    serve = _serve_on_ranks if ranks.is_many(trainer) else _serve_here
    with kept_randomness():
        return serve(trainer, sisa, given, asked, _Terms(method, guarantee, dry_run))


@dataclass(frozen=True)
class _Terms:
    """How the caller wants it done."""

    method: str
    guarantee: Any
    dry_run: bool


def _serve_here(trainer: AnyTrainer, sisa: SISA, given: Given, asked: Asked, terms: _Terms) -> UnlearnResult:
    """Serve a request in the one process that there is; only what is trained runs inside of a fit."""
    record = _record_of(sisa, terms)
    with _recorded_settings(trainer, record.plan):
        loader, validation = _loaders(trainer, given)
        _build_module(trainer, given)
        check_training(trainer, given.module, record.plan.slices, loader)
        plan, epochs = _plan_of(loader, record.plan), record.plan.epochs
        learner = sisa.learner(trainer, given.module, plan, epochs, lambda: validation)
        learner.datamodule = given.datamodule
        learner.run_fit = lambda build: _in_fit(trainer, sisa, given, Job(build))
        served = _Request(trainer, sisa, record, plan).serve(learner, asked, terms.dry_run)
        _take_over(learner, given, served)
    return _result(given, served)


def _serve_on_ranks(trainer: AnyTrainer, sisa: SISA, given: Given, asked: Asked, terms: _Terms) -> UnlearnResult:
    """Serve a request on all ranks, inside of one fit: in a new process the other ranks begin with it."""
    if _private.spawns(trainer):
        raise UnsupportedError(
            "trainer.unlearn cannot run in processes that are spawned for each call. Use Trainer(strategy='ddp', "
            f"devices={trainer.world_size}) in a script: it serves the same record."
        )
    found: list[RecordPlan] = []

    @contextmanager
    def settings() -> Iterator[None]:
        found.append(ranks.from_zero(trainer, lambda: _record_of(sisa, terms).plan))
        with _recorded_settings(trainer, found[0]):
            yield

    def run() -> _Served:
        validation = _private.validation_source(trainer)
        plan = _plan_of(_private.train_source(trainer).dataloader(), found[0])
        ranks.check_same_rows(trainer, lambda: glimpse(sisa.naming, plan.dataset))
        learner = sisa.learner(trainer, given.module, plan, found[0].epochs, partial(loaders_of, validation))

        def work(leader: Learner) -> _Served:
            return _Request(trainer, sisa, _record_of(sisa, terms), plan).serve(leader, asked, terms.dry_run)

        served = ranks.together(trainer, learner, work)
        if terms.dry_run:
            sisa.undo(trainer, given.module)  # the sanity check may have moved buffers
        _take_over(learner, given, served)
        return served

    with _some_epochs(trainer):
        return _result(given, _in_fit(trainer, sisa, given, Job(run, settings)))


@contextmanager
def _some_epochs(trainer: AnyTrainer) -> Iterator[None]:
    """Let a trainer that was given no number of epochs begin a fit, in which the record's is set."""
    before = trainer.fit_loop.max_epochs
    trainer.fit_loop.max_epochs = before or 1
    try:
        yield
    finally:
        trainer.fit_loop.max_epochs = before


def _record_of(sisa: SISA, terms: _Terms) -> Record:
    record = sisa.recorded()
    if record is None:
        raise RecordError(f"there is no record in {sisa.record}; fit with this SISA callback first.")
    core.check_auto(record, terms.method, terms.guarantee)
    return record


def _plan_of(loader: Any, plan: RecordPlan) -> LoaderPlan:
    return loader_plan(loader).restored(plan.semantic["loader"])


def _in_fit(trainer: AnyTrainer, sisa: SISA, given: Given, job: Job) -> Any:
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
        sisa.mark(learner, served.held)
        _private.set_progress(learner.trainer.fit_loop, learner.epochs, learner.counters.steps, 0)


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

    trainer: AnyTrainer
    sisa: SISA
    record: Record
    plan: LoaderPlan

    def serve(self, learner: Learner, asked: Asked, dry_run: bool) -> _Served:
        """Compare fingerprints, name the rows, and let the core do the rest."""
        record, sisa = self.record, self.sisa
        check_processes(record, self.trainer)
        core.check_fingerprint(record, sisa.wish(record.plan.epochs, self.plan), learner)
        roster = sisa.naming.roster(self.plan.dataset, record.names)
        wish = asked.wish(sisa.naming, record.names, self.plan.dataset, roster)
        sources = Sources(learner, self.plan, roster)
        before = record.constituents()
        try:
            result = core.unlearn(record, sources, wish, aggregate=lambda _: None, dry_run=dry_run)
        except BaseException as error:
            if record.constituents() == before:
                raise
            return _Served(ranks.Failure.of(error), sisa.members(), Held.of(record))
        return _Served(result, sisa.members(), None if dry_run else Held.of(record))


def _sisa_of(trainer: AnyTrainer) -> SISA:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the callback connector
    found = [callback for callback in callbacks if isinstance(callback, SISA)]
    if len(found) != 1:
        raise ConfigurationError(
            f"unlearn needs a Trainer with one SISA callback; this one has {len(found)}. Build it as for the fit: "
            "Trainer(callbacks=[SISA(record=...)])."
        )
    return found[0]


def _given(sisa: SISA, now: Given) -> Given:
    """Return the caller's objects; what was not passed is what the fit in this process had."""
    before = sisa.given
    has_data = now.train is not None or now.datamodule is not None
    if now.train is not None and now.datamodule is not None:
        raise ConfigurationError("pass train_dataloaders or datamodule, not both.")
    module = now.module if now.module is not None else before.module
    if module is None:
        raise ConfigurationError("this trainer has fitted nothing in this process; pass model= and the data as to fit.")
    validation = now.validation if now.validation is not None or has_data else before.validation
    if has_data:
        return Given(module, now.train, validation, now.datamodule)
    return Given(module, before.train, validation, before.datamodule)


def _loaders(trainer: AnyTrainer, given: Given) -> tuple[Any, Any]:
    """Return training and validation loaders, from the loaders, the data module or the module itself."""
    if given.train is not None:
        validation = (
            given.validation if given.validation is not None else _hook(trainer, given.module, "val_dataloader")
        )
        return given.train, validation
    owner = given.datamodule if given.datamodule is not None else given.module
    if given.datamodule is not None:
        owner.trainer = trainer
        owner.prepare_data()
        owner.setup("fit")
    loader = _hook(trainer, owner, "train_dataloader")
    if loader is None:
        raise ConfigurationError(
            "the training data is not known in this process; pass train_dataloaders= or datamodule=."
        )
    validation = _hook(trainer, owner, "val_dataloader")
    return loader, validation if validation is not None else given.validation


def _build_module(trainer: AnyTrainer, given: Given) -> None:
    """Let a module that is new in this process build its parts, where its configure_model does."""
    configure = _private.own_hook(given.module, "configure_model")
    if configure is not None:  # Lightning calls it in each of its loops too, so it does nothing the second time
        with _private.attached(trainer, given.module, given.datamodule):
            configure()
    if not any(True for _ in given.module.parameters()):
        raise ConfigurationError(
            f"{type(given.module).__name__} has no parameters yet. If its setup() makes them, call that first: "
            "model.setup('fit'), then unlearn(model=model)."
        )


def _hook(trainer: AnyTrainer, owner: Any, name: str) -> Any:
    """Call a data hook that the user's class defines itself; None where it does not."""
    hook = _private.own_hook(owner, name)
    if hook is None:
        return None
    is_module = isinstance(owner, _private.module_classes())
    with _private.attached(trainer, owner) if is_module else nullcontext():
        return hook()


@contextmanager
def _recorded_settings(trainer: AnyTrainer, plan: RecordPlan) -> Iterator[None]:
    """Give the trainer the settings that the record was made with, for the request alone."""
    settings = plan.semantic["trainer"]
    names = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
    before = {name: getattr(trainer, name) for name in names}
    epochs = trainer.fit_loop.max_epochs
    trainer.fit_loop.max_epochs = plan.epochs
    for name in names:
        setattr(trainer, name, settings[name])
    if settings["gradient_clip_algorithm"] is not None:
        trainer.gradient_clip_algorithm = GradClipAlgorithmType(settings["gradient_clip_algorithm"])
    try:
        yield
    finally:
        trainer.fit_loop.max_epochs = epochs
        for name, value in before.items():
            setattr(trainer, name, value)


def _check_unused(**given: bool) -> None:
    named = [name for name, is_set in given.items() if is_set]
    if named:
        raise UnsupportedError(
            f"{', '.join(f'{name}=' for name in named)}: this version does not have it. Leave it out; exact requests "
            "delete the checkpoints of the stages that they replace and need no retain set."
        )


_unlearn_of = unlearn


class Trainer(LightningTrainer):
    """Lightning's Trainer with `unlearn` as type checkers see it; any other Trainer has it once PyBrush is imported."""

    unlearn = _unlearn_of


def attach() -> None:
    """Give the Trainer classes of the installed Lightning packages `unlearn`, once."""
    for trainer_class in _private.trainer_classes():
        checkpoints.wrap_save_checkpoint(trainer_class, SISA)
        if not os.environ.get("PYBRUSH_NO_PATCH"):
            trainer_class.unlearn = unlearn  # type: ignore[attr-defined]
    _private.wrap_recovery(_after_spawn)


def _after_spawn(trainer: AnyTrainer) -> None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the callback connector
    for callback in callbacks:
        if isinstance(callback, SISA):
            callback.after_spawn(trainer)
