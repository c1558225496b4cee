"""From a wish to strikes: which recorded rows a request names, before anything is touched.

A row that was forgotten before is counted, not refused; a row that the record never held is an error
with the count. Nothing here changes the record.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pybrush.errors import ForgetError, UnknownSamplesError, UnsupportedError
from pybrush.hashing import NAME_BYTES
from pybrush.names import Names, among, as_names, ascending, sortable
from pybrush.record.ledger import Ledger
from pybrush.record.record import Record
from pybrush.record.samples import Holdings, Samples
from pybrush.request import Strikes, counted, shown, strikes

_CHANGED_SHARE = 0.01
"""Above this share of absent rows, with new rows present, a data set has changed rather than shrunk."""

_NONE = np.zeros((0, NAME_BYTES), dtype=np.uint8)


@dataclass(frozen=True)
class Wish:
    """What a caller asks to forget; exactly one of names, contents, subjects alone, or missing.

    Attributes:
        names: pseudonyms, repeated for copies, shape (n, 16); None unless samples are named.
        contents: content digests, repeated for copies, shape (n, 16); None unless rows are given as data.
        subjects: pseudonyms of persons, shape (m, 16); with `contents` they say whose rows are meant.
        missing: forget what is recorded and no longer in the data set.
        duplicates: whether rows equal to a forgotten one are reported or forgotten too.
        raw_ids: the ids of sixteen bytes and more as they were given, to search the record's files for.
    """

    names: Names | None = None
    contents: Names | None = None
    subjects: Names | None = None
    missing: bool = False
    duplicates: Literal["report", "forget"] = "report"
    raw_ids: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        given = [self.names is not None, self.contents is not None, self.missing]
        if sum(given) > 1 or not (any(given) or self.subjects is not None):
            raise ForgetError(
                "say in one way what to forget: a forget set, ids=, rows=, subjects= or missing=True; "
                f"got {sum(given) + (self.subjects is not None and not any(given))} of them."
            )
        if self.subjects is not None and (self.names is not None or self.missing):
            raise ForgetError("subjects= goes alone or with a forget set given as data, not with ids, rows or missing.")


@dataclass(frozen=True)
class Resolution:
    """What a wish comes to.

    Attributes:
        strikes: the rows to strike.
        already: rows asked for that are not in the model any more.
        equal: rows equal in content to a struck one that stay.
    """

    strikes: Strikes
    already: int
    equal: int


NOTHING = Resolution(Strikes(_NONE, _NONE, np.zeros(0, dtype=np.int64), _NONE), already=0, equal=0)
"""What no wish comes to."""


def resolve(record: Record, samples: Samples, holdings: Holdings | None, wish: Wish) -> Resolution:
    """Match a wish with the samples of a record.

    Args:
        record: the record, for subjects and suppressions.
        samples: what is recorded; with a committed request not yet sealed, its rows included.
        holdings: the data set at hand; needed for `missing`.
        wish: what to forget.

    Raises:
        UnknownSamplesError: for rows that the record does not hold and never held.
        ForgetError: for an empty forget set, and rows that could be several people's.
    """
    if wish.missing:
        found, already = _missing(record, samples, holdings), 0
    elif wish.names is not None:
        found, already = _named(record, samples, wish.names)
    elif wish.contents is not None:
        found, already = _of_contents(record, samples, wish.contents, wish)
    else:
        found, already = _of_subjects(record, samples, wish.subjects if wish.subjects is not None else _NONE)
    if wish.duplicates == "forget":
        found = _with_equal(samples, found)
    return Resolution(found, already, _equal_rows(samples, found))


def _named(record: Record, samples: Samples, asked: Names) -> tuple[Strikes, int]:
    if not len(asked):
        raise _empty()
    gathered = counted(asked)
    names, counts = gathered.names, gathered.counts
    if record.plan.naming != "content":  # an id names one row, however often it is given
        counts = np.ones_like(counts)
    at = samples.find(names)
    unknown = at < 0
    gone = _suppressed(record, names[unknown])
    if not gone.all():
        raise _unknown(names[unknown][~gone], len(names))
    at, counts, names = at[~unknown], counts[~unknown], names[~unknown]
    taken = np.minimum(counts, samples.copies[at])
    return strikes(names, samples.contents[at], taken), int(gone.sum() + (counts - taken).sum())


def _of_contents(record: Record, samples: Samples, asked: Names, wish: Wish) -> tuple[Strikes, int]:
    if not len(asked):
        raise _empty()
    if record.plan.contents == "off":
        raise UnsupportedError("this record keeps no content digests; name the samples by ids=, rows= or subjects=.")
    gathered = counted(asked)
    contents, counts = gathered.names, gathered.counts
    pool = samples if wish.subjects is None else _owned(record, samples, wish.subjects)
    order = ascending(pool.contents)
    own, wanted = sortable(pool.contents)[order], sortable(contents)
    low, high = np.searchsorted(own, wanted, "left"), np.searchsorted(own, wanted, "right")
    if wish.duplicates == "report":
        _check_unambiguous(record, pool, order, low, high, counts)
    unknown = low == high
    gone = _contents_suppressed(record, contents[unknown], wish.subjects)
    if not gone.all():
        raise _unknown(record.names.content_samples(contents[unknown][~gone]), len(contents))
    taken = np.zeros(len(pool), dtype=np.int64)
    for start, end, count in zip(low[~unknown], high[~unknown], counts[~unknown], strict=True):
        members = order[start:end]
        taken[members] = pool.copies[members] if len(members) > 1 else min(int(count), int(pool.copies[members[0]]))
    hit = np.flatnonzero(taken)
    found = strikes(pool.names[hit], pool.contents[hit], taken[hit])
    return found, max(0, len(asked) - found.rows)


def _check_unambiguous(
    record: Record, pool: Samples, order: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:  # fmt: skip
    """Refuse contents that several samples share, unless all of them are asked for."""
    total = np.concatenate([[0], np.cumsum(pool.copies[order])])
    unclear = int(((high - low > 1) & (counts < total[high] - total[low])).sum())
    if unclear:
        other = "subjects=" if record.plan.naming == "content" else "ids="
        raise ForgetError(
            f"{unclear} rows of the forget set equal rows of several samples in the record, so their content does not "
            f"say which are meant; pass {other} or, to forget them all, duplicates='forget'."
        )


def _of_subjects(record: Record, samples: Samples, subjects: Names) -> tuple[Strikes, int]:
    if not len(subjects):
        raise _empty()
    held = {row for (row,) in record.ledger.rows("SELECT DISTINCT subject FROM subjects")}
    absent = as_names(row.tobytes() for row in subjects if row.tobytes() not in held)
    gone = _suppressed(record, absent)
    if not gone.all():
        raise _unknown(absent[~gone], len(subjects), "subjects")
    own = _owned(record, samples, subjects)
    return strikes(own.names, own.contents, own.copies, subjects), int(gone.sum())


def _owned(record: Record, samples: Samples, subjects: Names) -> Samples:
    """Return the samples that belong to any of some subjects."""
    names = subject_samples(record.ledger, subjects)
    at = samples.find(names)
    mask = np.zeros(len(samples), dtype=bool)
    mask[at[at >= 0]] = True
    return samples.where(mask)


def subject_samples(ledger: Ledger, subjects: Names) -> Names:
    """Return the names of all samples of some subjects."""
    query = "SELECT name FROM subjects WHERE subject = ?"
    return as_names(name for row in subjects for (name,) in ledger.rows(query, (row.tobytes(),)))


def _missing(record: Record, samples: Samples, holdings: Holdings | None) -> Strikes:
    if holdings is None:
        raise ForgetError("missing=True compares the record with the data set as it is now; pass the training data.")
    lost = samples.copies - holdings.present
    absent = int(lost.sum())
    # Forgotten rows may still lie in the data set; only rows that were never recorded speak for a change.
    new = int((~_suppressed(record, holdings.strangers)).sum()) if absent > _CHANGED_SHARE * samples.rows else 0
    if new:
        raise ForgetError(
            f"{absent} of {samples.rows} recorded rows are absent and {new} rows are new: that is a "
            "data set whose content changed (another preprocessing, an unseeded random split?), not one from which "
            "rows were deleted. Restore it, or name the rows to forget."
        )
    at = np.flatnonzero(lost)
    return strikes(samples.names[at], samples.contents[at], lost[at])


def _with_equal(samples: Samples, found: Strikes) -> Strikes:
    """Strike every copy of every sample that equals a struck one in content."""
    known = found.contents.any(axis=1)
    equal = among(samples.contents, found.contents[known])
    equal[samples.find(found.names)] |= ~known
    at = np.flatnonzero(equal)
    return replace(strikes(samples.names[at], samples.contents[at], samples.copies[at]), subjects=found.subjects)


def _equal_rows(samples: Samples, found: Strikes) -> int:
    known = found.contents.any(axis=1)
    equal = among(samples.contents, found.contents[known])
    return int(samples.copies[equal].sum() - found.copies[known].sum())


def _suppressed(record: Record, names: Names) -> NDArray[np.bool_]:
    """Return which of some names were forgotten before, shape (n,)."""
    query = "SELECT 1 FROM suppressions WHERE name = ?"
    marks = record.names.suppressed(names)
    return np.array([bool(record.ledger.rows(query, (row.tobytes(),))) for row in marks], dtype=bool)


def _contents_suppressed(record: Record, contents: Names, subjects: Names | None) -> NDArray[np.bool_]:
    """Return which of some contents were forgotten before, under the name of any of `subjects`, shape (n,)."""
    owners = [None] if subjects is None else [None, *(row.tobytes() for row in subjects)]
    gone = np.zeros(len(contents), dtype=bool)
    for owner in owners:
        gone |= _suppressed(record, record.names.content_samples(contents, [owner] * len(contents)))
    return gone


def _unknown(names: Names, asked: int, what: str = "samples") -> UnknownSamplesError:
    return UnknownSamplesError(
        f"{len(names)} of {asked} {what} to forget are not in the record (pseudonyms {shown(names)}). Nothing was "
        "touched. Pass them exactly as in training: the same ids of the same type, or the same raw rows with labels."
    )


def _empty() -> ForgetError:
    return ForgetError("the forget set is empty; name at least one sample to forget.")
