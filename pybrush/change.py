"""What a request makes of a record: the rows that it strikes and the rows that it records.

A row that is amended is struck with its old content and recorded with its new one, under the same name. The
pending file holds a change in full, so that whoever finishes a request needs of the data set only the rows to
train on. Guide: docs/record_format.md, "Requests".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pybrush.errors import CorruptRecordError
from pybrush.hashing import NAME_BYTES, chained, u64
from pybrush.names import Names, among, as_names
from pybrush.request import Strikes

_MAGIC = b"PYBRUSH-PENDING1"
_COUNTS = 6
_ROW_BYTES = 88
_NUMBERS = ("shards", "slices", "copies", "positions", "days")


def _no_names() -> Names:
    return np.zeros((0, NAME_BYTES), dtype=np.uint8)


def _no_numbers() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Additions:
    """Rows to record; a name that is recorded already gets more copies.

    Attributes:
        names: pseudonyms in ascending order, each once, shape (n, 16).
        placements: the names that decide placement: the first subject's, else the row's own, shape (n, 16).
        shards: shape (n,). slices: shape (n,).
        contents: content digests, zeros where contents are off, shape (n, 16).
        copies: how many equal rows join under the name, shape (n,).
        positions: place in the data set's order under a sequential loader, else -1, shape (n,).
        days: the day of each, since 1970-01-01, shape (n,).
        subjects: pseudonyms of subjects of these rows, one entry for each subject of each name, shape (p, 16).
        owned: the row's name in each of these pairs, shape (p, 16); pairs ascend.
        places: where rows join under a sequential loader, the new place of every row that the record then holds, in
            ascending order of names, shape (rows,); else shape (0,).
    """

    names: Names = field(default_factory=_no_names)
    placements: Names = field(default_factory=_no_names)
    shards: NDArray[np.int64] = field(default_factory=_no_numbers)
    slices: NDArray[np.int64] = field(default_factory=_no_numbers)
    contents: Names = field(default_factory=_no_names)
    copies: NDArray[np.int64] = field(default_factory=_no_numbers)
    positions: NDArray[np.int64] = field(default_factory=_no_numbers)
    days: NDArray[np.int64] = field(default_factory=_no_numbers)
    subjects: Names = field(default_factory=_no_names)
    owned: Names = field(default_factory=_no_names)
    places: NDArray[np.int64] = field(default_factory=_no_numbers)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> int:
        """Number of rows to record, copies counted."""
        return int(self.copies.sum())

    def parts(self) -> tuple[bytes, bytes, bytes]:
        """Return the rows (88 bytes each), the pairs (32 bytes each) and the places (8 bytes each)."""
        numbers = [_octets(getattr(self, name)) for name in _NUMBERS]
        rows = np.hstack([self.names, self.placements, self.contents, *numbers])
        return rows.tobytes(), np.hstack([self.subjects, self.owned]).tobytes(), _octets(self.places).tobytes()

    @classmethod
    def from_parts(cls, rows: bytes, pairs: bytes, places: bytes) -> Additions:
        """Read what `parts` wrote."""
        table = np.frombuffer(rows, np.uint8).reshape(-1, _ROW_BYTES)
        names, placements, contents = (table[:, at : at + NAME_BYTES].copy() for at in (0, 16, 32))
        numbers = {
            name: _numbers(table[:, at : at + 8]) for name, at in zip(_NUMBERS, range(48, _ROW_BYTES, 8), strict=True)
        }
        both = np.frombuffer(pairs, np.uint8).reshape(-1, 2 * NAME_BYTES)
        subjects, owned = both[:, :NAME_BYTES].copy(), both[:, NAME_BYTES:].copy()
        places_read = _numbers(np.frombuffer(places, np.uint8).reshape(-1, 8))
        return cls(names, placements, contents=contents, subjects=subjects, owned=owned, places=places_read, **numbers)


@dataclass(frozen=True)
class Change:
    """A request: what it strikes and what it records.

    Attributes:
        strikes: rows that leave the record.
        additions: rows that it gets, with the new content of those that are amended.
    """

    strikes: Strikes
    additions: Additions = field(default_factory=Additions)

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes."""
        return not len(self.strikes) and not len(self.additions)

    @property
    def amended(self) -> int:
        """Number of rows that get another content or other subjects under their name."""
        return int(among(self.strikes.names, self.additions.names).sum())

    @property
    def forgotten(self) -> int:
        """Number of rows struck for good, copies counted."""
        return self.strikes.rows - self.amended

    @property
    def admitted(self) -> int:
        """Number of rows that join, copies counted."""
        return self.additions.rows - self.amended

    @property
    def rows(self) -> int:
        """Number of rows that are forgotten, amended or admitted, copies counted."""
        return self.forgotten + self.amended + self.admitted

    def commitment(self, salt: bytes) -> bytes:
        """Return the salted hash that stands for the request in events, 32 bytes."""
        return chained("pybrush-commit", salt, *self.committed())

    def committed(self) -> tuple[bytes, ...]:
        """Return what the commitment is of: the rows that are struck, and those that are recorded in three parts."""
        return (self.strikes.body(), *(self.additions.parts() if len(self.additions) else ()))

    @classmethod
    def of_committed(cls, rows: bytes, *added: bytes) -> Change:
        """Read what `committed` returned; the subjects that asked are not in it."""
        return cls(
            Strikes.from_body(rows, _no_names(), _no_names()), Additions.from_parts(*added) if added else Additions()
        )

    def same_request(self, other: Change) -> bool:
        """Whether both strike the same multiset of rows, for the same subjects, and record the same rows."""
        return self._told() == other._told() and np.array_equal(self.strikes.subjects, other.strikes.subjects)

    def covers(self, other: Change) -> bool:
        """Whether what another change strikes is struck here too, and both record the same rows."""
        ours = {(name.tobytes(), int(n)) for name, n in zip(self.strikes.names, self.strikes.copies, strict=True)}
        theirs = {(name.tobytes(), int(n)) for name, n in zip(other.strikes.names, other.strikes.copies, strict=True)}
        return theirs <= ours and self._told()[1:] == other._told()[1:]

    def _told(self) -> tuple[bytes, ...]:
        # Without the days: a request that is made again after midnight is the same.
        return self.strikes.body(), *replace(self.additions, days=np.zeros_like(self.additions.days)).parts()

    def to_bytes(self) -> bytes:
        """Return the pending file of a request, closed by its SHA-256."""
        struck, added = self.strikes, self.additions
        parts = (struck.body(), struck.subjects.tobytes(), struck.orphans.tobytes(), *added.parts())
        counts = (struck, struck.subjects, struck.orphans, added, added.subjects, added.places)
        data = _MAGIC + b"".join(u64(len(each)) for each in counts) + b"".join(parts)
        return data + hashlib.sha256(data).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Change:
        """Read a pending file.

        Raises:
            CorruptRecordError: where it is truncated or changed.
        """
        content, digest = data[:-32], data[-32:]
        start = len(_MAGIC) + 8 * _COUNTS
        counts = [int.from_bytes(content[at : at + 8], "little") for at in range(len(_MAGIC), start, 8)]
        sizes = [count * size for count, size in zip(counts, (40, 16, 16, _ROW_BYTES, 32, 8), strict=True)]
        sound = content.startswith(_MAGIC) and hashlib.sha256(content).digest() == digest
        if not sound or len(content) != start + sum(sizes):
            raise CorruptRecordError("a pending request's file is truncated or changed; restore it from a backup.")
        ends = np.cumsum([start, *sizes]).tolist()
        rows, asked, orphans, *added = (content[a:b] for a, b in pairwise(ends))
        names = {"subjects": as_names([asked]).copy(), "orphans": as_names([orphans]).copy()}
        return cls(Strikes.from_body(rows, **names), Additions.from_parts(*added))


def _octets(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return numbers as eight little-endian bytes each, shape (n, 8); -1 is 2^64 - 1."""
    return numbers.astype("<i8").view(np.uint8).reshape(-1, 8)


def _numbers(octets: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the numbers that `_octets` wrote, shape (n,)."""
    return np.ascontiguousarray(octets).view("<i8").ravel().astype(np.int64)
