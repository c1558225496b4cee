"""From rows, ids and persons to pseudonyms: what a data set holds, and what a request strikes.

A `Roster` names the rows of a data set as it is now. `Strikes` says which names lose how many copies.
Resolution comes before anything is touched, and every error here counts what it could not match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pybrush.errors import IdError
from pybrush.hashing import NAME_BYTES
from pybrush.names import Namer, Names, as_names, ascending, sortable

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
        self._days, self.has_days = days, days is not None
        self.by_content = ids is None
        self.subjects = _subject_names(namer, subjects, length)
        self.has_subjects = subjects is not None
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

    def days_of(self, names: Names, otherwise: int) -> NDArray[np.int64]:
        """Return the earliest day of the rows of each of some names that it has; `otherwise` where none were given."""
        if self._days is None or not len(names):
            return np.full(len(names), otherwise, dtype=np.int64)
        gathered = self.counted
        earliest = np.minimum.reduceat(self._days[gathered.order], gathered.starts)
        return earliest[np.searchsorted(sortable(gathered.names), sortable(names))]

    def _by_content(self, length: int) -> Names:
        contents = self.contents_at(range(length))
        return self._namer.content_samples(contents, self.owners)


@dataclass(frozen=True)
class Strikes:
    """The rows that a request strikes, as a multiset of names.

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

    @classmethod
    def from_body(cls, body: bytes, subjects: Names, orphans: Names) -> Strikes:
        """Read what `body` wrote."""
        rows = np.frombuffer(body, np.uint8).reshape(-1, 40)
        copies = np.ascontiguousarray(rows[:, 32:]).view("<u8").ravel().astype(np.int64)
        return cls(rows[:, :16].copy(), rows[:, 16:32].copy(), copies, subjects, orphans)


def strikes(names: Names, contents: Names, copies: NDArray[np.int64], subjects: Names | None = None) -> Strikes:
    """Make strikes from names that occur once each, in any order."""
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

    def first(self, names: Names) -> NDArray[np.int64]:
        """Return the position of the first row of each of some names, -1 where there is none, shape (len(names),)."""
        if not len(self.names) or not len(names):
            return np.full(len(names), -1, dtype=np.int64)
        own, asked = sortable(self.names), sortable(names)
        at = np.minimum(np.searchsorted(own, asked), len(own) - 1)
        return np.where(own[at] == asked, self.order[self.starts[at]], -1).astype(np.int64)


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
