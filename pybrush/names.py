"""Sample ids and the pseudonyms that stand for them on disk.

A pseudonym is a keyed hash of an id: without the record's secret key nobody can go from a name on
disk to a person, or try ids out. Names are kept as arrays of shape (n, 16), dtype uint8; everything
that follows (placement, order, digests) is computed on such arrays. Guide: docs/record_format.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pybrush.errors import IdError
from pybrush.hashing import KEY_BYTES, NAME_BYTES, keyed

Names = NDArray[np.uint8]
"""An array of pseudonyms or digests, shape (n, 16), dtype uint8."""

SampleId = int | str | bytes


def canonical(sample_id: Any) -> bytes:
    """Encode one id; integers, str and bytes of the same text stay apart.

    Raises:
        IdError: for any other type, with the conversion to use.
    """
    kind = type(sample_id)
    if kind is int:
        return b"i:%d" % sample_id
    if isinstance(sample_id, str):
        return _canonical_text(sample_id)
    if isinstance(sample_id, bytes):
        return b"b:" + bytes(sample_id)
    if isinstance(sample_id, Integral) and not isinstance(sample_id, (bool, np.bool_)):
        return b"i:%d" % int(sample_id)
    raise IdError(
        f"an id must be an integer, str or bytes; got {kind.__name__}. "
        "Convert it first: str(value) for a UUID or a tuple, int(value) for a tensor or a whole float."
    )


def _canonical_text(text: str) -> bytes:
    try:
        return b"s:" + text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise IdError(
            "an id of type str must be valid Unicode; got one with a lone surrogate. Pass it as bytes instead."
        ) from error


class Namer:
    """Gives ids, subjects and contents their names on disk, under one secret key.

    Example:
        >>> namer = Namer(bytes(32))
        >>> namer.samples([17, "anna"]).shape
        (2, 16)
    """

    def __init__(self, key: bytes) -> None:
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            size = len(key) if isinstance(key, bytes) else type(key).__name__
            raise IdError(f"a record's key must be {KEY_BYTES} bytes; got {size}. Pass the record's key, unchanged.")
        self._key = key

    @property
    def key_id(self) -> str:
        """A keyed hash that tells keys apart and reveals nothing of them, as 32 hexadecimal digits."""
        return keyed(self._key, "pybrush-key", b"").hex()

    def samples(self, ids: Iterable[Any]) -> Names:
        """Return the pseudonyms of sample ids, shape (n, 16)."""
        return self._many("pybrush-id", (b"i:%d" % i if type(i) is int else canonical(i) for i in ids))

    def subjects(self, ids: Iterable[Any]) -> Names:
        """Return the pseudonyms of subjects (persons), shape (n, 16)."""
        return self._many("pybrush-subject", map(canonical, ids))

    def contents(self, encoded: Iterable[bytes]) -> Names:
        """Return the keyed digests of canonically encoded samples, shape (n, 16)."""
        return self._many("pybrush-content", encoded)

    def content_samples(self, contents: Names, subjects: Sequence[bytes | None] | None = None) -> Names:
        """Return the pseudonyms of samples that are named by content and, if known, by first subject.

        Args:
            contents: content digests, shape (n, 16).
            subjects: the pseudonym of each row's first subject (16 bytes), or None for a row without.
        """
        owners: Sequence[bytes | None] = subjects if subjects is not None else [None] * len(contents)
        rows = (b"c:" + row.tobytes() + (owner or b"") for row, owner in zip(contents, owners, strict=True))
        return self._many("pybrush-id", rows)

    def suppressed(self, names: Names) -> Names:
        """Return what is kept of forgotten names so that they are never trained again, shape (n, 16)."""
        return self._many("pybrush-suppress", (row.tobytes() for row in names))

    def _many(self, person: str, rows: Iterable[bytes]) -> Names:
        # A copy of the keyed state saves hashing the key's block for each row.
        start = blake2b(digest_size=NAME_BYTES, key=self._key, person=person.encode("ascii")).copy
        digests = bytearray()
        for row in rows:
            state = start()
            state.update(row)
            digests += state.digest()
        return np.frombuffer(bytes(digests), dtype=np.uint8).reshape(-1, NAME_BYTES)


def sortable(names: Names) -> NDArray[np.void]:
    """View names as one opaque 16-byte item each, shape (n,), which compares by bytes."""
    return np.ascontiguousarray(names).reshape(-1, NAME_BYTES).view(np.dtype((np.void, NAME_BYTES))).ravel()


def ascending(names: Names) -> NDArray[np.intp]:
    """Return the positions that put names into ascending byte order (stable)."""
    halves = np.ascontiguousarray(names).reshape(-1, NAME_BYTES).view(">u8").astype(np.uint64)
    order = np.argsort(halves[:, 0], kind="stable")
    high = halves[order, 0]
    if (high[1:] == high[:-1]).any():  # equal rows; two different names share a half once in 2^64 pairs
        return np.lexsort((halves[:, 1], halves[:, 0]))
    return order


def rows_of(names: Names) -> list[bytes]:
    """Return each name as 16 bytes."""
    rows: list[bytes] = sortable(names).tolist()
    return rows


def among(names: Names, few: Names) -> NDArray[np.bool_]:
    """Return which names are among a few others, shape (n,), without sorting the many."""
    if not len(few) or not len(names):
        return np.zeros(len(names), dtype=bool)
    wanted, many = np.sort(sortable(few)), sortable(names)
    high = np.unique(np.ascontiguousarray(few).view("<u8")[:, 0])
    halves = np.ascontiguousarray(names).view("<u8")[:, 0]
    found: NDArray[np.bool_] = high[np.minimum(np.searchsorted(high, halves), len(high) - 1)] == halves
    maybe = np.flatnonzero(found)
    at = np.minimum(np.searchsorted(wanted, many[maybe]), len(wanted) - 1)
    found[maybe] = wanted[at] == many[maybe]
    return found


def as_names(rows: Iterable[bytes]) -> Names:
    """Stack 16-byte strings into an array of shape (n, 16)."""
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, NAME_BYTES)
