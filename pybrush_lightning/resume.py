"""`ckpt_path=` under SISA: in a fit, a checkpoint of the record's own says only that training goes on.

Every stage starts from a state in the record, so whatever a checkpoint holds never matters: it is not even
read. Any other file is refused, since it would make a model that has seen the data the start of every shard.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.states import TrainerFn

from pybrush.errors import UnsupportedError
from pybrush.record import Record
from pybrush_lightning import _private
from pybrush_lightning.checkpoints import checkpoint_callbacks
from pybrush_lightning.ranks import from_zero

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_log = logging.getLogger(__name__)

Recorded = Callable[[], Record | None]
"""Opens the record, where there is one."""


def own_unread(trainer: Trainer, recorded: Recorded) -> AbstractContextManager[None]:
    """Let a fit read no checkpoint: those of the record it does not need, and all others are refused."""
    return _private.checkpoints_checked(trainer, lambda path: from_zero(trainer, lambda: _check_own(recorded(), path)))


def best_refused(trainer: Trainer, recorded: Recorded) -> AbstractContextManager[None]:
    """Let an evaluation refuse the best epoch of one shard among several."""
    return _private.checkpoints_checked(
        trainer, lambda path: from_zero(trainer, lambda: _not_best(trainer, recorded(), path))
    )


def look_in_stages(listener: Any) -> None:
    """Let ckpt_path="last" find the checkpoints of stages where a trainer with a `listener` callback is fitted.

    Lightning looks in the ModelCheckpoint's own folder, and stages have theirs below it.
    """

    def found(callback: Any, trainer: Trainer) -> set[str]:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the callback connector
        owners = [owner for owner in callbacks if isinstance(owner, listener)]
        fits = trainer.state.fn == TrainerFn.FITTING
        return _last_checkpoints(owners[0].recorded(), callback) if fits and owners else set()

    for checkpoint_class in _private.checkpoint_classes():
        _private.extend_last_checkpoints(checkpoint_class, found)


def _check_own(record: Record | None, path: str) -> None:
    """Check that a checkpoint is one that the record has registered for a stage it wants.

    Raises:
        UnsupportedError: for any other file, before it is read.
    """
    stages = _registered(record)
    place = Path(path).resolve()
    if record is None or not place.exists() or str(place) not in stages:
        raise UnsupportedError(
            f"fit(ckpt_path={path!r}) is no checkpoint of a stage that this record holds, and would make a model that "
            "has seen the data the start of every shard. Leave it out, and move away an hpc_ckpt_*.ckpt that a cluster "
            "finds by itself: an interrupted SISA fit goes on from its record when the script is run again."
        )
    _log.info("%s is a checkpoint of %s: training goes on from the record, the file is not read", path, record.folder)


def _not_best(trainer: Trainer, record: Record | None, path: str) -> str:
    """Return a checkpoint's path for an evaluation, unless it is the best epoch of one shard among several.

    Raises:
        UnsupportedError: where it is, since Lightning would evaluate it as if it were the model.
    """
    several = record is not None and len(record.constituents()) > 1
    callback = checkpoint_callbacks(trainer)[:1]
    if several and callback and callback[0].monitor is not None and path == callback[0].best_model_path:
        raise UnsupportedError(
            "ckpt_path='best', which Lightning also takes where no model is given, is the best epoch of one shard, "
            "not the aggregate. Pass the model without ckpt_path: trainer.test(model, dataloaders=...)."
        )
    return path


def _registered(record: Record | None) -> dict[str, str]:
    """Return the path of each file or folder registered for a stage that a record wants, and the stage's key."""
    if record is None:
        return {}
    wanted = record.ledger.wanted()
    return {path: stage for path, stage in record.artefacts().items() if stage in wanted}


def _last_checkpoints(record: Record | None, callback: Any) -> set[str]:
    """Return the last checkpoints in the folders of a record's stages."""
    name = f"{callback.CHECKPOINT_NAME_LAST}*{callback.FILE_EXTENSION}"
    return {str(file) for path in _registered(record) if Path(path).is_dir() for file in Path(path).glob(name)}
