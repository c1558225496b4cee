"""`sisa.unlearn(...)`: requests on a record, from the callback that made it or any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pybrush import forget as core
from pybrush.asked import Asked, ForgetSet, check_unused
from pybrush.build import Sources
from pybrush.errors import ConfigurationError, RecordError
from pybrush.method import ApproximateMethod, Terms, terms_of
from pybrush.record import Record
from pybrush.result import UnlearnResult
from pybrush.standing import check_auto
from pybrush_keras import patches
from pybrush_keras.arguments import FitArguments, Settings, listed
from pybrush_keras.deployed import deployed
from pybrush_keras.fingerprint import check_backend
from pybrush_keras.given import Given, completed
from pybrush_keras.learner import KerasLearner
from pybrush_keras.randomness import kept_randomness
from pybrush_keras.rows import KerasRows, rows_to_forget
from pybrush_keras.supported import check_training

if TYPE_CHECKING:
    from pybrush_keras.sisa import SISA


def unlearn(  # noqa: PLR0913 (one argument for each thing a request may say)
    self: SISA,
    forget: Any = None,
    *,
    ids: Sequence[Any] | None = None,
    rows: Sequence[int] | None = None,
    subjects: Sequence[Any] | None = None,
    before: Any = None,
    queued: bool = False,
    model: Any = None,
    x: Any = None,
    y: Any = None,
    sample_weight: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    callbacks: Any = None,
    verbose: Any = "auto",
    retain: Any = None,
    method: str | ApproximateMethod = "auto",
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
        self: the SISA callback of the record.
        forget: the rows to forget: (x, y) or (x, y, sample_weight) as arrays, a Source or a tf.data.Dataset.
        ids: ids of the samples to forget, as given to SISA.
        rows: positions in the training data as it is now.
        subjects: persons of whom everything is forgotten; with `forget`, whose rows are meant.
        before: a date; every row whose day is earlier is forgotten: the day given by SISA(times=...), else that on
            which it was recorded.
        queued: serve everything that waits in the record's queue, in one request.
        model: the model, compiled; None: the one that was fitted in this process.
        x: the training data, as fit takes it; None: that of the fit in this process. Batch size, shuffling, class
            weights and epochs are the record's.
        y: the targets.
        sample_weight: the weights of the rows.
        validation_split: as to fit.
        validation_data: as to fit.
        callbacks: as to fit, with or without SISA.
        verbose: as to fit.
        retain: must be None; a method is given the recorded rows that stay.
        method: "auto" or "rebuild", or a method that does not train again, as `pybrush.method.ApproximateMethod`
            describes it.
        guarantee: what the record as a whole must guarantee afterwards: None, "exact", or a Budget. Whatever earlier
            requests left that is weaker is rebuilt.
        audit: must be None; statistical audits come with their own version.
        purge: "delete": registered files of stages that saw the samples are removed, and those that earlier requests
            left. "list": they stay and are listed in `result.audit`; the request is then incomplete, and
            `record.verify()` fails, until they are gone.
        duplicates: "report" rows equal to a forgotten one, or "forget" them too.
        missing: forget what is recorded and no longer in the training data.
        accept_changes: must be empty in this version.
        rebuild_all: must be False in this version.
        dry_run: only say what would be done, and what it would cost.

    Returns:
        The result; `result.model` is what to deploy.

    Raises:
        ForgetError: where the request cannot be served as asked; nothing was touched.
        FingerprintError: where model or settings are not those of the record.
        PyBrushError: see `pybrush.errors`; the user's model is as before.
    """
    check_unused(
        retain=retain is not None, audit=audit is not None,
        accept_changes=bool(accept_changes), rebuild_all=rebuild_all,
    )  # fmt: skip
    terms = terms_of(method, guarantee)
    asked = Asked(forget, ids, rows, subjects, missing, duplicates, before, queued, purge)
    data = {"y": y, "sample_weight": sample_weight, "validation_data": validation_data, "callbacks": callbacks}
    now = Given(model, arguments_of(self, x, data, validation_split, verbose))
    request = _Request(self, completed(now, self.given), method, terms, dry_run)
    with kept_randomness():
        return request.serve(asked)


def record_of(sisa: SISA) -> Record:
    """Return the record of a SISA callback.

    Raises:
        RecordError: where there is none yet.
    """
    record = sisa.recorded()
    if record is None:
        raise RecordError(f"there is no record in {sisa.record}; fit with this SISA callback first.")
    return record


def learner_of(sisa: SISA, given: Given, record: Record) -> KerasLearner:
    """Return the core's view of what a caller gave, under the record's settings.

    Raises:
        UnsupportedError: for what cannot be trained exactly.
        FingerprintError: where the record is another framework's or another backend's.
    """
    arguments, plan = given.arguments, record.plan
    if arguments is None:
        raise ConfigurationError("the training data is not known in this process; pass x=.")
    core.check_adapter(record, "keras", 1)
    check_backend(record)
    settings = Settings.recorded(plan.semantic["loader"])
    arguments = replace(arguments, epochs=plan.epochs, initial_epoch=0, steps_per_epoch=None).restored(plan.semantic)
    check_training(given.model, arguments)
    return sisa.learner(given.model, arguments, arguments.rows(), settings)


def sources_of(record: Record, sisa: SISA, learner: KerasLearner) -> Sources:
    """Compare fingerprints and name the rows: what stages of a record are trained from.

    Raises:
        FingerprintError: where model, data or settings are not those of the record.
    """
    core.check_fingerprint(record, sisa.wish(record.plan.epochs, learner.settings), learner)
    return Sources(learner, learner.rows, sisa.roster(learner.rows, record.names))


@dataclass(frozen=True)
class _Request:
    """One call of `unlearn`."""

    sisa: SISA
    given: Given
    method: str | ApproximateMethod
    terms: Terms
    dry_run: bool

    def serve(self, asked: Asked) -> UnlearnResult:
        """Compare fingerprints, name the rows, and let the core do the rest."""
        sisa, model = self.sisa, self.given.model
        record = record_of(sisa)
        check_auto(record, self.method, self.terms.guarantee)
        learner = learner_of(sisa, self.given, record)
        sources = sources_of(record, sisa, learner)
        find = partial(find_in, learner.rows)
        wish = asked.wish(sisa.naming_of(learner.rows), record.names, learner.rows, sources.roster, find)
        before, deploy = record.constituents(), partial(deployed, model=model)
        try:
            with patches.as_before_on_error(model):
                result = core.unlearn(record, sources, wish, aggregate=deploy, terms=self.terms, dry_run=self.dry_run)
        except BaseException:
            if record.constituents() != before:  # it was committed, and the core has loaded what is left
                self._take_over(learner)
            raise
        if not self.dry_run:
            self._take_over(learner)
        return result

    def _take_over(self, learner: KerasLearner) -> None:
        """Let callback and model say what the model holds now."""
        self.sisa.given = self.given
        self.sisa.mark(learner.model)
        if learner.histories:
            learner.show_history()


def find_in(rows: KerasRows, forget: Any) -> ForgetSet:
    """Take a forget set apart, beside the training data."""
    forgotten = rows_to_forget(forget)
    return ForgetSet(forgotten, rows.positions_of(forgotten))


def arguments_of(
    sisa: SISA, x: Any, data: dict[str, Any], validation_split: float, verbose: Any
) -> FitArguments | None:
    """Return what the caller passed of the arguments of fit, None without data."""
    callbacks = tuple(callback for callback in listed(data.pop("callbacks")) if callback is not sisa)
    if x is not None:
        return FitArguments(
            x=x, callbacks=callbacks, validation_split=validation_split, verbose=verbose, **data
        )  # fmt: skip
    named = [name for name, value in data.items() if value is not None]
    if named or callbacks or validation_split:
        raise ConfigurationError(
            f"{', '.join([*named, *(['callbacks'] if callbacks else [])]) or 'validation_split'} came without x=: pass "
            "all of what was passed to fit, or nothing of it."
        )
    return None
