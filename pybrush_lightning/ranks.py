"""Several processes, one record: rank 0 runs the core and writes, the other ranks do with their models what it does.

A key, a plan or a seed for each rank would give each another training, so no other rank ever opens the
record. Where the core calls the model, rank 0 sends the call to the others first; what it returns, or
raises, reaches all of them. Guide: docs/pitfalls.md, "More than one process".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from torch import distributed

from pybrush import errors
from pybrush.learner import Horizon, Trained
from pybrush.names import Namer
from pybrush.plan.order import Positions, Seeds
from pybrush.record import trees

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from pybrush_lightning.learner import LightningLearner

T = TypeVar("T")

_PATIENCE = timedelta(days=1000)
"""How long a rank waits for rank 0, which may read, hash or erase for hours between two calls."""


def is_many(trainer: Trainer) -> bool:
    """Whether a trainer runs in more than one process."""
    return bool(trainer.world_size > 1)


def from_zero(trainer: Trainer, function: Callable[[], T]) -> T:
    """Let rank 0 alone call a function; return its value, or raise its error, on every rank."""
    if not _is_connected(trainer):
        return function()
    if not trainer.is_global_zero:
        value: T = _opened(_broadcast(None))
        return value
    try:
        value = function()
    except BaseException as error:
        _broadcast(Failure.of(error))
        raise
    _broadcast(value)
    return value


def agreed(trainer: Trainer, function: Callable[[], T]) -> T:
    """Call a function on every rank; where it raises on one, it raises on all.

    The function must not communicate: a rank that failed inside would leave the others waiting there.
    """
    if not _is_connected(trainer):
        return function()
    try:
        value = function()
    except BaseException as error:
        _gather(Failure.of(error))
        raise
    for failure in _gather(None):
        _opened(failure)
    return value


def check_same_rows(trainer: Trainer, digest: Callable[[], str]) -> None:
    """Refuse training data that is not the same on every rank: rank 0 says by position what each trains on.

    Raises:
        ConfigurationError: on every rank.
    """
    if not _is_connected(trainer):
        return
    found = _gather(agreed(trainer, digest))
    others = [rank for rank, value in enumerate(found) if value != found[0]]
    if others:
        raise errors.ConfigurationError(
            f"rank {others[0]} holds other training rows than rank 0, or in another order ({len(others)} of "
            f"{len(found)} ranks differ). First suspect an unseeded random_split: give it a seeded generator."
        )


def together(trainer: Trainer, learner: LightningLearner, work: Callable[[Any], T]) -> T:
    """Let rank 0 do what needs the record while the other ranks follow; call it on all of them, inside a fit.

    Args:
        trainer: the user's trainer.
        learner: this rank's.
        work: what rank 0 does, with a Learner that all ranks follow.

    Returns:
        What `work` returned on rank 0, on every rank: plain values, which pickle knows.
    """
    if not _is_connected(trainer):
        return work(learner)
    if not trainer.is_global_zero:
        value: T = _follow(learner)
        return value
    leader = Leader(learner)
    try:
        value = work(leader)
    except BaseException as error:
        if not leader.is_alone:
            _broadcast(Failure.of(error))
        raise
    _broadcast(_Done(value))
    return value


@dataclass(frozen=True)
class Failure:
    """An error, which reaches other ranks as text: exceptions of user code need not survive pickle."""

    rank: int
    kind: str
    text: str
    notes: tuple[str, ...] = ()
    original: BaseException | None = field(default=None, compare=False)

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an error of this rank."""
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        return cls(rank, type(error).__name__, str(error), tuple(getattr(error, "__notes__", ())), error)

    def __reduce__(self) -> tuple[type[Failure], tuple[Any, ...]]:
        return Failure, (self.rank, self.kind, self.text, self.notes)

    def error(self) -> BaseException:
        """Return the error to raise: the original where it arose; elsewhere one of PyBrush's own keeps its class."""
        if self.original is not None:
            return self.original
        own = getattr(errors, self.kind, KeyboardInterrupt if self.kind == "KeyboardInterrupt" else None)
        raised: BaseException = (
            errors.TrainingError(f"rank {self.rank} failed with {self.kind}: {self.text}")
            if own is None
            else own(self.text)
        )
        for note in (*self.notes, f"Raised on rank {self.rank}."):
            raised.add_note(note)
        return raised


@dataclass
class Leader:
    """The Learner of rank 0: each call of the core that moves the model is made on all ranks.

    Attributes:
        learner: this rank's own.
        is_alone: whether a call failed, so that no other rank follows any more.
    """

    learner: LightningLearner
    is_alone: bool = False
    _is_probed: bool = field(default=False, repr=False)

    def read_state(self) -> Any:
        """Return the state of rank 0, from which every rank starts the next stage."""
        return self.learner.read_state()

    def write_state(self, state: Any) -> None:
        """Put the models of all ranks into a state."""
        if self.is_alone:
            self.learner.write_state(state)
        else:
            self._do(_WriteState(*trees.pack(state)))

    def train_stage(self, data: Any, rows: Callable[[int], Positions], horizon: Horizon, seeds: Seeds) -> Trained:
        """Train one stage, each rank on its share of the rows."""
        del data  # each rank has a loader of its own over the same rows
        trained: Trained = self._do(_TrainStage(rows, horizon, seeds))
        return trained

    def drop_training(self) -> None:
        """Drop the state of optimizers and schedulers; the other ranks are told with the next state."""
        self.learner.drop_training()

    def session(self, build: Callable[[], T]) -> T:
        """Call a build, which is inside of a fit already."""
        return build()

    def semantic(self, namer: Namer) -> dict[str, Any]:
        """Return the semantic fingerprint; configure_optimizers may ask for numbers that all ranks must give."""
        if not self._is_probed:
            self._do(_Probe())
            self._is_probed = True
        return self.learner.semantic(namer)

    def environment(self) -> dict[str, Any]:
        """Return that of rank 0, and what connects the ranks."""
        return {**self.learner.environment(), "backend": distributed.get_backend()}

    def _do(self, call: Callable[[Any], Any]) -> Any:
        _broadcast(call)
        try:
            return call(self.learner)
        except BaseException:
            self.is_alone = True
            raise


@dataclass(frozen=True)
class _WriteState:
    tree: bytes
    arrays: trees.Arrays

    def __call__(self, learner: LightningLearner) -> None:
        agreed(learner.trainer, lambda: learner.write_state(trees.unpack(self.tree, self.arrays)))


@dataclass(frozen=True)
class _TrainStage:
    rows: Callable[[int], Positions]
    horizon: Horizon
    seeds: Seeds

    def __call__(self, learner: LightningLearner) -> Trained:
        return learner.train_stage(learner.plan, self.rows, self.horizon, self.seeds)


@dataclass(frozen=True)
class _Probe:
    def __call__(self, learner: LightningLearner) -> None:
        learner.probe()


@dataclass(frozen=True)
class _Done:
    value: Any


def _follow(learner: LightningLearner) -> Any:
    """Do what rank 0 sends, until its work is done or has failed."""
    while True:
        call = _opened(_broadcast(None))
        if isinstance(call, _Done):
            return call.value
        call(learner)


def _opened(sent: Any) -> Any:
    """Return what was sent, or raise it where it is an error."""
    if isinstance(sent, Failure):
        raise sent.error()
    return sent


def _is_connected(trainer: Trainer) -> bool:
    """Whether other ranks can be reached; the process that spawns them is not one of them."""
    return is_many(trainer) and distributed.is_available() and distributed.is_initialized()


def _broadcast(value: Any) -> Any:
    sent = [value]
    distributed.broadcast_object_list(sent, src=0, group=_group(distributed.group.WORLD))
    return sent[0]


def _gather(value: Any) -> list[Any]:
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value, group=_group(distributed.group.WORLD))
    return found


@cache
def _group(_: Any) -> Any:
    """Return the channel beside the given group, on which no gradient waits; all ranks ask for it together."""
    return distributed.new_group(backend="gloo", timeout=_PATIENCE)
