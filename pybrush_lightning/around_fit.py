"""What SISA keeps while a fit runs: what the user passed, how their objects were, and what a stage takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pybrush.learner import Horizon
from pybrush.record import Record
from pybrush_lightning import _private, checkpoints, loggers, progress, state

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

Around = Callable[["Trainer", Horizon], AbstractContextManager[set[Path]]]
"""What is around a stage that is trained; gives the stage's folders for checkpoints."""

Optimization = tuple[list[Any], list[Any]]
"""Optimizers and scheduler configs of a trainer."""


@dataclass(frozen=True)
class Given:
    """What the user last passed to fit, for requests in the same process."""

    module: Any = None
    train: Any = None
    validation: Any = None
    datamodule: Any = None


@dataclass(frozen=True)
class Mark:
    """Which stage's state a module holds; kept beside the module, not on it."""

    module: weakref.ref[Any]
    key: str


@dataclass(frozen=True)
class Held:
    """Which constituent a record's module holds after a fit or a request; plain values, the same on every rank.

    Attributes:
        key: of the constituent's stage.
        checkpoints: best and last file of that stage for each ModelCheckpoint, by its state_key.
    """

    key: str
    checkpoints: dict[str, dict[str, str]]

    @classmethod
    def of(cls, record: Record) -> Held:
        """Return the last constituent, which the core loads."""
        last = record.constituents()
        key = last[max(last)]
        return cls(key, dict(record.store.manifest(key).notes.get("checkpoints", {})))


@dataclass(frozen=True)
class Job:
    """What a trainer's fit does in place of a fit.

    Attributes:
        run: called where the fit loop would run, on every rank.
        settings: what is in force for the length of the fit, from before anything is checked.
        around: what is around each stage, in place of `recorded_stage`.
    """

    run: Callable[[], Any]
    settings: Callable[[], AbstractContextManager[Any]] = nullcontext
    around: Around | None = None


@dataclass
class Meter:
    """What is counted while a stage trains.

    Attributes:
        horizon: where the stage stands.
        folders: its folders for checkpoints in which nothing was written yet.
        learning_rate_sum: over its steps so far, each lr / (1 - momentum).
        notes: what goes into its manifest.
    """

    horizon: Horizon
    folders: set[Path]
    learning_rate_sum: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Before:
    """The user's objects as they were when a fit began."""

    module: state.Tree
    callbacks: state.Tree
    checkpoints: list[dict[str, Any]]
    mark: Mark | None

    @classmethod
    def of(cls, trainer: Trainer, module: LightningModule, mark: Mark | None) -> Before:
        """Take note of everything that stages will change."""
        held = state.read_module(module), state.read_callbacks(trainer, module), checkpoints.snapshot(trainer)
        return cls(*held, mark)

    def write(self, trainer: Trainer, module: LightningModule) -> None:
        """Put module and callbacks back."""
        state.write_module(module, self.module)
        state.write_callbacks(trainer, module, self.callbacks)

    def put_back(self, trainer: Trainer, module: LightningModule) -> None:
        """Put everything back."""
        self.write(trainer, module)
        checkpoints.put_back(trainer, self.checkpoints)


@contextmanager
def recorded_stage(
    record: Record | None, steps: loggers.LogSteps, trainer: Trainer, horizon: Horizon
) -> Iterator[set[Path]]:
    """Show a stage, and keep apart what is saved and logged in it; gives its folders for checkpoints."""
    with (
        checkpoints.in_stage_folders(trainer, record, horizon) as folders,
        steps.counted(trainer),
        loggers.columns(trainer, horizon),
        progress.shown(trainer, horizon),
    ):
        yield folders


@contextmanager
def unrecorded_stage(scratch: Path, trainer: Trainer, horizon: Horizon) -> Iterator[set[Path]]:
    """Show a stage of which nothing is kept (`nothing_kept`)."""
    with checkpoints.in_scratch(trainer, scratch), progress.shown(trainer, horizon):
        yield set()


@contextmanager
def nothing_kept(trainer: Trainer) -> Iterator[None]:
    """Let nothing be saved or logged for a while, and then let every ModelCheckpoint be as it was."""
    held = checkpoints.snapshot(trainer)
    try:
        with checkpoints.unsaved(trainer), loggers.silenced(trainer), _private.metrics_apart(trainer):
            yield
    finally:
        checkpoints.put_back(trainer, held)


def given_to(module: LightningModule, train: Any, validation: Any) -> Given:
    """Return what the user passed to fit, from the sources that Lightning made of it."""
    datamodule = train.instance if train.is_module() and train.instance is not module else None
    loaders = None if train.is_module() else train.instance
    return Given(module, loaders, None if validation.is_module() else validation.instance, datamodule)


def loaders_of(source: Any) -> Any:
    """Return the validation loaders of a source, None where the user defined none."""
    loaders = source.dataloader() if source.is_defined() else None
    return None if loaders is None or (isinstance(loaders, Sequence) and not loaders) else loaders
