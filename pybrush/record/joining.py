"""Which rows of the data set at hand a request records: rows that are amended, and rows that join.

Whoever was forgotten never comes back: a suppressed name, and a row of a suppressed subject, do not join.
Nothing here changes the record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from pybrush.change import Additions, Change
from pybrush.days import day_of
from pybrush.errors import ContentError, ForgetError, MissingRowsError
from pybrush.names import Names, among, as_names, rows_of, sortable
from pybrush.record.ledger import Ledger, now
from pybrush.record.record import Record
from pybrush.record.samples import Holdings, Ints, Samples, equal_rows, record_roster
from pybrush.record.suppressions import suppressed
from pybrush.request import Roster, Strikes, strikes


@dataclass(frozen=True)
class Amended:
    """Rows that get another content or other subjects under their name.

    Attributes:
        index: which recorded samples they are, shape (n,).
        positions: where they lie in the data set at hand, shape (n,).
        unchanged: rows that were asked for and are as they are recorded.
    """

    index: Ints
    positions: Ints
    unchanged: int


@dataclass(frozen=True)
class Joining:
    """Rows that join a record.

    Attributes:
        positions: where they lie in the data set at hand, shape (n,).
        sources: where rows lie whose subjects are those of the joining names, shape (m,).
        barred: rows that do not join, since they or a subject of theirs were forgotten.
        copies: rows that join as further copies of a recorded content.
    """

    positions: Ints
    sources: Ints
    barred: int
    copies: int


def amended_rows(record: Record, samples: Samples, roster: Roster, names: Names, forgotten: Strikes) -> Amended:
    """Find which of some recorded rows are no longer as they are recorded.

    Args:
        record: the record.
        samples: what it holds.
        roster: the data set at hand.
        names: pseudonyms of the rows, each recorded and named once, shape (n, 16).
        forgotten: what the same request strikes; none of `names`.

    Raises:
        ForgetError: where the rows' subjects are not given, or are people who were forgotten.
        MissingRowsError: where rows are not in the data set at hand.
    """
    at, positions = samples.find(names), roster.counted.first(names)
    absent = int((positions < 0).sum())
    if absent:
        raise MissingRowsError(
            f"{absent} of {len(names)} rows to amend are not in the data set at hand. Pass the data set that holds "
            "them as they are now, or forget them."
        )
    recorded = _recorded_subjects(record.ledger, names)
    if any(recorded) and not roster.has_subjects:
        raise ForgetError(f"{record.folder} knows whose the rows to amend are; pass their subjects as in the fit.")
    now = [set(roster.subjects[p]) for p in positions.tolist()]
    _check_not_forgotten(record, [more - known for more, known in zip(now, recorded, strict=True)], forgotten.subjects)
    changed = (roster.contents_at(positions) != samples.contents[at]).any(axis=1)
    changed |= (_placements(roster, names, positions) != samples.placements[at]).any(axis=1)
    changed |= np.array([a != b for a, b in zip(now, recorded, strict=True)], dtype=bool)
    return Amended(at[changed], positions[changed], int((~changed).sum()))


def _recorded_subjects(ledger: Ledger, names: Names) -> list[set[bytes]]:
    """Return the recorded subjects of each of some names; subjects are found by one walk through the table."""
    owned: dict[bytes, set[bytes]] = {row.tobytes(): set() for row in names}
    for piece in ledger.pieces("SELECT subject, name FROM subjects"):
        for subject, name in piece:
            if name in owned:
                owned[name].add(subject)
    return [owned[row.tobytes()] for row in names]


def _check_not_forgotten(record: Record, subjects: list[set[bytes]], asking: Names) -> None:
    """Refuse to give rows to people who were forgotten, or who ask to be."""
    barred = _barred(record, set().union(*subjects), asking)
    rows = sum(not barred.isdisjoint(row) for row in subjects)
    if rows:
        raise ForgetError(
            f"{rows} of the rows to amend now belong to people who were forgotten. Forget these rows, or correct "
            "their subjects in the data set."
        )


def _barred(record: Record, subjects: Iterable[bytes], asking: Names) -> set[bytes]:
    """Return which of some subjects were forgotten, and all that ask to be."""
    known = as_names(sorted(subjects))
    gone = known[suppressed(record, known)]
    return {row.tobytes() for row in gone} | {row.tobytes() for row in asking}


def joining_rows(record: Record, samples: Samples, roster: Roster, forgotten: Strikes) -> Joining:
    """Find the rows of a data set that are not recorded and may be.

    Args:
        record: the record.
        samples: what it holds.
        roster: the data set at hand.
        forgotten: what the same request strikes; none of these names joins again.
    """
    gathered = roster.counted
    at = samples.find(gathered.names)
    held = np.where(at >= 0, samples.copies[at], 0)
    new = np.flatnonzero(gathered.counts > held)
    names, held, counts = gathered.names[new], held[new], gathered.counts[new]
    open_names = ~(suppressed(record, names) | among(names, forgotten.names))
    of_new = np.zeros(len(gathered.counts), dtype=bool)
    of_new[new] = True
    rows, name = gathered.order[np.repeat(of_new, gathered.counts)], np.repeat(np.arange(len(new)), counts)
    usable = open_names[name] & ~_of_the_forgotten(record, roster, rows, forgotten.subjects)
    # Of the rows that may be used the first are those that the record counts already, whichever these are.
    starts = np.cumsum(counts) - counts
    before: Ints = np.cumsum(usable) - usable
    joins = usable & (before - before[starts][name] >= held[name])
    joining = np.zeros(len(new), dtype=bool)
    joining[name[joins]] = True
    barred = int((counts - held).sum() - joins.sum())
    return Joining(rows[joins], rows[usable & joining[name]], barred, int((held[name[joins]] > 0).sum()))


def _of_the_forgotten(record: Record, roster: Roster, rows: Ints, asking: Names) -> NDArray[np.bool_]:
    """Return which of some rows belong to people who were forgotten or ask to be, shape (n,)."""
    owners = [roster.subjects[p] for p in rows.tolist()]
    barred = _barred(record, {subject for row in owners for subject in row}, asking)
    return np.array([not barred.isdisjoint(row) for row in owners], dtype=bool)


def change_of(
    record: Record, samples: Samples, holdings: Holdings, forgotten: Strikes, amended: Amended, joining: Joining
) -> Change:
    """Return the change that strikes, amends and admits.

    Raises:
        IdError: for equal rows under a sequential loader, where the position of each matters.
        ContentError: where rows join and recorded rows have other first subjects than when they were recorded.
        MissingRowsError: where rows join under a sequential loader and recorded rows are absent.
    """
    plan, roster = record.plan, holdings.roster
    struck = _with_amended(samples, forgotten, amended)
    positions = np.append(amended.positions, joining.positions)
    if not len(positions):
        return Change(struck)
    if len(joining.positions):
        _check_first_subjects(record, samples, holdings, struck)
    is_sequential = plan.order == "sequential"
    if is_sequential and joining.copies:
        raise equal_rows(joining.copies)
    kept = np.zeros(len(roster), dtype=bool)
    kept[positions] = True
    rows = record_roster(roster, plan.shards, plan.slices, is_sequential, kept)
    subjects, owned = _pairs(roster, np.append(amended.positions, joining.sources))
    columns = {field.name: getattr(rows, field.name) for field in fields(Samples)}
    days = _days(record, roster, rows.names, samples.names[amended.index])
    added = Additions(**columns, days=days, subjects=subjects, owned=owned)
    if is_sequential and len(joining.positions):
        after = samples.without(struck).with_rows(added)
        return Change(struck, replace(added, places=_places(record, after, roster)))
    if is_sequential:  # all rows are amended, and keep their places among the others
        added = replace(added, positions=samples.positions[samples.find(added.names)])
    return Change(struck, added)


def _days(record: Record, roster: Roster, names: Names, amended: Names) -> Ints:
    """Return the day of each row to record: as given, else today, or of an amended row as it is recorded."""
    days = roster.days_of(names, day_of(now()[:10]))
    if not roster.has_days:
        query = "SELECT day FROM samples WHERE name = ?"
        recorded = [day for name in rows_of(amended) for (day,) in record.ledger.rows(query, (name,))]
        days[np.searchsorted(sortable(names), sortable(amended))] = recorded
    return days


def _with_amended(samples: Samples, forgotten: Strikes, amended: Amended) -> Strikes:
    """Strike amended rows too, with their recorded content."""
    at = amended.index
    names = np.vstack([forgotten.names, samples.names[at]])
    contents = np.vstack([forgotten.contents, samples.contents[at]])
    return strikes(names, contents, np.append(forgotten.copies, samples.copies[at]), forgotten.subjects)


def _pairs(roster: Roster, rows: Ints) -> tuple[Names, Names]:
    """Return subjects and names of some rows, one entry a pair, ascending."""
    pairs = sorted({(subject, roster.names[p].tobytes()) for p in rows.tolist() for subject in roster.subjects[p]})
    return as_names(subject for subject, _ in pairs), as_names(name for _, name in pairs)


def _places(record: Record, after: Samples, roster: Roster) -> Ints:
    """Return where each row of the record lies in the data set at hand."""
    places = roster.counted.first(after.names)
    absent = int((places < 0).sum())
    if absent:
        raise MissingRowsError(
            f"{absent} rows of {record.folder} are not in the data set at hand. Its loader does not shuffle, so the "
            "place of each row must be known when rows join: pass the whole data set, or forget the absent rows "
            "first with unlearn(missing=True)."
        )
    return places


def _placements(roster: Roster, names: Names, positions: Ints) -> Names:
    """Return the names that decide the placement of some rows of a data set, shape (n, 16)."""
    found = names.copy()
    owned = np.array([roster.owners[p] is not None for p in positions.tolist()], dtype=bool)
    found[owned] = as_names(roster.owners[p] or b"" for p in positions[owned].tolist())
    return found


def _check_first_subjects(record: Record, samples: Samples, holdings: Holdings, struck: Strikes) -> None:
    """Refuse to place rows by subjects that are given in another way than those of the recorded rows."""
    # Of samples that a committed request took it is not known any more.
    stay = (~among(samples.names, struck.names) & samples.placements.any(axis=1))[holdings.sample]
    sample, position = holdings.sample[stay], holdings.position[stay]
    now = _placements(holdings.roster, samples.names[sample], position)
    changed = int((now != samples.placements[sample]).any(axis=1).sum())
    if changed:
        raise ContentError(
            f"the first subject of {changed} rows is not the one that {record.folder} recorded. Pass the subjects as "
            "in the fit; where they changed on purpose, amend these rows in the same request."
        )
