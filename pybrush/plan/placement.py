"""Which shard and slice a sample belongs to: a keyed function of its name, never of row numbers.

Striking one id leaves every other id where it was, and two parties with the same key agree without
talking. Draws are independent, so sizes vary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pybrush.errors import ConfigurationError
from pybrush.names import Namer, Names


def cells_of(names: Names, shards: int, slices: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return shard and slice of each placement name, two arrays of shape (n,).

    Args:
        names: placement names, shape (n, 16): a sample's pseudonym, or that of its first subject.
        shards: number of shards S; shards count from 0.
        slices: number of slices R; slices count from 0.
    """
    halves = np.ascontiguousarray(names).reshape(-1, 16).view("<u8")
    return (halves[:, 0] % np.uint64(shards)).astype(np.int64), (halves[:, 1] % np.uint64(slices)).astype(np.int64)


class ShardPlan:
    """The plan of a record: S shards of R slices under one secret key.

    Args:
        shards: S >= 1.
        slices: R >= 1.
        key: 32 secret bytes.

    Raises:
        ConfigurationError: where shards or slices are not whole numbers of at least 1.
        IdError: where the key is not 32 bytes.

    Example:
        >>> plan = ShardPlan(4, 3, key=bytes(32))
        >>> plan.place(17)
        (0, 1)
    """

    def __init__(self, shards: int, slices: int, key: bytes) -> None:
        self.shards = positive("shards", shards)
        self.slices = positive("slices", slices)
        self._namer = Namer(key)

    def place(self, sample_id: Any) -> tuple[int, int]:
        """Return (shard, slice) of one sample id, both counted from 0."""
        shard, cell = cells_of(self._namer.samples([sample_id]), self.shards, self.slices)
        return int(shard[0]), int(cell[0])

    def stages(self, ids: Iterable[Any]) -> list[tuple[int, int, list[Any]]]:
        """Return (shard, slice, ids of that slice) for every cell in order, empty cells included."""
        known = list(ids)
        shard, cell = cells_of(self._namer.samples(known), self.shards, self.slices)
        members: dict[tuple[int, int], list[Any]] = {(s, r): [] for s in range(self.shards) for r in range(self.slices)}
        for sample_id, s, r in zip(known, shard.tolist(), cell.tolist(), strict=True):
            members[s, r].append(sample_id)
        return [(s, r, rows) for (s, r), rows in members.items()]


def positive(name: str, value: Any) -> int:
    """Return `value` if it is a whole number of at least 1, else raise ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number of at least 1; got {value!r}.")
    return int(value)


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """Return `value` if it is one of some values, else raise ConfigurationError."""
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
    return value
