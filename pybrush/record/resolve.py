"""From a wish to a change: which rows a request strikes and which it records, before anything is touched.

A row that was forgotten before is counted, not refused; a row that the record never held is an error
with the count. Nothing here changes the record.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pybrush.change import Additions, Change
from pybrush.days import text_of
from pybrush.errors import ForgetError, UnknownSamplesError, UnsupportedError
from pybrush.hashing import NAME_BYTES
from pybrush.names import Names, among, as_names, ascending, sortable
from pybrush.record.artefacts import Purge, check_purge
from pybrush.record.joining import Amended, Joining, amended_rows, change_of, joining_rows
from pybrush.record.ledger import Ledger
from pybrush.record.record import Record
from pybrush.record.samples import Holdings, Samples
from pybrush.record.suppressions import suppressed
from pybrush.request import Strikes, counted, shown, strikes

_CHANGED_SHARE = 0.01
"""Above this share of absent rows, with new rows present, a data set has changed rather than shrunk."""

_NONE = np.zeros((0, NAME_BYTES), dtype=np.uint8)


@dataclass(frozen=True)
class Wish:
    """What a caller asks: contents, missing, before, queued, or a batch of names, subjects, amended and admits.

    Forgetting wins: a row that a batch forgets is neither amended nor admitted by it. `before` and `queued` name
    nothing until a batch is drawn from the ledger (`pybrush.record.queue.drawn`).

    Attributes:
        names: pseudonyms to forget, repeated for copies, shape (n, 16); None unless samples are named.
        contents: content digests, repeated for copies, shape (n, 16); None unless rows are given as data.
        subjects: pseudonyms of persons to forget, shape (m, 16); with `contents` they say whose rows are meant.
        missing: forget what is recorded and no longer in the data set.
        amended: pseudonyms of rows whose content is read anew from the data set at hand, shape (n, 16).
        admits: rows of the data set at hand that are not recorded, and were never forgotten, join.
        before: forget every row whose day is earlier than this one, in days since 1970-01-01.
        queued: serve what waits in the queue.
        entries: the entries of the queue that a batch was drawn from.
        duplicates: whether rows equal to a forgotten one are reported or forgotten too.
        raw_ids: the ids of sixteen bytes and more as they were given, to search the record's files for;
            None where they are not known.
        purge: whether registered files of user code go with their stages, or are left and listed.
    """

    names: Names | None = None
    contents: Names | None = None
    subjects: Names | None = None
    missing: bool = False
    amended: Names | None = None
    admits: bool = False
    before: int | None = None
    queued: bool = False
    entries: tuple[int, ...] = ()
    duplicates: Literal["report", "forget"] = "report"
    raw_ids: tuple[bytes, ...] | None = ()
    purge: Purge = "delete"

    def __post_init__(self) -> None:
        check_purge(self.purge)
        batch = [self.names is not None, self.amended is not None, self.admits]
        alone = [self.missing, self.before is not None, self.queued]
        given = [any(batch), self.contents is not None, *alone]
        if sum(given) > 1 or not (any(given) or self.subjects is not None):
            raise ForgetError(
                "say in one way what to forget: a forget set, ids=, rows=, subjects=, before=, missing=True or "
                f"queued=True; got {sum(given) + (self.subjects is not None and not any(given))} of them."
            )
        if self.subjects is not None and any(alone):
            raise ForgetError(
                "subjects= goes alone or with a forget set given as data, not with missing, before or queued."
            )

    @property
    def nothing(self) -> str:
        """What is said where the record has nothing of what it asks."""
        if self.before is not None:
            return f"no recorded row is older than {text_of(self.before)}"
        return "no entry waits in the queue" if self.queued else "no recorded row is absent"


@dataclass(frozen=True)
class Resolution:
    """What a wish comes to.

    Attributes:
        strikes: the rows to strike; rows that are amended with their old content.
        already: rows asked for that are not in the model any more.
        equal: rows equal in content to a forgotten one that stay.
        additions: the rows to record; rows that are amended with their new content.
        unchanged: rows to amend that are as they are recorded.
        barred: rows of the data set that do not join, since they or a subject of theirs were forgotten; None where
            no rows were to join.
        copies: rows that join as further copies of a recorded content.
        entries: the entries of the queue that were asked.
        nothing: what is said where nothing changes.
    """

    strikes: Strikes
    already: int
    equal: int
    additions: Additions = field(default_factory=Additions)
    unchanged: int = 0
    barred: int | None = None
    copies: int = 0
    entries: tuple[int, ...] = ()
    nothing: str = ""

    @property
    def change(self) -> Change:
        """What the record strikes and records."""
        return Change(self.strikes, self.additions)


NOTHING = Resolution(Strikes(_NONE, _NONE, np.zeros(0, dtype=np.int64), _NONE), already=0, equal=0)
"""What no wish comes to."""


def resolve(record: Record, samples: Samples, holdings: Holdings | None, wish: Wish) -> Resolution:
    """Match a wish with the samples of a record.

    Args:
        record: the record, for subjects and suppressions.
        samples: what is recorded; with a committed request not yet sealed, its rows included.
        holdings: the data set at hand; needed for `missing`, `amended` and `admits`.
        wish: what to forget, to amend and to admit.

    Raises:
        UnknownSamplesError: for rows that the record does not hold and never held.
        ForgetError: for an empty forget set, and rows that could be several people's.
        MissingRowsError: for rows to amend that are not in the data set at hand.
    """
    if wish.missing:
        found, already = _missing(record, samples, holdings), 0
    elif wish.contents is not None:
        found, already = _of_contents(record, samples, wish.contents, wish)
    else:
        found, already = _of_batch(record, samples, wish)
    if wish.duplicates == "forget":
        found = _with_equal(samples, found)
    if wish.amended is None and not wish.admits:
        resolution = Resolution(found, already, _equal_rows(samples, found, Change(found)))
    else:
        resolution = _recorded_anew(record, samples, holdings, wish, found, already)
    return replace(resolution, entries=wish.entries, nothing=wish.nothing)


def _recorded_anew(
    record: Record, samples: Samples, holdings: Holdings | None, wish: Wish, found: Strikes, already: int
) -> Resolution:
    """Add what a wish amends and admits to what it strikes."""
    if holdings is None:
        raise ForgetError("rows that are amended or join are read from the data set as it is now; pass it.")
    roster, nothing = holdings.roster, np.zeros(0, dtype=np.int64)
    amended, joining = Amended(nothing, nothing, 0), Joining(nothing, nothing, 0, 0)
    if wish.amended is not None:
        names, gone = recorded_to_amend(record, samples, wish.amended)
        amended = amended_rows(record, samples, roster, names[~among(names, found.names)], found)
        already += int((~among(gone, _NONE if wish.names is None else wish.names)).sum())
    if wish.admits:
        joining = joining_rows(record, samples, roster, found)
    change = change_of(record, samples, holdings, found, amended, joining)
    return Resolution(
        change.strikes, already, _equal_rows(samples, found, change), change.additions,
        amended.unchanged, joining.barred if wish.admits else None, joining.copies,
    )  # fmt: skip


def check_amendable(record: Record) -> None:
    """Check that a record can tell a row that changed from the row that it was.

    Raises:
        UnsupportedError: where rows are named by content, or contents are off.
    """
    if record.plan.naming == "content":
        raise UnsupportedError(
            "this record names rows by their content, so a row that changed is another row: forget the old rows and "
            "admit the new ones."
        )
    if record.plan.contents == "off":
        raise UnsupportedError(
            "this record keeps no content digests, so it cannot tell which rows changed: forget the old rows, and "
            "admit the new ones under new ids."
        )


def recorded_to_amend(record: Record, samples: Samples, asked: Names) -> tuple[Names, Names]:
    """Return the names of rows to amend that are recorded, each once, and of those that were forgotten before.

    Raises:
        UnsupportedError: where rows are named by content, or contents are off.
        ForgetError: where no row is named.
        UnknownSamplesError: for rows that the record does not hold and never held.
    """
    check_amendable(record)
    if not len(asked):
        raise nothing_to_amend()
    names = counted(asked).names
    unknown = samples.find(names) < 0
    gone = suppressed(record, names[unknown])
    if not gone.all():
        raise unknown_names(names[unknown][~gone], len(names), "samples", "amend")
    return names[~unknown], names[unknown]


def _of_batch(record: Record, samples: Samples, wish: Wish) -> tuple[Strikes, int]:
    """Strike what is named and what belongs to the named subjects; of a name in both, the more copies."""
    none = strikes(_NONE, _NONE, np.zeros(0, dtype=np.int64))
    named, gone = (none, 0) if wish.names is None else _named(record, samples, wish.names)
    if wish.subjects is None:
        return named, gone
    owned, gone_subjects = _of_subjects(record, samples, wish.subjects)
    lost = np.zeros(len(samples), dtype=np.int64)
    for part in (named, owned):
        at = samples.find(part.names)
        lost[at] = np.maximum(lost[at], part.copies)
    hit = np.flatnonzero(lost)
    return strikes(samples.names[hit], samples.contents[hit], lost[hit], wish.subjects), gone + gone_subjects


def _named(record: Record, samples: Samples, asked: Names) -> tuple[Strikes, int]:
    if not len(asked):
        raise empty_set()
    gathered = counted(asked)
    names, counts = gathered.names, gathered.counts
    if record.plan.naming != "content":  # an id names one row, however often it is given
        counts = np.ones_like(counts)
    at = samples.find(names)
    unknown = at < 0
    gone = suppressed(record, names[unknown])
    if not gone.all():
        raise unknown_names(names[unknown][~gone], len(names))
    at, counts, names = at[~unknown], counts[~unknown], names[~unknown]
    taken = np.minimum(counts, samples.copies[at])
    return strikes(names, samples.contents[at], taken), int(gone.sum() + (counts - taken).sum())


def _of_contents(record: Record, samples: Samples, asked: Names, wish: Wish) -> tuple[Strikes, int]:
    if not len(asked):
        raise empty_set()
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
        raise unknown_names(record.names.content_samples(contents[unknown][~gone]), len(contents))
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
        raise empty_set()
    held = {row for (row,) in record.ledger.rows("SELECT DISTINCT subject FROM subjects")}
    absent = as_names(row.tobytes() for row in subjects if row.tobytes() not in held)
    gone = suppressed(record, absent)
    if not gone.all():
        raise unknown_names(absent[~gone], len(subjects), "subjects")
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
    new = int((~suppressed(record, holdings.strangers)).sum()) if absent > _CHANGED_SHARE * samples.rows else 0
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


def _equal_rows(samples: Samples, forgotten: Strikes, change: Change) -> int:
    """Return how many rows are equal in content to a forgotten one after a change."""
    contents = forgotten.contents[forgotten.contents.any(axis=1)]
    before, struck, added = (
        int(part.copies[among(part.contents, contents)].sum()) for part in (samples, change.strikes, change.additions)
    )
    return before - struck + added


def _contents_suppressed(record: Record, contents: Names, subjects: Names | None) -> NDArray[np.bool_]:
    """Return which of some contents were forgotten before: as such, or as a row of any of `subjects`, shape (n,)."""
    owners = [None] if subjects is None else [None, *(row.tobytes() for row in subjects)]
    gone = suppressed(record, contents)
    for owner in owners:
        gone |= suppressed(record, record.names.content_samples(contents, [owner] * len(contents)))
    return gone


def unknown_names(names: Names, asked: int, what: str = "samples", aim: str = "forget") -> UnknownSamplesError:
    """Return the error for names that the record does not hold and never held."""
    return UnknownSamplesError(
        f"{len(names)} of {asked} {what} to {aim} are not in the record (pseudonyms {shown(names)}). Nothing was "
        "touched. Pass them exactly as in training: the same ids of the same type, or the same raw rows with labels."
    )


def nothing_to_amend() -> ForgetError:
    """Return the error for a list of rows to amend that names nothing."""
    return ForgetError("the list of rows to amend is empty; name at least one.")


def empty_set() -> ForgetError:
    """Return the error for a forget set that names nothing."""
    return ForgetError("the forget set is empty; name at least one sample to forget.")
