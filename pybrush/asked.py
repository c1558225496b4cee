"""What a caller of `unlearn` named, as the names by which the record knows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pybrush.days import day_of
from pybrush.errors import ConfigurationError, ForgetError, UnsupportedError
from pybrush.names import Namer, Names
from pybrush.naming import Naming, Rows
from pybrush.record.artefacts import Purge, check_purge
from pybrush.record.resolve import Wish
from pybrush.request import Roster

_LONG_ID = 16
"""Bytes from which an id is searched for in the record's files; shorter ones match by chance."""


@dataclass(frozen=True)
class ForgetSet:
    """A forget set, as an adapter found it.

    Attributes:
        rows: its own rows.
        inside: their positions in the training data, where it is made of the same objects; else None.
    """

    rows: Rows
    inside: list[int] | None


@dataclass(frozen=True)
class Asked:
    """What the caller named (the arguments of `unlearn`)."""

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
        check_purge(self.purge)
        if self.duplicates not in ("report", "forget"):
            raise ConfigurationError(f"duplicates must be 'report' or 'forget'; got {self.duplicates!r}.")
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

    def wish(self, naming: Naming, namer: Namer, rows: Rows, roster: Roster, find: Callable[[Any], ForgetSet]) -> Wish:
        """Turn what was named into pseudonyms or content digests.

        Args:
            naming: how the rows are named.
            namer: names under the record's key.
            rows: the training data.
            roster: the names of its rows.
            find: takes a forget set apart.
        """
        return replace(self._named(naming, namer, rows, roster, find), purge=self.purge)

    def _named(
        self, naming: Naming, namer: Namer, rows: Rows, roster: Roster, find: Callable[[Any], ForgetSet]
    ) -> Wish:
        if self.queued or self.before is not None:
            before = None if self.before is None else day_of(self.before)
            return Wish(queued=self.queued, before=before, duplicates=self.duplicates, raw_ids=None)
        if self.ids is not None:
            return self._ids_wish(self.ids, naming, namer)
        if self.rows is not None:
            return self._rows_wish(_positions(self.rows, len(roster)), naming, rows, roster)
        subjects = None if self.subjects is None else namer.subjects(self.subjects)
        if self.forget is None:
            raw = _long_ids(self.subjects or ())
            return Wish(subjects=subjects, missing=self.missing, duplicates=self.duplicates, raw_ids=raw)
        found = find(self.forget)
        if found.inside is not None and subjects is None:
            return self._rows_wish(sorted(set(found.inside)), naming, rows, roster)
        return self._forget_wish(subjects, naming, namer, found.rows)

    def _ids_wish(self, ids: Sequence[Any], naming: Naming, namer: Namer) -> Wish:
        if naming.kind != "ids":
            raise ForgetError(f"this record names samples by {naming.kind}; pass rows=, forget=, subjects= or missing.")
        return Wish(names=namer.samples(ids), duplicates=self.duplicates, raw_ids=_long_ids(ids))

    def _forget_wish(self, subjects: Names | None, naming: Naming, namer: Namer, forgotten: Rows) -> Wish:
        """Match a forget set by its own ids, or by the content of its rows."""
        if naming.kind == "ids" and (isinstance(naming.ids, str) or callable(naming.ids)):
            return self._ids_wish(naming.ids_of(forgotten), naming, namer)
        contents = namer.contents(map(naming.reader(forgotten), range(len(forgotten))))
        return Wish(contents=contents, subjects=subjects, duplicates=self.duplicates)

    def _rows_wish(self, positions: list[int], naming: Naming, rows: Rows, roster: Roster) -> Wish:
        raw: tuple[bytes, ...] = ()
        if naming.kind == "ids":
            known = naming.ids_of(rows)
            raw = _long_ids([known[row] for row in positions])
        return Wish(names=roster.names[positions], duplicates=self.duplicates, raw_ids=raw)


def check_unused(**given: bool) -> None:
    """Refuse arguments of `unlearn` that this version does not have.

    Args:
        given: name of an argument -> whether it was set.

    Raises:
        UnsupportedError: naming those that were.
    """
    named = [name for name, is_set in given.items() if is_set]
    if named:
        raise UnsupportedError(
            f"{', '.join(f'{name}=' for name in named)}: this version does not have it. Leave it out; exact requests "
            "delete the checkpoints of the stages that they replace and need no retain set."
        )


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
