"""The build graph of a record: which stages there are, and the key under which each is stored.

A stage's key is a hash over its parent's key and the digests of the slices it adds. Striking an id
changes the digest of its slice, hence the keys of the stages that saw it, and no other key: what a
request must rebuild is what has no stored state. Guide: docs/record_format.md, "Stages".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pybrush.hashing import chained, u64
from pybrush.names import Names

FORMAT = 1
FEWEST_ROWS = 2
"""A stage that has seen fewer rows is not trained (BatchNorm cannot train on one row)."""


@dataclass(frozen=True)
class Stage:
    """One trained stage.

    Attributes:
        shard: counted from 0.
        slice: counted from 0; the stage trains on slices 0 to `slice` of its shard.
        key: 64 hexadecimal digits.
        parent: key of the stage whose state it starts from, or the root of its shard.
        starts_shard: whether `parent` is the root, that is, whether it starts from the initial state.
        trained_before: how many stages of the shard were trained before it.
        rows: number of rows it trains on, copies counted.
        added: the slices that it adds, since slices too small to train join the next stage.
    """

    shard: int
    slice: int
    key: str
    parent: str
    starts_shard: bool
    trained_before: int
    rows: int
    added: tuple[int, ...]


def slice_digest(names: Names, contents: Names, copies: NDArray[np.int64]) -> bytes:
    """Return the digest of a slice's rows, 32 bytes.

    Args:
        names: pseudonyms in ascending byte order (data set order under a sequential loader), shape (n, 16).
        contents: content digests, zeros where contents are off, shape (n, 16).
        copies: how many equal rows each name stands for, shape (n,).
    """
    rows = np.empty((len(names), 40), dtype=np.uint8)
    rows[:, :16] = names
    rows[:, 16:32] = contents
    rows[:, 32:] = copies.astype("<u8").view(np.uint8).reshape(-1, 8)
    return chained("pybrush-slice", u64(len(rows)), rows.tobytes())


def root_key(initial_digest: bytes, semantic_digest: bytes, shard: int) -> str:
    """Return the key from which a shard's stages descend."""
    return chained("pybrush-stage", u64(FORMAT), initial_digest, semantic_digest, u64(shard)).hex()


def stage_key(parent: str, cell: int, digests: Iterable[bytes]) -> str:
    """Return the key of the stage that adds the slices with `digests` to `parent`."""
    return chained("pybrush-stage", bytes.fromhex(parent), u64(cell), *digests).hex()


def stage_graph(
    rows: NDArray[np.int64], digests: Mapping[tuple[int, int], bytes], roots: Iterable[str]
) -> tuple[Stage, ...]:
    """Return the trained stages in the order in which they can be built.

    Args:
        rows: rows in each cell, copies counted, shape (shards, slices).
        digests: slice digest of each cell that has rows.
        roots: root key of each shard.
    """
    stages: list[Stage] = []
    for shard, root in enumerate(roots):
        stages += _chain(shard, root, rows[shard].tolist(), digests)
    return tuple(stages)


def constituents(stages: Iterable[Stage]) -> dict[int, Stage]:
    """Return the last trained stage of each shard; a shard with too few rows has none."""
    return {stage.shard: stage for stage in stages}


def _chain(shard: int, root: str, rows: list[int], digests: Mapping[tuple[int, int], bytes]) -> list[Stage]:
    """Return the trained stages of one shard."""
    chain: list[Stage] = []
    parent, waiting, seen = root, [], 0
    for cell, count in enumerate(rows):
        if count == 0:
            continue
        waiting.append(cell)
        seen += count
        if seen < FEWEST_ROWS:
            continue
        key = stage_key(parent, cell, [digests[shard, r] for r in waiting])
        chain.append(Stage(shard, cell, key, parent, not chain, len(chain), seen, tuple(waiting)))
        parent, waiting = key, []
    return chain
