"""What a caller of `trainer.unlearn` named, as the names by which the record knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pybrush.days import day_of
from pybrush.errors import ForgetError
from pybrush.names import Namer, Names
from pybrush.record.artefacts import Purge
from pybrush.record.resolve import Wish
from pybrush.request import Roster
from pybrush_lightning.sample_ids import Naming, forget_dataset, rows_inside

_LONG_ID = 16
"""Bytes from which an id is searched for in the record's files; shorter ones match by chance."""


@dataclass(frozen=True)
class Asked:
    """What the caller named."""

    forget: Any
    ids: Sequence[Any] | None
    rows: Sequence[int] | None
    subjects: Sequence[Any] | None
    missing: bool
    duplicates: Literal["report", "forget"]
    before: Any = None
    queued: bool = False
    purge: Purge = "delete"

    def __post_init__(self) -> None:
        alone = [self.ids is not None, self.rows is not None, self.missing, self.before is not None, self.queued]
        ways = [*alone, self.forget is not None]
        if sum(ways) > 1 or (any(alone) and self.subjects is not None):
            raise ForgetError(
                "say in one way what to forget: a forget set, ids=, rows=, subjects=, before=, missing=True or "
                "queued=True."
            )
        for name in ("ids", "subjects"):
            given = getattr(self, name)
            if isinstance(given, (str, bytes)):
                raise ForgetError(f"{name}= takes a list; got {given!r}. For a single one pass [{given!r}].")

    def wish(self, naming: Naming, namer: Namer, dataset: Any, roster: Roster) -> Wish:
        """Turn what was named into pseudonyms or content digests.

        Args:
            naming: how the rows are named.
            namer: names under the record's key.
            dataset: the training data.
            roster: the names of its rows.
        """
        return replace(self._named(naming, namer, dataset, roster), purge=self.purge)

    def _named(self, naming: Naming, namer: Namer, dataset: Any, roster: Roster) -> Wish:
        if self.queued or self.before is not None:
            before = None if self.before is None else day_of(self.before)
            return Wish(queued=self.queued, before=before, duplicates=self.duplicates, raw_ids=None)
        if self.ids is not None:
            return self._ids_wish(self.ids, naming, namer)
        if self.rows is not None:
            return self._rows_wish(_positions(self.rows, len(roster)), naming, dataset, roster)
        subjects = None if self.subjects is None else namer.subjects(self.subjects)
        if self.forget is None:
            raw = _long_ids(self.subjects or ())
            return Wish(subjects=subjects, missing=self.missing, duplicates=self.duplicates, raw_ids=raw)
        return self._forget_wish(subjects, naming, namer, dataset, roster)

    def _ids_wish(self, ids: Sequence[Any], naming: Naming, namer: Namer) -> Wish:
        if naming.kind != "ids":
            raise ForgetError(f"this record names samples by {naming.kind}; pass rows=, forget=, subjects= or missing.")
        return Wish(names=namer.samples(ids), duplicates=self.duplicates, raw_ids=_long_ids(ids))

    def _forget_wish(self, subjects: Names | None, naming: Naming, namer: Namer, dataset: Any, roster: Roster) -> Wish:
        """Match a forget set: by walking to the training data, by its own ids, or by the content of its rows."""
        forgotten = forget_dataset(self.forget)
        inside = rows_inside(forgotten, dataset)
        if inside is not None and subjects is None:
            return self._rows_wish(sorted(set(inside)), naming, dataset, roster)
        if naming.kind == "ids" and (isinstance(naming.ids, str) or callable(naming.ids)):
            return self._ids_wish(naming.ids_of(forgotten), naming, namer)
        contents = namer.contents(map(naming.reader(forgotten), range(len(forgotten))))
        return Wish(contents=contents, subjects=subjects, duplicates=self.duplicates)

    def _rows_wish(self, rows: list[int], naming: Naming, dataset: Any, roster: Roster) -> Wish:
        raw: tuple[bytes, ...] = ()
        if naming.kind == "ids":
            known = naming.ids_of(dataset)
            raw = _long_ids([known[row] for row in rows])
        return Wish(names=roster.names[rows], duplicates=self.duplicates, raw_ids=raw)


def _positions(rows: Sequence[int], length: int) -> list[int]:
    """Return positions once each, in order.

    Raises:
        ForgetError: for positions outside of the data set, masks and fractions.
    """
    given: NDArray[Any] = np.asarray(rows)
    if given.size and given.dtype.kind not in "iu":
        raise ForgetError(f"rows= takes whole numbers, positions in the training data; got {given.dtype}.")
    found = [int(row) for row in given.ravel().tolist()]
    outside = [row for row in found if not 0 <= row < length]
    if outside:
        raise ForgetError(f"rows= holds {len(outside)} positions outside of 0..{length - 1}, such as {outside[0]}.")
    return sorted(set(found))


def _long_ids(ids: Sequence[Any]) -> tuple[bytes, ...]:
    raw = (i.encode() if isinstance(i, str) else i for i in ids if isinstance(i, (str, bytes)))
    return tuple(sorted({i for i in raw if len(i) >= _LONG_ID}))
