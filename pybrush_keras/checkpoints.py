"""Files that user code writes with a model: each is registered with its stage before it is written.

`Model.save`, `save_weights` and `export` are wrapped once when PyBrush is imported (`pybrush_keras.patches`); what a
stage's callbacks save goes into a folder of the stage's own, `shard_0/slice_1` below where they were told to save.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from pybrush.errors import UnsupportedError
from pybrush.learner import Horizon
from pybrush.record import Record
from pybrush.record.files import entries, erase
from pybrush.replaced import replaced

_LOCAL = "Save to a local folder and copy what is to be deployed"


def register(record: Record, path: Any, stage: str) -> None:
    """Note a file that is about to be written, with the stage whose state it will hold.

    Raises:
        UnsupportedError: for a place from which a request could not remove it.
    """
    if is_remote(path):
        raise UnsupportedError(f"{path} is not a local file, so a later request could not erase it. {_LOCAL}.")
    record.register_artefact(path, stage, "checkpoint")


def is_remote(path: Any) -> bool:
    """Whether a path names another file system, as fsspec and TensorFlow write it."""
    return "://" in str(path)


def remote_places(callbacks: Iterable[Any]) -> list[str]:
    """Say which callbacks save to no local folder, each with what to do instead."""
    return [
        f"{type(callback).__name__} saves to {place}: {_LOCAL}"
        for callback in callbacks
        for place in _places(callback).values()
        if is_remote(place)
    ]


@contextmanager
def in_stage_folders(callbacks: Iterable[Any], record: Record, horizon: Horizon) -> Iterator[None]:
    """Let what saves begin anew, in a folder of the stage's own; then it has its place back.

    Without this a shard overwrites the files of another one, and a backup of one stage is restored in the next.
    """
    folders: dict[Path, Path] = {}
    with ExitStack() as stack:
        for callback in callbacks:
            places = _places(callback)
            if not places:
                continue
            held = dict(vars(callback))
            stack.callback(_put_back, callback, held)
            base = _base(places)
            if base not in folders:
                folders[base] = _stage_folder(record, base, horizon)
                record.register_artefact(folders[base], horizon.key, "checkpoints")
            moved = {
                name: str(folders[base] / Path(place).absolute().relative_to(base)) for name, place in places.items()
            }
            stack.enter_context(replaced(callback, **moved))
        yield


@contextmanager
def in_scratch(callbacks: Iterable[Any], folder: Path) -> Iterator[None]:
    """Let what saves do so in a folder in which nothing is kept; then it is as it was."""
    with ExitStack() as stack:
        for number, callback in enumerate(callbacks):
            places = _places(callback)
            if places:
                stack.callback(_put_back, callback, dict(vars(callback)))
                moved = {name: str(folder / str(number) / Path(place).name) for name, place in places.items()}
                vars(callback).update(moved)
        yield


def _places(callback: Any) -> dict[str, str]:
    """Return the attributes of a callback of Keras that say where it saves the model."""
    kinds = {base.__name__ for base in type(callback).__mro__}
    if "ModelCheckpoint" in kinds:
        return {"filepath": str(callback.filepath)}
    if "BackupAndRestore" in kinds:
        names = [name for name, value in vars(callback).items() if name.endswith(("_dir", "_path")) and value]
        return {name: str(vars(callback)[name]) for name in ["backup_dir", *(n for n in names if n != "backup_dir")]}
    return {}


def _base(places: dict[str, str]) -> Path:
    """Return the folder below which stages get folders of their own; names with fields to fill in are files'."""
    if "backup_dir" in places:
        return Path(places["backup_dir"]).absolute()
    return next(folder for folder in Path(places["filepath"]).absolute().parents if "{" not in str(folder))


def _put_back(callback: Any, held: dict[str, Any]) -> None:
    """Give a callback the attributes that it had: what it counted of one stage is not the next one's."""
    vars(callback).clear()
    vars(callback).update(held)


def _stage_folder(record: Record, base: Path, horizon: Horizon) -> Path:
    """Return a folder that holds nothing but what an interrupted training of this same stage left; that is removed.

    The files of a stage that a request replaces stay until the request is committed, and those of another record stay
    for good: a stage whose folder is taken goes to `slice_1_v2`.
    """
    held = record.artefacts()
    for version in count(1):
        folder = base / f"shard_{horizon.shard}" / (f"slice_{horizon.slice}" + (f"_v{version}" if version > 1 else ""))
        owner = held.get(str(folder.resolve()))
        if owner == horizon.key or (owner is None and not entries(folder)):
            break
    if owner is not None:
        erase(folder)
    return folder
