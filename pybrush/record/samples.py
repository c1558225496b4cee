"""The samples of a record as arrays: who is in which cell, how often, and what a request leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pybrush.change import Additions, Change
from pybrush.days import day_of
from pybrush.errors import ConfigurationError, IdError
from pybrush.names import Names, as_names, ascending, rows_of, sortable
from pybrush.plan.graph import slice_digest
from pybrush.plan.order import StageRows
from pybrush.plan.placement import cells_of
from pybrush.record.ledger import Ledger, now
from pybrush.request import Roster, Strikes, counted

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """All recorded samples, in ascending order of their names.

    Attributes:
        names: pseudonyms, shape (n, 16).
        placements: the names that decided placement: the first subject's, else the sample's own.
        shards: shape (n,). slices: shape (n,).
        contents: content digests, zeros where off, shape (n, 16).
        copies: equal rows that the name stands for, shape (n,).
        positions: place in the data set's order under a sequential loader, else -1, shape (n,).
    """

    names: Names
    placements: Names
    shards: Ints
    slices: Ints
    contents: Names
    copies: Ints
    positions: Ints

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> int:
        """Number of rows, copies counted."""
        return int(self.copies.sum())

    def find(self, names: Names) -> Ints:
        """Return the index of each name, or -1 where it is not recorded, shape (n,)."""
        if not len(self) or not len(names):
            return np.full(len(names), -1, dtype=np.int64)
        own, asked = sortable(self.names), sortable(names)
        at = np.minimum(np.searchsorted(own, asked), len(own) - 1)
        return np.where(own[at] == asked, at, -1).astype(np.int64)

    def without(self, strikes: Strikes) -> Samples:
        """Return the samples that a request leaves; its names must be recorded often enough."""
        copies = self.copies.copy()
        copies[self.find(strikes.names)] -= strikes.copies
        kept = replace(self, copies=copies)
        return kept.where(copies > 0)

    def after(self, change: Change) -> Samples:
        """Return the samples as a request leaves them; what it strikes must be recorded often enough."""
        whole = self.without(change.strikes).with_rows(change.additions)
        places = change.additions.places
        return replace(whole, positions=places) if len(places) else whole

    def restored(self, change: Change) -> Samples:
        """Return the samples as they were before a request, for look-ups alone: what it struck has no placement."""
        strikes, added = change.strikes, change.additions
        at = self.find(added.names)
        copies = self.copies.copy()
        copies[at] -= added.copies
        now = self.find(strikes.names)
        positions = np.where(now >= 0, self.positions[now], -1)  # of an amended row; it keeps its place
        blank = np.zeros(len(strikes), dtype=np.int64)
        nowhere = np.zeros_like(strikes.names)
        struck = Samples(strikes.names, nowhere, blank, blank, strikes.contents, strikes.copies, positions)
        return replace(self, copies=copies).where(copies > 0).with_rows(struck)

    def with_rows(self, others: Samples | Additions) -> Samples:
        """Return the samples and more; a name that is there already gets more copies."""
        if not len(others):
            return self
        at = self.find(others.names)
        copies = self.copies.copy()
        copies[at[at >= 0]] += others.copies[at >= 0]
        own, new = replace(self, copies=copies), at < 0
        order = ascending(np.vstack([self.names, others.names[new]]))
        columns = ((getattr(own, f.name), getattr(others, f.name)) for f in fields(Samples))
        return Samples(*(np.concatenate([mine, more[new]])[order] for mine, more in columns))

    def where(self, mask: NDArray[np.bool_]) -> Samples:
        """Return the samples that a mask of shape (n,) selects."""
        return Samples(*(getattr(self, f.name)[mask] for f in fields(Samples)))

    def cell_rows(self, shards: int, slices: int) -> Ints:
        """Return the rows in each cell, copies counted, shape (shards, slices)."""
        cells = np.bincount(self.shards * slices + self.slices, weights=self.copies, minlength=shards * slices)
        return cells.astype(np.int64).reshape(shards, slices)

    @property
    def is_ordered(self) -> bool:
        """Whether the data set's order matters, because the loader does not shuffle."""
        return bool(len(self)) and bool(self.positions[0] >= 0)

    def digests(self, cells: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Return the slice digest of each of `cells`.

        Where the data set's order matters, a slice's digest is over all rows of slices 0 to its own: how they
        alternate is part of what a stage depends on.
        """
        found = {}
        for shard, cell in cells:
            inside = self.slices <= cell if self.is_ordered else self.slices == cell
            members = np.flatnonzero((self.shards == shard) & inside)
            members = members[np.argsort(self.positions[members], kind="stable")]
            found[shard, cell] = slice_digest(self.names[members], self.contents[members], self.copies[members])
        return found


@dataclass(frozen=True)
class Holdings:
    """Which rows of a data set stand for which recorded sample.

    Attributes:
        sample: index into the record's samples, ascending, one entry a usable row, shape (m,).
        copy: which copy of its sample the row is, shape (m,).
        position: where the row lies in the data set, shape (m,).
        present: usable rows of each recorded sample, shape (n,).
        unrecorded: rows of the data set that the record does not hold.
        strangers: names of such rows of which the record holds no copy, each once, shape (k, 16).
        roster: the data set.
    """

    sample: Ints
    copy: Ints
    position: Ints
    present: Ints
    unrecorded: int
    strangers: Names
    roster: Roster

    def stage_rows(self, samples: Samples, shard: int, last_slice: int) -> StageRows:
        """Return the rows of slices 0 to `last_slice` of a shard."""
        member = (samples.shards == shard) & (samples.slices <= last_slice)
        rows = np.flatnonzero(member[self.sample])
        return StageRows(samples.names[self.sample[rows]], self.copy[rows], self.position[rows])


def hold(samples: Samples, roster: Roster) -> Holdings:
    """Match a data set with the record: a recorded name uses as many rows as it counts, at most."""
    gathered = roster.counted
    names, counts, order = gathered.names, gathered.counts, gathered.order
    copy = np.arange(len(order)) - np.repeat(gathered.starts, counts)
    found = samples.find(names)
    sample = np.repeat(found, counts)
    limit = np.where(sample >= 0, samples.copies[sample] if len(samples) else 0, 0)
    usable = copy < limit
    present = np.bincount(sample[usable], minlength=len(samples)).astype(np.int64)
    return Holdings(
        sample[usable],
        copy[usable].astype(np.int64),
        order[usable],
        present,
        int((~usable).sum()),
        names[found < 0],
        roster,
    )


def record_roster(roster: Roster, shards: int, slices: int, sequential: bool, kept: NDArray[np.bool_]) -> Samples:
    """Return the samples of a data set, or of some of its rows, that are recorded for the first time.

    Args:
        roster: the data set.
        shards: S.
        slices: R.
        sequential: whether the loader keeps the data set's order.
        kept: which rows are recorded, shape (rows,).

    Raises:
        IdError: for equal rows under a sequential loader, where the position of each matters.
    """
    at = np.flatnonzero(kept)
    gathered = counted(roster.names[at])
    names, copies = gathered.names, gathered.counts
    positions = at[gathered.order[gathered.starts]]
    if sequential and (copies > 1).any():
        raise equal_rows(int((copies > 1).sum()))
    owners = [roster.owners[p] for p in positions.tolist()]
    placements = as_names(owner or name for owner, name in zip(owners, rows_of(names), strict=True))
    shard, cell = cells_of(placements, shards, slices)
    order = positions if sequential else np.full(len(names), -1, dtype=np.int64)
    if not len(names):
        raise ConfigurationError("the data set has no rows to train on; pass one that has.")
    return Samples(names, placements, shard, cell, roster.contents_at(positions), copies, order)


def equal_rows(contents: int) -> IdError:
    """Return the refusal of equal rows where the position of each matters, given how many contents they have."""
    return IdError(
        f"under a loader that does not shuffle, equal rows need ids to be told apart; "
        f"{contents} contents occur more than once. Pass ids= to SISA, or shuffle=True."
    )


def write_samples(ledger: Ledger, samples: Samples, roster: Roster) -> None:
    """Insert samples and their subjects, inside a transaction of an empty ledger."""
    _insert(ledger, samples, roster.days_of(samples.names, day_of(now()[:10])))
    if not any(roster.subjects):
        return
    recorded = np.flatnonzero(samples.find(roster.names) >= 0).tolist()
    pairs = ((subject, roster.names[p].tobytes()) for p in recorded for subject in roster.subjects[p])
    ledger.change_many("INSERT OR IGNORE INTO subjects VALUES (?, ?)", pairs)


def _insert(ledger: Ledger, samples: Samples | Additions, days: Ints) -> None:
    """Insert samples; a name that is there already gets more copies, and the earlier day."""
    own = (samples.placements == samples.names).all(axis=1).tolist()
    rows = zip(
        rows_of(samples.names),
        (None if same else row for same, row in zip(own, rows_of(samples.placements), strict=True)),
        samples.shards.tolist(),
        samples.slices.tolist(),
        rows_of(samples.contents),
        samples.copies.tolist(),
        (None if p < 0 else p for p in samples.positions.tolist()),
        map(int, days),  # a list of a million integers takes as much as the names
        strict=True,
    )
    ledger.change_many(
        "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET copies = copies + excluded.copies, day = min(day, excluded.day)",
        rows,
    )


def read_samples(ledger: Ledger) -> Samples:
    """Read all samples from the ledger, in ascending order of names.

    Of a million rows each value costs time: shard and slice come as one number, and what most rows do not have comes
    from the few that do.
    """
    names, contents = bytearray(), bytearray()
    numbers: list[Ints] = [np.zeros(0, dtype=np.int64)]
    for rows in ledger.pieces("SELECT name, content, shard << 32 | slice FROM samples ORDER BY name"):
        name, content, cells = zip(*rows, strict=True)
        names += b"".join(name)
        contents += b"".join(content)
        numbers.append(np.array(cells, dtype=np.int64))
    own, cell = as_names([bytes(names)]), np.concatenate(numbers)
    shards, slices, copies = cell >> 32, cell & 0xFFFFFFFF, np.ones(len(cell), dtype=np.int64)
    positions = np.full(len(cell), -1, dtype=np.int64)
    whole = Samples(own, own, shards, slices, as_names([bytes(contents)]), copies, positions)
    for at, several in _exceptions(ledger, whole, "copies", "copies != 1"):
        copies[at] = several
    for at, place in _exceptions(ledger, whole, "position", "position IS NOT NULL"):
        positions[at] = place
    placements = own
    for at, owners in _exceptions(ledger, whole, "placement", "placement IS NOT NULL"):
        placements = placements.copy() if placements is own else placements
        placements[at] = as_names(owners)
    return replace(whole, placements=placements)


def _exceptions(
    ledger: Ledger, samples: Samples, column: str, condition: str
) -> Iterator[tuple[Ints, tuple[Any, ...]]]:
    """Return index and value of the rows on which a condition holds, some at a time."""
    for rows in ledger.pieces(f"SELECT name, {column} FROM samples WHERE {condition}"):
        names, values = zip(*rows, strict=True)
        yield samples.find(as_names(names)), values


def change_samples(ledger: Ledger, before: Samples, after: Samples, change: Change) -> None:
    """Take struck copies out of the ledger and put added rows into it, inside a transaction."""
    _strike(ledger, before, change.strikes)
    additions = change.additions
    _insert(ledger, additions, additions.days)
    pairs = zip(rows_of(additions.subjects), rows_of(additions.owned), strict=True)
    ledger.change_many("INSERT OR IGNORE INTO subjects VALUES (?, ?)", pairs)
    if len(additions.places):
        places = zip(after.positions.tolist(), rows_of(after.names), strict=True)
        ledger.change_many("UPDATE samples SET position = ? WHERE name = ?", places)


def _strike(ledger: Ledger, before: Samples, strikes: Strikes) -> None:
    """Take struck copies, and names left without any."""
    left = before.copies[before.find(strikes.names)] - strikes.copies
    gone = [row.tobytes() for row in strikes.names[left == 0]]
    fewer = [(int(n), row.tobytes()) for n, row in zip(left, strikes.names, strict=True) if n > 0]
    ledger.change_many("UPDATE samples SET copies = ? WHERE name = ?", fewer)
    ledger.change_many("DELETE FROM samples WHERE name = ?", ((name,) for name in gone))
    with ledger.listed(gone) as struck:
        ledger.change(f"DELETE FROM subjects WHERE name IN {struck}")
