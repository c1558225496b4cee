"""From rows, ids and persons to pseudonyms: what a data set holds, and what a request strikes.

A `Roster` names the rows of a data set as it is now. `Strikes` is a request: which names lose how many
copies. Resolution comes before anything is touched, and every error here counts what it could not match.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pybrush.errors import CorruptRecordError, IdError
from pybrush.hashing import NAME_BYTES, chained, u64
from pybrush.names import Namer, Names, as_names, ascending, sortable

_MAGIC = b"PYBRUSH-PENDING1"
NO_CONTENT = bytes(NAME_BYTES)
"""The content digest of every sample where contents are off."""

Encoder = Callable[[int], bytes]
"""Position -> canonical bytes of the raw sample there (`pybrush.content.encode`)."""


class Roster:
    """The rows of a data set as it is now, under their names, in data set order.

    Args:
        namer: names under the record's key.
        length: number of rows.
        ids: the id of each row, or None to name rows by content.
        subjects: the subjects (persons) of each row, or None.
        encode: canonical bytes of the raw sample at a position; None where contents are off.
        days: the day of each row, since 1970-01-01, shape (length,); None: the day on which it is recorded.

    Raises:
        IdError: for repeated ids, with their count, and for ids or subjects of the wrong kind or number.
    """

    def __init__(
        self,
        namer: Namer,
        length: int,
        ids: Sequence[Any] | None,
        subjects: Sequence[Sequence[Any]] | None,
        encode: Encoder | None,
        days: NDArray[np.int64] | None = None,
    ) -> None:
        self._namer, self._encode = namer, encode
        self._digests: dict[int, bytes] = {}
        _check_length("ids", ids, length)
        _check_length("subjects", subjects, length)
        _check_length("times", days, length)
        self._days = days
        self.by_content = ids is None
        self.subjects = _subject_names(namer, subjects, length)
        self.owners: list[bytes | None] = [row[0] if row else None for row in self.subjects]
        self.names = self._by_content(length) if ids is None else namer.samples(ids)
        if ids is not None:
            _check_once(self.counted.counts)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def counted(self) -> Counted:
        """The names of all rows, each once, with the rows that have it; sorted a single time."""
        return counted(self.names)

    def contents_at(self, positions: Sequence[int] | NDArray[np.int64]) -> Names:
        """Return the content digests of the rows at `positions`, shape (len(positions), 16)."""
        wanted = [int(p) for p in positions]
        if self._encode is None:
            return np.zeros((len(wanted), NAME_BYTES), dtype=np.uint8)
        unread = [p for p in dict.fromkeys(wanted) if p not in self._digests]
        read = self._namer.contents(map(self._encode, unread))
        self._digests.update((p, row.tobytes()) for p, row in zip(unread, read, strict=True))
        return as_names(self._digests[p] for p in wanted)

    def days(self, otherwise: int) -> NDArray[np.int64]:
        """Return the earliest day of the rows of each name of `counted`, `otherwise` where none were given."""
        gathered = self.counted
        if self._days is None:
            return np.full(len(gathered.names), otherwise, dtype=np.int64)
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        return np.minimum.reduceat(self._days[gathered.order], gathered.starts)

    def _by_content(self, length: int) -> Names:
        contents = self.contents_at(range(length))
        return self._namer.content_samples(contents, self.owners)


@dataclass(frozen=True)
class Strikes:
    """A request as a multiset of names.

    Attributes:
        names: pseudonyms in ascending order, each once, shape (n, 16).
        contents: their content digests, shape (n, 16).
        copies: how many copies each loses, shape (n,).
        subjects: pseudonyms of the subjects that asked, ascending, shape (m, 16).
        orphans: pseudonyms of other subjects that lose their last row: nothing may hold them afterwards.
    """

    names: Names
    contents: Names
    copies: NDArray[np.int64]
    subjects: Names
    orphans: Names = field(default_factory=lambda: np.zeros((0, NAME_BYTES), np.uint8))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> int:
        """Number of rows struck, copies counted."""
        return int(self.copies.sum())

    def body(self) -> bytes:
        """Return the rows as bytes: name, content digest, copies as u64; 40 bytes each."""
        counts = self.copies.astype("<u8").view(np.uint8).reshape(-1, 8)
        return np.hstack([self.names, self.contents, counts]).tobytes()

    def commitment(self, salt: bytes) -> bytes:
        """Return the salted hash that stands for the request in events, 32 bytes."""
        return chained("pybrush-commit", salt, self.body())

    def to_bytes(self) -> bytes:
        """Return the pending file of a request, closed by its SHA-256."""
        sizes = u64(len(self.names)) + u64(len(self.subjects))
        data = _MAGIC + sizes + self.body() + self.subjects.tobytes() + self.orphans.tobytes()
        return data + hashlib.sha256(data).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Strikes:
        """Read a pending file.

        Raises:
            CorruptRecordError: where it is truncated or changed.
        """
        content, digest = data[:-32], data[-32:]
        if not content.startswith(_MAGIC) or hashlib.sha256(content).digest() != digest:
            raise CorruptRecordError("a pending request's file is truncated or changed; restore it from a backup.")
        count, asked = (int.from_bytes(content[at : at + 8], "little") for at in (16, 24))
        rows = np.frombuffer(content, np.uint8, count * 40, 32).reshape(count, 40)
        others = as_names([content[32 + count * 40 :]]).copy()
        copies = np.ascontiguousarray(rows[:, 32:]).view("<u8").ravel().astype(np.int64)
        return cls(rows[:, :16].copy(), rows[:, 16:32].copy(), copies, others[:asked], others[asked:])

    def same_request(self, other: Strikes) -> bool:
        """Whether both name the same multiset of rows, for the same subjects."""
        return self.body() == other.body() and np.array_equal(self.subjects, other.subjects)


def strikes(names: Names, contents: Names, copies: NDArray[np.int64], subjects: Names | None = None) -> Strikes:
    """Make a request from names that occur once each, in any order."""
    order = ascending(names)
    owners = subjects if subjects is not None else np.zeros((0, NAME_BYTES), np.uint8)
    return Strikes(names[order], contents[order], copies[order].astype(np.int64), np.unique(owners, axis=0))


@dataclass(frozen=True)
class Counted:
    """Names of rows, gathered.

    Attributes:
        names: each name once, in ascending order, shape (k, 16).
        counts: how many rows have it, shape (k,).
        order: positions of all rows, those of one name side by side, in the order of the names, shape (n,).
    """

    names: Names
    counts: NDArray[np.int64]
    order: NDArray[np.int64]

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where the rows of each name begin in `order`, shape (k,)."""
        return np.cumsum(self.counts) - self.counts


def counted(names: Names) -> Counted:
    """Gather rows by name."""
    order = ascending(names).astype(np.int64)
    view = sortable(names)[order]
    first = np.ones(len(view), dtype=bool)
    first[1:] = view[1:] != view[:-1]
    starts = np.flatnonzero(first)
    counts = np.diff(np.append(starts, len(view)))
    return Counted(names[order[starts]], counts.astype(np.int64), order)


def shown(names: Names) -> str:
    """Return at most five pseudonyms for an error message."""
    listed = ", ".join(row.tobytes().hex() for row in names[:5])
    return listed + (", ..." if len(names) > 5 else "")


def _check_once(counts: NDArray[np.int64]) -> None:
    """Refuse ids that name more than one row, given how many rows each has."""
    repeated = counts[counts > 1]
    if len(repeated):
        raise IdError(
            f"ids must name each row once; {len(repeated)} ids are repeated, on {int(repeated.sum())} rows. Give each "
            "row an id of its own."
        )


def _check_length(what: str, values: Sequence[Any] | NDArray[Any] | None, length: int) -> None:
    if values is not None and len(values) != length:
        raise IdError(f"{what} must have one entry for each of the {length} rows; got {len(values)}.")


def _subject_names(namer: Namer, subjects: Sequence[Sequence[Any]] | None, length: int) -> list[tuple[bytes, ...]]:
    """Return the pseudonyms of the subjects of each row; each subject is hashed once."""
    if subjects is None:
        return [()] * length
    known: dict[tuple[type, Any], bytes] = {}
    for row in subjects:
        for subject in row:
            if (type(subject), subject) not in known:
                known[type(subject), subject] = namer.subjects([subject]).tobytes()
    return [tuple(known[type(subject), subject] for subject in row) for row in subjects]
