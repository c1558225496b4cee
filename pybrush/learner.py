"""What the core asks of a framework: the Learner protocol, the whole bridge for rebuilds.

An adapter implements it once; placement, keys, requests, erasure and evidence are then the same in every
framework. Objectives and statistics join it together with the methods that use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pybrush.names import Namer
from pybrush.plan.order import Positions, Seeds
from pybrush.plan.outlook import Outlook

T = TypeVar("T")


@dataclass(frozen=True)
class Horizon:
    """Where a stage stands in the training of its shard.

    Attributes:
        shard: counted from 0.
        slice: counted from 0.
        epochs: epochs of this stage.
        epochs_before: epochs that the shard was trained before it; the stage starts at this epoch.
        total: epochs of a shard of which every slice is trained: what schedules may rely on.
        key: the stage's key, under which files that user code writes meanwhile are registered.
        outlook: what is built besides, for what is shown meanwhile.
    """

    shard: int
    slice: int
    epochs: int
    epochs_before: int
    total: int
    key: str = ""
    outlook: Outlook = field(default_factory=Outlook)


@dataclass(frozen=True)
class Trained:
    """What training one stage took.

    Attributes:
        steps: optimizer steps.
        learning_rate_sum: the learning rate summed over the steps, each lr / (1 - momentum).
        notes: plain values of the adapter that go into the stage's manifest.
    """

    steps: int
    learning_rate_sum: float
    notes: Mapping[str, Any] = field(default_factory=dict)


class Learner(Protocol):
    """A model in its framework, with the data it trains on.

    `read_state` returns everything that later training depends on, as a typed tree
    (`pybrush.record.states`), and `write_state` puts it back bit for bit. Before the first stage the tree
    is the initial state of the model.
    """

    def read_state(self) -> Any:
        """Return the full state as a typed tree that shares no memory with the model."""

    def write_state(self, state: Any) -> None:
        """Put the model into a state that `read_state` returned."""

    def train_stage(self, data: Any, rows: Callable[[int], Positions], horizon: Horizon, seeds: Seeds) -> Trained:
        """Train one stage from the state the model is in.

        Args:
            data: what the adapter handed to the core as its data set.
            rows: epoch, counted inside the stage -> positions in `data`, in order.
            horizon: where the stage stands.
            seeds: (epoch, purpose) -> seed; all randomness of the stage comes from here.
        """

    def drop_training(self) -> None:
        """Drop what only further training would need, such as the moments of optimizers.

        An approximate method changes the model; what the forgotten rows left in the rest must not stay in its state,
        from which nothing is trained.
        """

    def session(self, build: Callable[[], T]) -> T:
        """Run `build` where the framework can train, and return what it returns."""

    def semantic(self, namer: Namer) -> dict[str, Any]:
        """Return what training depends on, as plain JSON: sources, settings, optimizers, callbacks.

        Args:
            namer: keyed digests under the record's key, for whatever in it comes from data.
        """

    def environment(self) -> dict[str, Any]:
        """Return versions, device, threads and processor features, as plain JSON."""
