"""What reading some rows tells of a data set: are they the same each time, and where do random numbers come from?

Rows may draw from the global generators of Python, NumPy and the framework, which are seeded for every stage and
epoch. A generator of a data set's own, or rows that change as they are read, go on from one stage to the next, so
that a request would train on other rows than a fresh fit. At most 32 rows are read, however many there are.
Guide: docs/guarantees.md, "What is looked for".
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pybrush.errors import ContentError, TrainingError
from pybrush.randomness import Randomness

_READINGS = 32

Reader = Callable[[Any], Callable[[int], bytes]]
"""Data set -> position -> canonical bytes of the row there."""

Grown = set[tuple[int, str]]
"""Containers that hold more than they did: the identity of their owner, and the name of the attribute."""

PartsOf = Callable[[Any], Sequence[Any]]
"""Data set -> the data sets that it is cut or joined from, which it holds as attributes; empty for any other."""


def spread(length: int) -> list[int]:
    """Return at most 32 positions, evenly apart."""
    places: list[int] = np.unique(np.linspace(0, length - 1, min(_READINGS, length)).round().astype(int)).tolist()
    return places


def check_fixed(dataset: Any, reader: Reader, randomness: Randomness, remedy: str) -> None:
    """Refuse a data set whose rows differ when they are read again, whatever the reason.

    Args:
        dataset: the data set.
        reader: how its rows are read.
        randomness: the global generators.
        remedy: a sentence that says what to do.

    Raises:
        ContentError: naming what to pass instead.
    """
    first, second = (_read(dataset, reader, randomness, seed) for seed in (1, 2))
    changed = _differing(first, second)
    if changed:
        raise ContentError(
            f"{changed} of {len(first)} samples differ when they are read again (augmentation?), so rows cannot be "
            f"named or compared by content. {remedy}"
        )


def check_seeded(dataset: Any, reader: Reader, randomness: Randomness, parts_of: PartsOf) -> None:
    """Refuse a data set whose rows depend on more than their position and the global generators.

    Rows that have no canonical encoding cannot be compared, and pass.

    Args:
        dataset: the data set.
        reader: how its rows are read.
        randomness: the global generators.
        parts_of: what data sets are cut or joined from.

    Raises:
        ContentError: naming what to do instead.
    """
    sizes = _sizes(dataset, parts_of)
    try:
        first, again, other = (_read(dataset, reader, randomness, seed) for seed in (1, 1, 2))
    except ContentError:
        return
    changed = _differing(first, again)
    if changed:
        raise ContentError(
            f"{changed} of {len(first)} samples differ when they are read again under the same seeds: they draw from a "
            "generator of their own, or change as they are read, so a request would train on other rows than a fresh "
            f"fit. Draw from the global generators of {randomness.names}, which SISA seeds, also to make one of your "
            "own for each row: np.random.default_rng(np.random.randint(2**31)). Return copies, not what the data set "
            "keeps."
        )
    # A copy of what closes its files when it goes would close those of the data set.
    closes = any(hasattr(part, "__del__") for part in _with_parts(dataset, parts_of))
    grown = _grown(sizes, _sizes(dataset, parts_of))
    if first == other and grown and not closes:
        one, another = (_read(_emptied(dataset, grown, parts_of), reader, randomness, seed) for seed in (1, 2))
        _check_kept(one, another, grown)


def fingerprint_of_rows(dataset: Any, reader: Reader, randomness: Randomness) -> str | None:
    """Return a digest of some rows, by which a change is noticed; None where rows have no canonical encoding."""
    try:
        rows = _read(dataset, reader, randomness, 1)
    except ContentError:
        return None
    return hashlib.sha256(b"".join(hashlib.sha256(row).digest() for row in rows)).hexdigest()


def check_unchanged(before: str | None, after: str | None) -> None:
    """Refuse a data set that training changed.

    Raises:
        TrainingError: where rows are not what they were before a stage.
    """
    if before != after:
        raise TrainingError(
            "rows of the training data are others than before this stage: something shuffled or changed the data set "
            "in place, or told it the epoch, and the next stage would train on other rows than were recorded. Leave "
            "the order to SISA, and let what changes with the epoch happen in the training step."
        )


def _check_kept(first: list[bytes], other: list[bytes], grown: Grown) -> None:
    """Refuse a data set that keeps what it drew when a row was first read: that depends on what was read before."""
    changed = _differing(first, other)
    if changed:
        names = ", ".join(sorted(name for _, name in grown))
        raise ContentError(
            f"the data set keeps rows with random numbers in them ({names}), which it drew when they were first read, "
            "so they depend on the rows that were read before. Keep rows as they are and draw each time, or draw "
            "everything before the fit and pass ids=."
        )


def _read(dataset: Any, reader: Reader, randomness: Randomness, seed: int) -> list[bytes]:
    """Read some rows under a seed, the global generators as they were afterwards."""
    read = reader(dataset)
    with randomness.kept():
        randomness.seed_all(seed)
        return [read(position) for position in spread(len(dataset))]


def _differing(one: list[bytes], other: list[bytes]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def _with_parts(dataset: Any, parts_of: PartsOf) -> Iterator[Any]:
    """Return a data set and all that it is cut or joined from."""
    yield dataset
    for part in parts_of(dataset):
        yield from _with_parts(part, parts_of)


def _sizes(dataset: Any, parts_of: PartsOf) -> dict[tuple[int, str], int]:
    """Return the number of entries of each container that a data set holds."""
    containers = (dict, list, set)
    return {
        (id(part), name): len(held)
        for part in _with_parts(dataset, parts_of)
        for name, held in getattr(part, "__dict__", {}).items()
        if isinstance(held, containers)
    }


def _grown(before: dict[tuple[int, str], int], after: dict[tuple[int, str], int]) -> Grown:
    """Return the containers that hold more than they did."""
    return {place for place, size in before.items() if after.get(place, 0) > size}


def _emptied(dataset: Any, grown: Grown, parts_of: PartsOf) -> Any:
    """Return a shallow copy of a data set in which what has grown is empty."""
    if not hasattr(dataset, "__dict__"):  # an array: it holds no containers, and a copy would double it
        return dataset
    twin = copy.copy(dataset)
    twins = {id(part): _emptied(part, grown, parts_of) for part in parts_of(dataset)}
    for name, held in vars(dataset).items():
        if (id(dataset), name) in grown:
            fresh = copy.copy(held)
            fresh.clear()
            setattr(twin, name, fresh)
        elif id(held) in twins:
            setattr(twin, name, twins[id(held)])
        elif twins and type(held) in (list, tuple) and all(id(part) in twins for part in held):
            setattr(twin, name, type(held)(twins[id(part)] for part in held))
    return twin
