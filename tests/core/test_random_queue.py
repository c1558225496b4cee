"""Random days of a queue: what comes in, is withdrawn, is forgotten by others, fails, is cancelled, is served.

A model of sets goes along. After every step the queue and the ledger are the model's, and an independent reader
finds nothing wrong; at the end the bits are those of a fresh fit on the rows that the model has left.
"""

from contextlib import closing

import numpy as np
import pytest

from pybrush import forget
from pybrush.build import Sources
from pybrush.content import encode
from pybrush.days import text_of
from pybrush.errors import ForgetError, UnknownSamplesError
from pybrush.record import Record
from pybrush.record.resolve import Wish
from pybrush.request import Roster
from tests import reference
from tests.core import format_reader as reader
from tests.core.numpy_learner import NumpyLearner, wish
from tests.core.test_fit_and_forget import KEY, assert_same_record, data, keep

N = 40
IDS = [f"person-{i:012d}" for i in range(N)]
PLAN = {"shards": 2, "slices": 2, "epochs": 1}


class Days:
    """A record, its data set, and what both should be.

    Attributes:
        recorded: rows in the record. gone: rows that were forgotten. marked: persons that were.
        contents: digest of each recorded row, as it is recorded. lost: digests of rows that were forgotten.
        queue: number -> [kind, names that it holds, state]; names are rows or persons.
    """

    def __init__(self, number, folder):
        self.rng, self.folder = np.random.default_rng(number), folder
        self.rows, self.days = data(N, number), self.rng.integers(20000, 20040, N)
        self.owners = [[f"subject-{self.rng.integers(8)}", f"guardian-{self.rng.integers(4)}"] for _ in range(N)]
        self.recorded, self.gone, self.marked = set(range(30)), set(), set()
        self.contents, self.lost = {i: self.content(i) for i in self.recorded}, set()
        self.queue = {}
        learner = NumpyLearner([0.1, -0.2, 0.3])
        forget.fit(folder, wish(**PLAN), learner, self.rows, self.roster_of(sorted(self.recorded))).record.close()

    def roster_of(self, at):
        x, y = keep(self.rows, at)
        ids, owners, days = [IDS[i] for i in at], [self.owners[i] for i in at], self.days[at]
        return lambda namer: Roster(namer, len(at), ids, owners, lambda i: encode((x[i], y[i])), days)

    def content(self, i):
        return reader.content_digest(KEY, encode((self.rows[0][i], self.rows[1][i])))

    def opened(self):
        return closing(Record.open(self.folder, KEY))

    def unlearn(self, asked, fail_at=None):
        learner = NumpyLearner([9.0] * 3)
        learner.fail_at = fail_at
        with self.opened() as record:
            sources = Sources(learner, self.rows, self.roster_of(list(range(N)))(record.names))
            ask = asked or (lambda _: Wish(queued=True, raw_ids=None))
            return forget.unlearn(record, sources, ask(record), aggregate=lambda _: None)

    def waiting(self, kind=None):
        return {n: e for n, e in self.queue.items() if e[2] == "waiting" and kind in (None, e[0])}

    def persons_of(self, rows):
        return {person for i in rows for person in self.owners[i]}

    # Steps

    def enqueue(self):
        kind = self.rng.choice(["ids", "subjects", "before", "amend", "admit"])
        with self.opened() as record:
            refused, held, call = getattr(self, f"_{kind}")(record)
            if refused is not None:
                with pytest.raises(refused):
                    call()
            else:
                self.queue[call()] = [kind, held, "waiting"]

    def _ids(self, record):
        asked = self.rng.choice(N, self.rng.integers(1, 4)).tolist()
        return *self._looked_up(asked), lambda: record.enqueue(ids=[IDS[i] for i in asked])

    def _amend(self, record):
        asked = self.rng.choice(N, self.rng.integers(1, 4)).tolist()
        return *self._looked_up(asked), lambda: record.amend([IDS[i] for i in asked])

    def _looked_up(self, asked):
        if set(asked) - self.recorded - self.gone:
            return UnknownSamplesError, None
        held = set(asked) & self.recorded
        return None if held else ForgetError, held

    def _subjects(self, record):
        person = self.owners[self.rng.integers(N)][self.rng.integers(2)]
        if person in self.persons_of(self.recorded):
            refused = None
        else:
            refused = ForgetError if person in self.marked else UnknownSamplesError
        return refused, {person}, lambda: record.enqueue(subjects=[person])

    def _before(self, record):
        day = 20000 + int(self.rng.integers(6))
        held = {i for i in self.recorded if self.days[i] < day}
        return None if held else ForgetError, held, lambda: record.enqueue(before=text_of(day))

    def _admit(self, record):
        return None, set(), record.admit

    def withdraw(self):
        if self.waiting():
            number = int(self.rng.choice(list(self.waiting())))
            with self.opened() as record:
                record.withdraw(number)
            self.queue[number][1:] = [set(), "withdrawn"]

    def forget_others(self):
        asked = self.rng.choice(sorted(self.recorded), 2, replace=False).tolist()
        result = self.unlearn(lambda record: Wish(names=record.names.samples([IDS[i] for i in asked])))
        self.strike(set(asked))
        assert any("in the queue" in note for note in result.notes) == bool(self.waiting())

    def strike(self, rows):
        """Take rows, and persons who lose their last one, out of the record and out of the queue."""
        before = self.persons_of(self.recorded)
        self.lost |= {self.contents.pop(i) for i in rows}
        self.recorded, self.gone = self.recorded - rows, self.gone | rows
        lost = before - self.persons_of(self.recorded)
        queued = {person for entry in self.waiting("subjects").values() for person in entry[1]}
        self.marked |= lost & queued
        for entry in self.waiting().values():
            held = entry[1] - rows - lost
            if held != entry[1]:
                entry[1:] = [held, "waiting" if held else "served"]

    def serve(self):
        self.fix()
        forgotten, persons, amended, admitted, entries = self.foreseen()
        result = self.unlearn(None)
        counts = (result.forgotten, result.amended, result.admitted)
        assert (counts, result.entries) == ((len(forgotten), len(amended), len(admitted)), entries)
        self.served(forgotten, persons, admitted)

    def fix(self):
        """Change some labels that wait to be read anew; `fixed` are those that really changed."""
        wanted = sorted({i for entry in self.waiting("amend").values() for i in entry[1]})
        self.fixed = [i for i in wanted if self.rng.integers(2)]
        self.rows[1][self.fixed] = 1 - self.rows[1][self.fixed]

    def foreseen(self):
        """Return rows and persons to forget, rows to amend and to admit, and entries that are served."""
        names = {
            kind: {name for e in self.waiting(kind).values() for name in e[1]} for kind in ("ids", "before", "subjects")
        }
        forgotten = names["ids"] | names["before"]
        forgotten |= {i for i in self.recorded if names["subjects"] & set(self.owners[i])}
        barred = self.marked | names["subjects"]
        new = set(range(N)) - self.recorded - self.gone if self.waiting("admit") else set()
        admitted = {i for i in new if not barred & set(self.owners[i])}
        return forgotten, names["subjects"], set(self.fixed) - forgotten, admitted, tuple(self.waiting())

    def served(self, forgotten, persons, admitted):
        for entry in self.waiting().values():
            entry[1:] = [set(), "served"]
        self.lost |= {self.contents.pop(i) for i in forgotten}
        self.recorded, self.gone = self.recorded - forgotten | admitted, self.gone | forgotten
        self.contents |= {i: self.content(i) for i in admitted | (set(self.fixed) & self.recorded)}
        self.marked |= persons

    def fail(self):
        """Let training fail; then cancel, or let the next call finish it beside what came meanwhile."""
        self.fix()
        forgotten, persons, amended, admitted, _ = self.foreseen()
        try:
            self.unlearn(None, fail_at=(int(self.rng.integers(2)), int(self.rng.integers(2))))
        except ArithmeticError:
            pass
        else:
            self.served(forgotten, persons, admitted)
            return
        with self.opened() as record:
            number = record.requests[-1].number
            if self.rng.integers(2):
                record.cancel(number)
                self.rows[1][self.fixed] = 1 - self.rows[1][self.fixed]
                return
        counts = (len(forgotten), len(amended), len(admitted))
        result = self.unlearn(None)
        assert (result.forgotten, result.amended, result.admitted) == counts and result.request == number
        self.served(forgotten, persons, admitted)

    # Checks

    def check(self):
        found = reader.read_record(self.folder)
        assert reader.defects(found) == []
        tables = found["tables"]
        assert {row["name"] for row in tables["samples"]} == {reader.pseudonym(KEY, IDS[i]) for i in self.recorded}
        held = {n: {row["name"] for row in tables["queued"] if row["entry"] == n} for n in self.queue}
        assert held == {n: set(map(self.name, e[1])) for n, e in self.queue.items()}
        assert {row["number"]: row["state"] for row in tables["queue"]} == {n: e[2] for n, e in self.queue.items()}
        marks = {row["name"] for row in tables["suppressions"]}
        names = [self.name(i) for i in self.gone]
        assert marks == {reader.suppression(KEY, one) for one in {*names, *self.lost, *map(self.name, self.marked)}}
        assert reference.files_holding(self.folder, [*names, *self.lost]) == []
        with self.opened() as record:
            assert len(record.verify().queued) == len(self.waiting())

    def name(self, one):
        return reader.subject_name(KEY, one) if isinstance(one, str) else reader.pseudonym(KEY, IDS[one])


@pytest.mark.parametrize("number", [*range(25), *(pytest.param(n, marks=pytest.mark.long) for n in range(25, 145))])
def test_whatever_waits_and_whoever_comes_first_the_record_is_that_of_a_fit_on_what_is_left(number, tmp_path):
    days = Days(number, tmp_path / "a")
    steps = [days.enqueue] * 6 + [days.withdraw, days.forget_others, days.serve, days.fail]
    for _ in range(12):
        steps[days.rng.integers(len(steps))]()
        days.check()
        if len(days.recorded) < 12:
            break
    days.serve()
    days.check()
    left = sorted(days.recorded)
    learner = NumpyLearner([0.1, -0.2, 0.3])
    plan, rows = wish(**PLAN), keep(days.rows, left)
    forget.fit(tmp_path / "b", plan, learner, rows, days.roster_of(left)).record.close()
    assert_same_record(tmp_path / "a", tmp_path / "b")
