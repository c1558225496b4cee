"""How the rows of a data set get their names: by content, by position, or by ids that the user gives.

An adapter shows a data set of its framework as `Rows`; everything else is the same in every framework. Guide:
docs/record_format.md, "Names and secrets".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from pybrush.content import encode
from pybrush.days import days_of
from pybrush.errors import ConfigurationError, IdError
from pybrush.names import Namer
from pybrush.request import Roster

IdSource = str | Sequence[Any] | Callable[[Any], Sequence[Any]]
"""A column's name, a sequence with one entry a row, or a callable of the data set."""


class Rows(Protocol):
    """The rows of a data set, as an adapter shows them to the core."""

    @property
    def source(self) -> Any:
        """The user's own object: what a callable of the data set is handed."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, position: int, /) -> Any:
        """Return the raw sample at a position."""

    def column(self, name: str) -> Any:
        """Return what a data set keeps under a name, one entry a row; None where it has no such column."""


@dataclass(frozen=True)
class Naming:
    """How the rows of a data set are named (the arguments of SISA).

    Attributes:
        ids: "content", "position", a column's name, a sequence, or a callable of the data set.
        subjects: a column's name, a sequence, a callable of the data set, or None.
        content: "digest" or "off".
        content_of: takes a raw sample and returns what of it is compared, for samples of other types.
        times: the date of each row: a column's name, a sequence, a callable of the data set, or None: when recorded.
    """

    ids: IdSource = "content"
    subjects: IdSource | None = None
    content: str = "digest"
    content_of: Callable[[Any], Any] | None = None
    times: IdSource | None = None

    def __post_init__(self) -> None:
        if self.content not in ("digest", "off"):
            raise ConfigurationError(f"content must be 'digest' or 'off'; got {self.content!r}.")
        if self.content == "off" and self.by_content:
            raise ConfigurationError(
                "content='off' leaves nothing to name rows by; pass ids=, or keep content='digest'."
            )

    @property
    def by_content(self) -> bool:
        """Whether rows are named by their content."""
        return isinstance(self.ids, str) and self.ids == "content"

    @property
    def kind(self) -> Literal["content", "ids", "position"]:
        """How samples get their ids, as the record writes it."""
        if self.by_content:
            return "content"
        return "position" if isinstance(self.ids, str) and self.ids == "position" else "ids"

    def roster(self, rows: Rows, namer: Namer) -> Roster:
        """Name rows under a record's key."""
        ids = None if self.by_content else self.ids_of(rows)
        subjects = None if self.subjects is None else [_people(entry) for entry in _entries(self.subjects, rows)]
        days = None if self.times is None else np.asarray(_entries(self.times, rows, days_of), dtype=np.int64)
        encode = None if self.content == "off" else self.reader(rows)
        return Roster(namer, len(rows), ids, subjects, encode, days)

    def reader(self, samples: Any) -> Callable[[int], bytes]:
        """Return position -> canonical bytes of the raw sample that `samples[position]` is."""
        pick = self.content_of
        if pick is None:
            return lambda position: encode(samples[position])
        return lambda position: encode(pick(samples[position]))

    def ids_of(self, rows: Rows) -> list[Any]:
        """Return the id of each row; for data sets named by given ids or by position."""
        if isinstance(self.ids, str) and self.ids == "position":
            return list(range(len(rows)))
        return _entries(self.ids, rows)


def listed(values: Any) -> list[Any]:
    """Return entries as Python's own values, from arrays and tensors too."""
    return list(values.tolist() if hasattr(values, "tolist") else values)


def _entries(source: IdSource, rows: Rows, read: Callable[[Any], Iterable[Any]] = listed) -> list[Any]:
    """Return one entry for each row from a column's name, a sequence, or a callable of the data set.

    Args:
        source: where the entries come from.
        rows: the rows.
        read: turns what was found there into entries.
    """
    if isinstance(source, str):
        found = rows.column(source)
        if found is None:
            raise IdError(
                f"the data set {type(rows.source).__name__} has no column or attribute {source!r}; pass the name of "
                "one, a sequence with one entry a row, or a callable that takes the data set."
            )
    else:
        found = source(rows.source) if callable(source) else source
    entries = list(read(found))
    if len(entries) != len(rows):
        raise IdError(f"ids, subjects and times need one entry for each of the {len(rows)} rows; got {len(entries)}.")
    return entries


def _people(entry: Any) -> tuple[Any, ...]:
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, (list, tuple)) else (entry,)
