"""What a plan will cost before anything is trained: its requests, its training, and its place on disk.

`expected_cost` is the arithmetic of requests; here it is asked for the numbers of requests that a user
compares, beside what shards and slices cost whether or not anyone asks to be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pybrush.errors import ConfigurationError
from pybrush.plan.cost import Cost, epochs_per_slice, expected_cost
from pybrush.plan.placement import positive

REQUESTS = (1, 10, 100)
"""Forgotten samples that a forecast is made for, where nobody says which."""

_LEDGER_ROW, _SUBJECT_ROW = 54, 65
"""Bytes a sample takes in the ledger, and what naming one person of it adds, as measured on 300,000 rows."""

_COPIES = 3
"""Times the model's own bytes that a stage takes at most: the model and two moments, as Adam keeps them."""


@dataclass(frozen=True)
class Sizes:
    """What a plan is made for.

    Attributes:
        samples: rows in the training data.
        shards: S. slices: R of each shard.
        epochs: epochs of a fit without slices.
        stage_bytes: bytes of one stage's state; None where they are not known.
        has_subjects: whether rows belong to persons.

    Raises:
        ConfigurationError: where a number is not whole and positive.
    """

    samples: int
    shards: int
    slices: int
    epochs: int
    stage_bytes: int | None = None
    has_subjects: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "shards", "slices", "epochs"):
            positive(name, getattr(self, name))


@dataclass(frozen=True)
class Price:
    """What forgetting a number of samples is expected to cost.

    Attributes:
        samples: how many are forgotten.
        together: in one request.
        in_turn: one request each, one after another.
    """

    samples: int
    together: Cost
    in_turn: Cost


def prices(sizes: Sizes, requests: Iterable[int]) -> list[Price]:
    """Return what each number of forgotten samples costs; a number that leaves nothing is an error.

    Example:
        >>> (price,) = prices(Sizes(samples=1797, shards=5, slices=4, epochs=20), [1])
        >>> round(price.together.visits / price.together.retrain_visits, 2)
        0.15
    """
    plan = (sizes.samples, sizes.shards, sizes.slices, sizes.epochs)
    return [
        Price(count, expected_cost(*plan, count, "batch"), expected_cost(*plan, count, "sequential"))
        for count in (positive("requests", count) for count in requests)
    ]


def usual_requests(samples: int) -> tuple[int, ...]:
    """Return the usual numbers of forgotten samples that leave something to train on."""
    return tuple(count for count in REQUESTS if count < samples)


def training_share(sizes: Sizes) -> float:
    """Return the expected visits of the training over those of a fit without shards and slices.

    Slices are filled alike on average, so R stages of e' epochs visit e' (R + 1) / 2 times each row.
    """
    return epochs_per_slice(sizes.epochs, sizes.slices) * (sizes.slices + 1) / 2 / sizes.epochs


def stage_bytes_of(model_bytes: float) -> int:
    """Return the bytes that one stage takes at most.

    Args:
        model_bytes: bytes of the model's parameters and buffers.

    Raises:
        ConfigurationError: for anything but a positive number.
    """
    if isinstance(model_bytes, bool) or not isinstance(model_bytes, (int, float)) or not 0 < model_bytes < 1e18:
        raise ConfigurationError(f"model_bytes must be a positive number of bytes, as 1e6; got {model_bytes!r}.")
    return int(_COPIES * model_bytes)


def ledger_bytes(sizes: Sizes) -> int:
    """Return about how many bytes the ledger takes."""
    return sizes.samples * (_LEDGER_ROW + _SUBJECT_ROW * sizes.has_subjects)


def saving_ends(shards: int) -> int:
    """Return from how many forgotten samples in one request on practically everything is rebuilt.

    With three samples a shard, exp(-3), one shard in twenty, is expected to be spared.
    """
    return 3 * shards
