"""Checkpoints that user code writes: each is registered with its stage before it is written.

`Trainer.save_checkpoint` is wrapped once per Lightning package when PyBrush is imported; trainers without
SISA go straight through. `torch.save` of a state dict cannot be seen (docs/pitfalls.md).

A ModelCheckpoint writes each stage into a folder of the stage's own, `shard_0/slice_1` below its dirpath. The
folder is registered too and goes with the stage, whatever lies in it: links, and copies that stand for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pybrush.errors import UnsupportedError
from pybrush.learner import Horizon
from pybrush.record import Record
from pybrush.record.files import entries, erase
from pybrush.replaced import replaced
from pybrush_lightning import _private

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_LOCAL = "Save to a local folder and copy what is to be deployed, or set enable_checkpointing=False"


def wrap_save_checkpoint(trainer_class: Any, listener: Any) -> None:
    """Let a Trainer class announce each checkpoint to its `listener` callbacks; does nothing the second time."""
    original = trainer_class.save_checkpoint
    if getattr(original, "announces_to_sisa", False):
        return

    @wraps(original)
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


@contextmanager
def in_stage_folders(trainer: Trainer, record: Record | None, horizon: Horizon) -> Iterator[set[Path]]:
    """Let every ModelCheckpoint begin anew, in a folder of the stage's own; then it has its dirpath back.

    Without this a stage deletes the files of the one before.

    Yields:
        The stage's folders, which nobody has registered or made yet.
    """
    callbacks = checkpoint_callbacks(trainer)
    bases = dict.fromkeys(callback.dirpath for callback in callbacks)  # in order: every process asks alike
    folders = {base: _stage_folder(trainer, record, Path(base).absolute(), horizon) for base in bases}
    with ExitStack() as stack:
        for callback in callbacks:
            _private.reset_checkpoint_callback(callback)
            state, folder = partial(_state_under, callback, callback.dirpath), str(folders[callback.dirpath])
            stack.enter_context(replaced(callback, state_dict=state, dirpath=folder))
        yield set(folders.values())


@contextmanager
def in_scratch(trainer: Trainer, folder: Path) -> Iterator[None]:
    """Let every ModelCheckpoint begin anew in a folder in which nothing is kept; then it has its dirpath back."""
    with ExitStack() as stack:
        for callback in checkpoint_callbacks(trainer):
            _private.reset_checkpoint_callback(callback)
            stack.enter_context(replaced(callback, dirpath=str(folder)))
        yield


@contextmanager
def unsaved(trainer: Trainer) -> Iterator[None]:
    """Let `trainer.save_checkpoint` write nothing for a while."""
    with replaced(trainer, save_checkpoint=_save_nothing):
        yield


def _save_nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for a trainer's save_checkpoint."""


def _state_under(callback: Any, dirpath: Any) -> dict[str, Any]:
    """Return what a ModelCheckpoint writes into its files, under the folder that it has outside of stages."""
    return {**type(callback).state_dict(callback), "dirpath": dirpath}


def _stage_folder(trainer: Trainer, record: Record | None, base: Path, horizon: Horizon) -> Path:
    """Return a folder that holds nothing but what an interrupted training of this same stage left; that is removed.

    The files of a stage that a request replaces stay until the request is committed, and those of another
    record stay for good: a stage whose folder is taken goes to `slice_1_v2`.
    """
    held = {} if record is None else record.artefacts()
    for version in count(1):
        folder = base / f"shard_{horizon.shard}" / (f"slice_{horizon.slice}" + (f"_v{version}" if version > 1 else ""))
        owner = held.get(str(folder.resolve()))
        if owner == horizon.key or (owner is None and not entries(folder)):
            break
    folder = trainer.strategy.broadcast(folder)
    if owner is not None and trainer.is_global_zero:
        erase(folder)
    return folder


def register_folders(record: Record, path: str | Path, stage: str, folders: set[Path]) -> None:
    """Note those of a stage's folders that hold a file which is about to be written, each once."""
    for folder in [folder for folder in folders if folder in Path(path).absolute().parents]:
        record.register_artefact(folder, stage, "checkpoints")
        folders.remove(folder)


def found(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Return what each ModelCheckpoint kept of the stage that just ran, as plain values; scores are text."""
    return {
        callback.state_key: {
            "best": callback.best_model_path,
            "last": callback.last_model_path,
            "kth": callback.kth_best_model_path,
            "top": {path: repr(float(score)) for path, score in callback.best_k_models.items()},
            "current": None if callback.current_score is None else repr(float(callback.current_score)),
        }
        for callback in checkpoint_callbacks(trainer)
    }


def point_to(trainer: Trainer, kept: dict[str, dict[str, Any]]) -> None:
    """Let every ModelCheckpoint say what it kept of the constituent that the module holds, '' if nothing."""
    for callback in checkpoint_callbacks(trainer):
        _private.reset_checkpoint_callback(callback)
        held = kept.get(callback.state_key, {})
        callback.best_model_path, callback.last_model_path = held.get("best", ""), held.get("last", "")
        top = {path: torch.tensor(float(score)) for path, score in held.get("top", {}).items()}
        callback.best_k_models, callback.best_model_score = top, top.get(callback.best_model_path)
        callback.kth_best_model_path = held.get("kth", "")
        callback.kth_value = top.get(callback.kth_best_model_path, callback.kth_value)
        current = held.get("current")
        callback.current_score = None if current is None else torch.tensor(float(current))


def snapshot(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the attributes of every ModelCheckpoint, to put back after an error."""
    return [{**vars(c), "best_k_models": dict(c.best_k_models)} for c in checkpoint_callbacks(trainer)]


def put_back(trainer: Trainer, attributes: list[dict[str, Any]]) -> None:
    """Give every ModelCheckpoint the attributes it had."""
    for callback, held in zip(checkpoint_callbacks(trainer), attributes, strict=True):
        vars(callback).update(held)
