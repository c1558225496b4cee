"""`trainer.unlearn(...)`: requests on a record, from the trainer that made it or any other.

Importing PyBrush gives every Trainer class of the installed Lightning packages the method; setting
PYBRUSH_NO_PATCH=1 leaves them alone, and `pybrush_lightning.unlearn(trainer, ...)` does the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer

from pybrush.asked import Asked, check_unused
from pybrush.errors import UnsupportedError
from pybrush.method import ApproximateMethod, terms_of
from pybrush.result import UnlearnResult
from pybrush_lightning import _private, checkpoints, ranks
from pybrush_lightning.around_fit import Given
from pybrush_lightning.given import completed
from pybrush_lightning.randomness import kept_randomness
from pybrush_lightning.resume import look_in_stages
from pybrush_lightning.serving import How, serve_here, serve_on_ranks, sisa_of
from pybrush_lightning.sisa import SISA
from pybrush_lightning.spawned import after_spawn

if TYPE_CHECKING:
    from lightning.pytorch import Trainer as AnyTrainer


def unlearn(  # noqa: PLR0913 (one argument for each thing a request may say)
    trainer: AnyTrainer,
    forget: Any = None,
    *,
    ids: Sequence[Any] | None = None,
    rows: Sequence[int] | None = None,
    subjects: Sequence[Any] | None = None,
    before: Any = None,
    queued: bool = False,
    model: LightningModule | None = None,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: Any = None,
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
        trainer: a Trainer with a SISA callback.
        forget: a DataLoader or map-style data set of the rows to forget.
        ids: ids of the samples to forget, as given to SISA.
        rows: positions in the training data set as it is now.
        subjects: persons of whom everything is forgotten; with `forget`, whose rows are meant.
        before: a date; every row whose day is earlier is forgotten: the day given by SISA(times=...), else that on
            which it was recorded.
        queued: serve everything that waits in the record's queue, in one request.
        model: the module; None: the one that this trainer fitted.
        train_dataloaders: the training loader; None: the one of the fit in this process.
        val_dataloaders: the validation loaders, if something monitors them.
        datamodule: in place of the loaders.
        retain: must be None; a method is given the recorded rows that stay.
        method: "auto" or "rebuild", or a method that does not train again, as `pybrush.method.ApproximateMethod`
            describes it.
        guarantee: what the record as a whole must guarantee afterwards: None, "exact", or a Budget. Whatever earlier
            requests left that is weaker is rebuilt.
        audit: must be None; statistical audits come with their own version.
        purge: "delete": registered checkpoints of stages that saw the samples are removed, and those that earlier
            requests left. "list": they stay and are listed in `result.audit`; the request is then incomplete, and
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
        FingerprintError: where module or settings are not those of the record.
        PyBrushError: see `pybrush.errors`; the user's objects are as before.
    """
    check_unused(
        retain=retain is not None, audit=audit is not None,
        accept_changes=bool(accept_changes), rebuild_all=rebuild_all,
    )  # fmt: skip
    how = How(method, terms_of(method, guarantee), dry_run)
    asked = Asked(forget, ids, rows, subjects, missing, duplicates, before, queued, purge)
    if _private.is_trial_run(trainer):
        raise UnsupportedError(
            "fast_dev_run and overfit_batches never touch a record; unlearn with a Trainer without them."
        )
    sisa = sisa_of(trainer)
    given = completed(Given(model, train_dataloaders, val_dataloaders, datamodule), sisa.given)
    serve = serve_on_ranks if ranks.is_many(trainer) else serve_here
    with kept_randomness():
        return serve(trainer, sisa, given, asked, how)


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
    look_in_stages(SISA)
    _private.wrap_recovery(after_spawn)
