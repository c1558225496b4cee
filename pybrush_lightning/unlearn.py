"""`trainer.unlearn(...)`: requests on a record, from the trainer that made it or any other.

Importing PyBrush gives every Trainer class of the installed Lightning packages the method; setting
PYBRUSH_NO_PATCH=1 leaves them alone, and `pybrush_lightning.unlearn(trainer, ...)` does the same.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.utilities import GradClipAlgorithmType
from numpy.typing import NDArray

from pybrush import forget as core
from pybrush.build import Sources
from pybrush.errors import ConfigurationError, ForgetError, RecordError, UnsupportedError
from pybrush.record import Record
from pybrush.record.resolve import Wish
from pybrush.request import Roster
from pybrush.result import UnlearnResult
from pybrush_lightning import _private, checkpoints
from pybrush_lightning.around_fit import Given
from pybrush_lightning.compiled import unwrapped
from pybrush_lightning.learner import LightningLearner
from pybrush_lightning.limits import Limits, limits_restored
from pybrush_lightning.randomness import kept_randomness
from pybrush_lightning.sample_ids import forget_dataset, rows_inside
from pybrush_lightning.sisa import SISA
from pybrush_lightning.stage_data import loader_plan
from pybrush_lightning.supported import check_training

if TYPE_CHECKING:
    from lightning.pytorch import Trainer as AnyTrainer

_LONG_ID = 16
"""Bytes from which an id is searched for in the record's files; shorter ones match by chance."""


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
        raise UnsupportedError(
            "fast_dev_run and overfit_batches never touch a record; unlearn with a Trainer without them."
        )
    sisa = _sisa_of(trainer)
    given = _given(sisa, Given(model, train_dataloaders, val_dataloaders, datamodule))
    record = sisa.recorded()
    if record is None:
        raise RecordError(f"there is no record in {sisa.record}; fit with this SISA callback first.")
    core.check_auto(record, method, guarantee)
    asked = _Asked(forget, ids, rows, subjects, missing, duplicates)
    with kept_randomness(), _recorded_settings(trainer, record):
        return _Request(trainer, sisa, record, given).serve(asked, dry_run)


@dataclass(frozen=True)
class _Asked:
    """What the caller named."""

    forget: Any
    ids: Sequence[Any] | None
    rows: Sequence[int] | None
    subjects: Sequence[Any] | None
    missing: bool
    duplicates: Literal["report", "forget"]

    def __post_init__(self) -> None:
        alone = [self.ids is not None, self.rows is not None, self.missing]
        ways = [*alone, self.forget is not None]
        if sum(ways) > 1 or (any(alone) and self.subjects is not None):
            raise ForgetError("say in one way what to forget: a forget set, ids=, rows=, subjects= or missing=True.")
        for name in ("ids", "subjects"):
            given = getattr(self, name)
            if isinstance(given, (str, bytes)):
                raise ForgetError(f"{name}= takes a list; got {given!r}. For a single one pass [{given!r}].")


class _Request:
    """One call of `unlearn`: data and module at hand, and how the core reaches them."""

    def __init__(self, trainer: AnyTrainer, sisa: SISA, record: Record, given: Given) -> None:
        self.trainer, self.sisa, self.record, self.given = trainer, sisa, record, given
        loader, self.validation = _loaders(trainer, given)
        _build_module(trainer, given)
        check_training(trainer, given.module, loader)
        self.plan = loader_plan(loader).restored(record.plan.semantic["loader"])

    def serve(self, asked: _Asked, dry_run: bool) -> UnlearnResult:
        """Compare fingerprints, name the rows, and let the core do the rest."""
        record, sisa = self.record, self.sisa
        learner = self._learner()
        core.check_fingerprint(record, sisa.wish(record.plan.epochs, self.plan), learner)
        roster = sisa.naming.roster(self.plan.dataset, record.names)
        wish = self._wish(asked, roster)
        held = record.constituents()
        try:
            result = core.unlearn(
                record, Sources(learner, self.plan, roster), wish, aggregate=self._aggregate, dry_run=dry_run
            )
        except BaseException:
            if record.constituents() != held:  # committed: from there only forward
                self._take_over(learner)
            raise
        if not dry_run:
            self._take_over(learner)
        return result

    def _take_over(self, learner: LightningLearner) -> None:
        """Let trainer and callback say what the module holds now."""
        self.sisa.given = self.given
        self.sisa.mark(learner, self.record)
        _private.set_progress(self.trainer.fit_loop, self.record.plan.epochs, learner.counters.steps, 0)

    def _learner(self) -> LightningLearner:
        limits = Limits.of(self.trainer, self.record.plan.slices)
        learner = self.sisa.learner(self.trainer, self.given.module, self.plan, limits, self.validation)
        learner.run_fit, learner.datamodule = self._run_fit, self.given.datamodule
        return learner

    def _run_fit(self, build: Callable[[], Any]) -> Any:
        """Run a build inside trainer.fit, where SISA's loop calls it."""
        built: list[Any] = []
        given, self.sisa.job = self.given, lambda: built.append(build())
        try:
            with warnings.catch_warnings():
                # A request writes beside the checkpoints of the stages that stay, on purpose.
                warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
                if given.datamodule is not None:
                    self.trainer.fit(given.module, datamodule=given.datamodule)
                else:
                    self.trainer.fit(given.module, given.train, given.validation)
        finally:
            self.sisa.job = None
        return built[0]

    def _aggregate(self, record: Record) -> Any:
        return self.sisa.aggregated(record, self.given.module)

    def _wish(self, asked: _Asked, roster: Roster) -> Wish:
        """Turn what the caller named into pseudonyms or content digests."""
        namer, naming = self.record.names, self.sisa.naming
        subjects = None if asked.subjects is None else namer.subjects(asked.subjects)
        if asked.ids is not None:
            if naming.kind != "ids":
                raise ForgetError(
                    f"this record names samples by {naming.kind}; pass rows=, forget=, subjects= or missing."
                )
            return Wish(names=namer.samples(asked.ids), duplicates=asked.duplicates, raw_ids=_long_ids(asked.ids))
        if asked.rows is not None:
            return self._rows_wish(_positions(asked.rows, len(roster)), roster, asked.duplicates)
        if asked.forget is None:
            raw = _long_ids(asked.subjects or ())
            return Wish(subjects=subjects, missing=asked.missing, duplicates=asked.duplicates, raw_ids=raw)
        dataset = forget_dataset(asked.forget)
        inside = rows_inside(dataset, self.plan.dataset)
        if inside is not None and subjects is None:
            return self._rows_wish(sorted(set(inside)), roster, asked.duplicates)
        if naming.kind == "ids" and (isinstance(naming.ids, str) or callable(naming.ids)):
            given = naming.ids_of(dataset)
            return Wish(names=namer.samples(given), duplicates=asked.duplicates, raw_ids=_long_ids(given))
        contents = namer.contents(map(naming.reader(dataset), range(len(dataset))))
        return Wish(contents=contents, subjects=subjects, duplicates=asked.duplicates)

    def _rows_wish(self, rows: list[int], roster: Roster, duplicates: Literal["report", "forget"]) -> Wish:
        raw: tuple[bytes, ...] = ()
        if self.sisa.naming.kind == "ids":
            known = self.sisa.naming.ids_of(self.plan.dataset)
            raw = _long_ids([known[row] for row in rows])
        return Wish(names=roster.names[rows], duplicates=duplicates, raw_ids=raw)


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
    module = unwrapped(now.module) if now.module is not None else before.module
    if module is None:
        raise ConfigurationError("this trainer has fitted nothing in this process; pass model= and the data as to fit.")
    validation = now.validation if now.validation is not None or has_data else before.validation
    if has_data:
        return Given(module, now.train, validation, now.datamodule)
    return Given(module, before.train, validation, before.datamodule)


def _loaders(trainer: AnyTrainer, given: Given) -> tuple[Any, Callable[[], Any]]:
    """Return the training loader, and a function that returns the validation loaders when they are asked for.

    They come from what was passed, the data module or the module itself.
    """
    if given.train is not None:
        return given.train, partial(_validation, trainer, given, given.module)
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
    return loader, partial(_validation, trainer, given, owner)


def _validation(trainer: AnyTrainer, given: Given, owner: Any) -> Any:
    """Return the validation loaders: those passed beside a training loader, else those of the owner of the data."""
    if given.train is not None and given.validation is not None:
        return given.validation
    loaders = _hook(trainer, owner, "val_dataloader")
    return given.validation if loaders is None else loaders


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
def _recorded_settings(trainer: AnyTrainer, record: Record) -> Iterator[None]:
    """Give the trainer the settings that the record was made with, for the request alone."""
    settings = record.plan.semantic["trainer"]
    names = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
    before = {name: getattr(trainer, name) for name in names}
    for name in names:
        setattr(trainer, name, settings[name])
    if settings["gradient_clip_algorithm"] is not None:
        trainer.gradient_clip_algorithm = GradClipAlgorithmType(settings["gradient_clip_algorithm"])
    try:
        with limits_restored(trainer, settings, record.plan.epochs):
            yield
    finally:
        for name, value in before.items():
            setattr(trainer, name, value)


def _positions(rows: Sequence[int], length: int) -> list[int]:
    """Return positions once each, in order.

    Raises:
        ForgetError: for positions outside of the data set, masks and fractions.
    """
    given: NDArray[Any] = np.asarray(rows)
    if given.size and given.dtype.kind not in "iu":
        raise ForgetError(f"rows= takes whole numbers, positions in the training data; got {given.dtype}.")
    found = [int(row) for row in given.ravel().tolist()]
    outside = [row for row in found if not 0 <= row < length]
    if outside:
        raise ForgetError(f"rows= holds {len(outside)} positions outside of 0..{length - 1}, such as {outside[0]}.")
    return sorted(set(found))


def _long_ids(ids: Sequence[Any]) -> tuple[bytes, ...]:
    raw = (i.encode() if isinstance(i, str) else i for i in ids if isinstance(i, (str, bytes)))
    return tuple(sorted({i for i in raw if len(i) >= _LONG_ID}))


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
