"""In which order a stage sees its rows, how they are cut into batches, and which seeds it draws from.

Order is a sort by keyed names and seeds are hashes of where training stands, so that striking one id
leaves the relative order of all others, and every seed, as they were. Neither depends on row numbers,
on the data or on what was trained before. Guide: docs/record_format.md, "Order and seeds".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pybrush.hashing import u64, word
from pybrush.names import Names

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

Words = NDArray[np.uint64]
Positions = NDArray[np.int64]


def mix(z: Words) -> Words:
    """Apply the finaliser of splitmix64 to each 64-bit integer (Steele, Lea, Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * _MULTIPLIERS[0]
    z = (z ^ (z >> np.uint64(27))) * _MULTIPLIERS[1]
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class StageRows:
    """The rows that a stage trains on.

    Attributes:
        names: pseudonym of each row, in ascending order, equal rows side by side, shape (n, 16).
        copies: which copy of its name a row is, counted from 0, shape (n,).
        positions: where the row lies in the data set at hand, shape (n,).
    """

    names: Names
    copies: NDArray[np.int64]
    positions: Positions

    def __len__(self) -> int:
        return len(self.positions)

    def shuffled(self, seed: int, shard: int, cell: int, epoch: int) -> Positions:
        """Return the positions in the order of one epoch; `epoch` counts inside the stage from 0."""
        c = np.uint64(word(b"order", u64(seed), u64(shard), u64(cell), u64(epoch)))
        halves = np.ascontiguousarray(self.names).view("<u8").astype(np.uint64)
        with np.errstate(over="ignore"):
            offsets = c + self.copies.astype(np.uint64) * _GOLDEN
            keys = mix(halves[:, 0] ^ mix(halves[:, 1] + offsets))
        return self.positions[np.argsort(keys, kind="stable")]

    def sequential(self) -> Positions:
        """Return the positions in the data set's own order."""
        return np.sort(self.positions)


@dataclass(frozen=True)
class Seeds:
    """The seeds of one stage.

    Example:
        >>> Seeds(seed=7, shard=0, slice=0)(0, "stage") == Seeds(seed=7, shard=0, slice=0)(0, "stage")
        True
    """

    seed: int
    shard: int
    slice: int

    def __call__(self, epoch: int, purpose: str, rank: int = 0) -> int:
        """Return 64 bits for a purpose; who takes 32 uses the low half. `epoch` counts inside the stage."""
        where = b"".join(map(u64, (self.seed, self.shard, self.slice, epoch, rank)))
        return word(b"seed", where, purpose.encode("utf-8"))


@dataclass(frozen=True)
class ReleaseSeeds:
    """The seeds of an approximate method at one shard.

    Attributes:
        seed: the record's.
        release: key of the release that the method makes, 64 hexadecimal digits.
        shard: counted from 0.
    """

    seed: int
    release: str
    shard: int

    def __call__(self, purpose: str) -> int:
        """Return 64 bits for a purpose, the same whenever the release is made again after a crash."""
        where = u64(self.seed) + bytes.fromhex(self.release) + u64(self.shard)
        return word(b"release", where, purpose.encode("utf-8"))


def batch_order(count: int, seed: int) -> Positions:
    """Return the order in which an epoch takes batches whose rows stay together, shape (count,).

    Args:
        count: number of batches.
        seed: 64 bits.
    """
    with np.errstate(over="ignore"):
        keys = mix(np.uint64(seed) + np.arange(count, dtype=np.uint64) * _GOLDEN)
    return np.argsort(keys, kind="stable")


def batch_sizes(rows: int, batch_size: int, drop_last: bool) -> list[int]:
    """Return the sizes of the batches of one epoch.

    A last batch of one row is folded into the batch before it, since BatchNorm raises on a single row
    and one unlucky deletion must not end training for ever. A stage with fewer rows than a batch trains
    one short batch, with `drop_last` too.
    """
    if rows <= batch_size:
        return [rows] if rows else []
    whole, rest = divmod(rows, batch_size)
    sizes = [batch_size] * whole
    if rest and not drop_last:
        if rest == 1:
            sizes[-1] += 1
        else:
            sizes.append(rest)
    return sizes


def cut(order: Positions, batch_size: int, drop_last: bool) -> list[list[int]]:
    """Cut one epoch's positions into batches (see `batch_sizes`)."""
    batches, start = [], 0
    for size in batch_sizes(len(order), batch_size, drop_last):
        batches.append(order[start : start + size].tolist())
        start += size
    return batches
