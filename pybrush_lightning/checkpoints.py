"""Checkpoints that user code writes: each is registered with its stage before it is written.

`Trainer.save_checkpoint` is wrapped once per Lightning package when PyBrush is imported; trainers without
SISA go straight through. `torch.save` of a state dict cannot be seen (docs/pitfalls.md).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pybrush.errors import UnsupportedError
from pybrush.record import Record
from pybrush_lightning import _private

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_LOCAL = "Save to a local folder and copy what is to be deployed, or set enable_checkpointing=False"


def wrap_save_checkpoint(trainer_class: Any, listener: Any) -> None:
    """Let a Trainer class announce each checkpoint to its `listener` callbacks; does nothing the second time."""
    original = trainer_class.save_checkpoint
    if getattr(original, "announces_to_sisa", False):
        return

    @functools.wraps(original)
    def save_checkpoint(self: Any, filepath: Any, *args: Any, **kwargs: Any) -> None:
        for callback in self.callbacks:
            if isinstance(callback, listener):
                callback.before_save(self, filepath)
        original(self, filepath, *args, **kwargs)

    save_checkpoint.announces_to_sisa = True  # type: ignore[attr-defined]
    trainer_class.save_checkpoint = save_checkpoint


def register(record: Record, path: str | Path, stage: str) -> None:
    """Note a checkpoint that is about to be written, with the stage whose state it will hold.

    Raises:
        UnsupportedError: for a place from which a request could not remove it.
    """
    if is_remote(path):
        raise UnsupportedError(f"{path} is not a local file, so a later request could not erase it. {_LOCAL}.")
    record.register_artefact(path, stage, "checkpoint")


def remote_folders(trainer: Trainer) -> list[str]:
    """Say which ModelCheckpoint callbacks save to no local folder, each with what to do instead."""
    callbacks = checkpoint_callbacks(trainer)
    folders = [str(callback.dirpath or trainer.default_root_dir) for callback in callbacks]
    return [f"checkpoints in {folder}: {_LOCAL}" for folder in folders if is_remote(folder)]


def is_remote(path: str | Path) -> bool:
    """Whether a path names another file system, as fsspec writes it."""
    return "://" in str(path)


def checkpoint_callbacks(trainer: Trainer) -> list[Any]:
    """Return the ModelCheckpoint callbacks of a trainer, of either package."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by the callback connector
    return [c for c in callbacks if any(base.__name__ == "ModelCheckpoint" for base in type(c).__mro__)]


def reset(trainer: Trainer) -> None:
    """Let every ModelCheckpoint begin anew; without this a stage deletes the files of the one before."""
    for callback in checkpoint_callbacks(trainer):
        _private.reset_checkpoint_callback(callback)


def paths(trainer: Trainer) -> dict[str, dict[str, str]]:
    """Return where each ModelCheckpoint has its best and last file of the stage that just ran."""
    return {
        callback.state_key: {"best": callback.best_model_path, "last": callback.last_model_path}
        for callback in checkpoint_callbacks(trainer)
    }


def point_to(trainer: Trainer, found: dict[str, dict[str, str]]) -> None:
    """Let every ModelCheckpoint point to the files of the constituent that the module holds, '' if none."""
    for callback in checkpoint_callbacks(trainer):
        _private.reset_checkpoint_callback(callback)
        held = found.get(callback.state_key, {})
        callback.best_model_path, callback.last_model_path = held.get("best", ""), held.get("last", "")


def snapshot(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the attributes of every ModelCheckpoint, to put back after an error."""
    return [{**vars(c), "best_k_models": dict(c.best_k_models)} for c in checkpoint_callbacks(trainer)]


def put_back(trainer: Trainer, attributes: list[dict[str, Any]]) -> None:
    """Give every ModelCheckpoint the attributes it had."""
    for callback, held in zip(checkpoint_callbacks(trainer), attributes, strict=True):
        vars(callback).update(held)
