"""Rows that are amended and rows that join: bit for bit a fit of the data set as it is afterwards."""

from contextlib import closing
from dataclasses import fields

import numpy as np
import pytest

from pybrush import forget
from pybrush.build import Sources
from pybrush.content import encode
from pybrush.record import Record
from pybrush.record.resolve import Wish
from pybrush.record.samples import Samples, read_samples
from pybrush.standing import ADMITTED, AMENDED, REFERENCE
from tests import reference
from tests.core import format_reader as reader
from tests.core.numpy_learner import NumpyLearner, roster_of
from tests.core.test_fit_and_forget import KEY, assert_same_record, data, fit, keep, unlearn

N, MORE = 30, 10
IDS = [f"person-{i:012d}" for i in range(N + MORE)]
PEOPLE = [[f"subject-{i % 12}", f"guardian-{i % 5}"] for i in range(N + MORE)]


class Ledgered:
    """A data set of forty rows of which thirty are recorded, with the record and its twin.

    Attributes:
        rows: contents as they are now. ids, subjects: of all rows, or None.
    """

    def __init__(self, folder, ids=IDS, subjects=None, rows=None, first=None, **plan):
        self.folder, self.rows, self.ids, self.subjects, self.plan = folder, rows or data(N + MORE), ids, subjects, plan
        self.rows = self.rows[0].copy(), self.rows[1].copy()
        fit(folder / "a", *self.of(range(N) if first is None else first), **plan)[0].record.close()

    def of(self, order):
        order = np.array(list(order), dtype=int)
        ids, subjects = (None if v is None else [v[i] for i in order] for v in (self.ids, self.subjects))
        return keep(self.rows, order), ids, subjects

    def relabel(self, *places):
        for i in places:
            self.rows[1][i] = 1 - self.rows[1][i]

    def digest(self, i):
        return reference.content_digest(KEY, encode((self.rows[0][i], self.rows[1][i])))

    def ask(self, order=None, learner=None, dry_run=False, **wish):
        """Serve a wish; ids, persons and contents are turned into names."""

        def of(record):
            named = {k: record.names.samples([self.ids[i] for i in wish[k]]) for k in ("names", "amended") if k in wish}
            if "subjects" in wish:
                named["subjects"] = record.names.subjects(wish["subjects"])
            return Wish(**{**wish, **named})

        rows, ids, subjects = self.of(range(N + MORE) if order is None else order)
        return unlearn(self.folder / "a", rows, of, ids, subjects, learner, dry_run=dry_run)

    def assert_like_a_fit_of(self, order):
        twin = self.folder / f"twin-{len(list(self.folder.iterdir()))}"
        fit(twin, *self.of(order), **self.plan)[0].record.close()
        assert_same_record(self.folder / "a", twin)
        with closing(Record.open(self.folder / "a", KEY)) as a, closing(Record.open(twin, KEY)) as b:
            assert a.ledger.rows("SELECT * FROM subjects") == b.ledger.rows("SELECT * FROM subjects")
            assert a.verify().is_clean


ORDERS = pytest.mark.parametrize("order", ["shuffled", "sequential"])


def counts(result):
    return result.forgotten, result.amended, result.admitted


@ORDERS
@pytest.mark.parametrize("chosen", [[4], [4, 11, 17, 23, 29]], ids=["one", "in-several-cells"])
def test_amended_rows_leave_the_bits_of_a_fit_that_only_ever_had_their_new_content(chosen, order, tmp_path):
    record = Ledgered(tmp_path, order=order)
    old = [record.digest(i) for i in chosen]
    assert reference.files_holding(tmp_path / "a", old) == ["ledger.sqlite"]
    record.relabel(*chosen)
    result = record.ask(range(N), amended=chosen)
    assert counts(result) == (0, len(chosen), 0)
    assert reference.files_holding(tmp_path / "a", old) == []
    record.assert_like_a_fit_of(range(N))


def test_an_amended_row_rebuilds_the_stages_that_saw_it_and_no_others(tmp_path):
    record = Ledgered(tmp_path)
    record.relabel(4)
    learner = NumpyLearner([9.0, 9.0, 9.0])
    record.ask(range(N), learner, amended=[4])
    shard, cell = reference.cell(reference.pseudonym(KEY, b"s:" + IDS[4].encode()), 3, 2)
    assert learner.trained == [(shard, later) for later in range(cell, 2)]


@ORDERS
@pytest.mark.parametrize("naming", ["ids", "content", "position"])
def test_rows_that_join_leave_the_bits_of_a_fit_that_had_them_from_the_start(naming, order, tmp_path):
    ids = {"ids": IDS, "content": None, "position": list(range(N + MORE))}[naming]
    record = Ledgered(tmp_path, ids, order=order, naming=naming)
    assert counts(record.ask(admits=True)) == (0, 0, MORE)
    record.assert_like_a_fit_of(range(N + MORE))


def test_where_contents_are_off_rows_join_all_the_same(tmp_path):
    record = Ledgered(tmp_path, contents="off")
    record.ask(admits=True)
    record.assert_like_a_fit_of(range(N + MORE))


@ORDERS
@pytest.mark.parametrize("subjects", [None, PEOPLE], ids=["alone", "with-people"])
def test_a_batch_that_forgets_amends_and_admits_is_one_rebuild_with_the_bits_of_a_fit(subjects, order, tmp_path):
    record = Ledgered(tmp_path, subjects=subjects, order=order)
    gone, digests = [i for i in range(N) if i in (5, 8)], [record.digest(i) for i in (5, 8, 4, 11)]
    record.relabel(4, 11)
    result = record.ask(names=[5, 8], amended=[4, 8, 11], admits=True)
    assert counts(result) == (2, 2, MORE) and result.request == 1
    assert result.guarantee.reference == REFERENCE + AMENDED + ADMITTED
    names = [reference.pseudonym(KEY, b"s:" + IDS[i].encode()) for i in gone]
    assert reference.files_holding(tmp_path / "a", names + digests) == []
    record.assert_like_a_fit_of([i for i in range(N + MORE) if i not in gone])


def test_a_person_and_named_rows_are_forgotten_in_one_batch(tmp_path):
    record = Ledgered(tmp_path, subjects=PEOPLE)
    # The rows 3 and 15 are the person's; the row 3 is named besides, and 27 is to be amended as well.
    record.relabel(27)
    result = record.ask(names=[3, 6], subjects=["subject-3"], amended=[27], admits=True)
    gone = {6} | {i for i in range(N + MORE) if i % 12 == 3}
    assert counts(result) == (len(gone & set(range(N))), 0, len(set(range(N, N + MORE)) - gone))
    record.assert_like_a_fit_of([i for i in range(N + MORE) if i not in gone])


def test_in_a_sequential_order_rows_may_join_in_between_and_change_places(tmp_path):
    record = Ledgered(tmp_path, order="sequential")
    now = np.random.default_rng(3).permutation(N + MORE)
    record.ask(now, admits=True)
    record.assert_like_a_fit_of(now)


def test_in_a_sequential_order_an_amended_row_keeps_its_place(tmp_path):
    record = Ledgered(tmp_path, order="sequential")
    record.ask(names=[0, 1], order=range(N))
    record.relabel(4, 7)
    record.ask(range(2, N), amended=[4, 7])  # the data set has lost its first rows meanwhile
    record.assert_like_a_fit_of(range(2, N))


def equal_rows():
    """Forty rows: 2, 7, 31 and 35 are equal, and 33 and 38 are."""
    x, y = data(N + MORE)
    for first, *others in ([2, 7, 31, 35], [33, 38]):
        x[others], y[others] = x[first], y[first]
    return x, y


def test_more_copies_of_a_recorded_content_join_as_copies(tmp_path):
    record = Ledgered(tmp_path, None, rows=equal_rows())
    result = record.ask(admits=True)
    assert counts(result) == (0, 0, MORE)
    assert "2 of the admitted rows are equal to rows that are recorded" in result.notes[0]
    record.assert_like_a_fit_of(range(N + MORE))


def test_a_further_person_of_a_copy_that_joins_is_recorded_wherever_the_copy_lies_in_the_data_set(tmp_path):
    people = [[f"subject-{i}", f"guardian-{i}"] for i in range(N + MORE)]
    people[31] = ["subject-2", "another-guardian"]
    record = Ledgered(tmp_path, None, people, equal_rows())
    order = [31, *range(31)]
    assert record.ask(order, admits=True).admitted == 2
    record.assert_like_a_fit_of(order)
    assert record.ask(order, subjects=["another-guardian"]).forgotten == 2


def test_a_content_of_which_a_batch_forgets_a_copy_gets_none_in_that_batch(tmp_path):
    record, rows = Ledgered(tmp_path, None, rows=equal_rows()), equal_rows()
    # Of the two recorded copies one is left; the data set still holds four.
    unlearn(tmp_path / "a", rows, lambda r: Wish(names=roster_of(rows)(r.names).names[[7]], admits=True))
    record.assert_like_a_fit_of([i for i in range(N + MORE) if i not in (7, 31, 35)])


def test_whoever_was_forgotten_does_not_join_again_by_name_or_by_person(tmp_path):
    record = Ledgered(tmp_path, subjects=PEOPLE)
    record.ask(range(N), names=[6])
    record.ask(range(N), subjects=["subject-3"])
    record.ask(range(N), subjects=["guardian-1"])
    gone = {i for i in range(N + MORE) if i == 6 or i % 12 == 3 or i % 5 == 1}
    left = [i for i in range(N + MORE) if i not in gone]
    result = record.ask(admits=True)
    assert result.admitted == len(set(left) - set(range(N))) > 0
    assert result.notes == (f"{len(gone)} rows of the data set were forgotten, or are of people who were: left out",)
    record.assert_like_a_fit_of(left)
    again = record.ask(admits=True)
    assert again.method == "none"
    assert again.notes[0].startswith(
        f"no row of the data set is new ({len(gone)} that are not recorded were forgotten)"
    )


def test_many_rows_that_were_forgotten_do_not_join_again_either(tmp_path):
    """Above a thousand names the marks are read at once."""
    n, rng = 2600, np.random.default_rng(1)
    rows, ids = (rng.normal(size=(n, 3)), rng.integers(0, 2, n).astype(float)), list(range(n))
    fit(tmp_path / "a", keep(rows, np.arange(n) < 1300), ids[:1300], epochs=1)[0].record.close()
    unlearn(tmp_path / "a", rows, lambda r: Wish(names=r.names.samples(range(0, 1300, 2))), ids)
    result = unlearn(tmp_path / "a", rows, lambda r: Wish(admits=True), ids)
    assert result.admitted == 1300
    left = np.array([i % 2 == 1 or i >= 1300 for i in ids])
    fit(tmp_path / "b", keep(rows, left), [i for i in ids if left[i]], epochs=1)[0].record.close()
    assert_same_record(tmp_path / "a", tmp_path / "b")


def test_a_row_whose_person_changed_moves_to_that_persons_cell_and_the_old_name_is_gone(tmp_path):
    people = [[f"subject-{i % 12}"] for i in range(N + MORE)]
    people[9], people[16] = ["only-here", "subject-4"], ["subject-4", "subject-5"]
    record = Ledgered(tmp_path, subjects=people)
    subject = reference.subject(KEY, b"s:only-here")
    assert reference.files_holding(tmp_path / "a", [subject]) == ["ledger.sqlite"]
    people[9], people[14], people[16] = ["somebody-else"], ["subject-2", "somebody-else"], ["subject-5", "subject-4"]
    assert counts(record.ask(range(N), amended=[9, 14, 15, 16])) == (0, 3, 0)
    assert reference.files_holding(tmp_path / "a", [subject]) == []
    record.assert_like_a_fit_of(range(N))
    assert record.ask(range(N), subjects=["somebody-else"]).forgotten == 2
    record.assert_like_a_fit_of([i for i in range(N) if i not in (9, 14)])


def test_a_further_person_whose_only_row_is_amended_stays_known(tmp_path):
    people = [["subject-8", "only-here"] if i == 20 else row for i, row in enumerate(PEOPLE)]
    record = Ledgered(tmp_path, subjects=people)
    record.relabel(20)
    record.ask(range(N), amended=[20])
    record.assert_like_a_fit_of(range(N))
    assert record.ask(range(N), subjects=["only-here"]).forgotten == 1


def test_an_amended_row_keeps_its_name_and_is_forgotten_like_any_other(tmp_path):
    record = Ledgered(tmp_path)
    record.relabel(4)
    record.ask(range(N), amended=[4])
    with closing(Record.open(tmp_path / "a", KEY)) as opened:
        assert opened.ledger.rows("SELECT count(*) FROM suppressions") == [(0,)]
    new = record.digest(4)
    assert record.ask(range(N), names=[4]).forgotten == 1
    assert reference.files_holding(tmp_path / "a", [new]) == []
    record.assert_like_a_fit_of([i for i in range(N) if i != 4])
    for again in ({"amended": [4]}, {"amended": [4], "names": [4]}):
        result = record.ask(range(N), **again)
        assert result.method == "none" and result.notes[0].startswith("all 1 were forgotten before")


def test_a_content_that_another_row_has_stays_and_the_search_passes(tmp_path):
    record = Ledgered(tmp_path)
    x, y = record.rows
    x[4], y[4] = x[5], y[5]  # now equal to a row that is forgotten at the same time
    result = record.ask(range(N), names=[5], amended=[4])
    assert counts(result) == (1, 1, 0) and result.audit["equal_rows_left"] == 1
    record.assert_like_a_fit_of([i for i in range(N) if i != 5])


def test_duplicates_of_a_forgotten_row_are_forgotten_and_not_amended(tmp_path):
    rows = equal_rows()
    record = Ledgered(tmp_path, rows=rows)
    record.relabel(2, 4)
    result = record.ask(range(N), names=[7], amended=[2, 4], duplicates="forget")
    assert counts(result) == (2, 1, 0) and result.audit["equal_rows_left"] == 0
    record.assert_like_a_fit_of([i for i in range(N) if i not in (2, 7)])


def test_a_shard_that_had_too_few_rows_is_trained_once_rows_join(tmp_path):
    plan = {"shards": 6, "slices": 2}
    shards = [reference.cell(reference.pseudonym(KEY, b"s:" + i.encode()), 6, 2)[0] for i in IDS]
    rare = max(set(shards), key=shards[N:].count)
    first = [i for i in range(N) if shards[i] != rare or i == shards.index(rare)]
    record = Ledgered(tmp_path, first=first, **plan)
    with closing(Record.open(tmp_path / "a", KEY)) as opened:
        assert rare not in opened.constituents()
    result = record.ask([*first, *range(N, N + MORE)], admits=True)
    assert rare in result.shards and result.left_out == ()
    record.assert_like_a_fit_of([*first, *range(N, N + MORE)])


def test_what_is_already_as_asked_changes_nothing_and_the_result_says_so(tmp_path):
    record = Ledgered(tmp_path)
    before = (tmp_path / "a" / "ledger.sqlite").read_bytes()
    result = record.ask(range(N), amended=[4, 5], admits=True)
    assert (result.method, result.request, *counts(result)) == ("none", 0, 0, 0, 0)
    said = "the 2 rows to amend are as they are recorded; no row of the data set is new; nothing was left to do"
    assert result.notes == (said,)
    assert (tmp_path / "a" / "ledger.sqlite").read_bytes() == before


def test_a_dry_run_counts_what_would_be_amended_and_admitted_and_touches_nothing(tmp_path):
    record = Ledgered(tmp_path)
    record.relabel(4)
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    foretold = record.ask(dry_run=True, names=[5], amended=[4, 6], admits=True)
    after = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert counts(foretold) == (1, 1, MORE)
    assert {path: after[path] for path in before} == before
    assert foretold.notes[-1] == "1 rows to amend are as they are recorded and were passed over"
    done = record.ask(names=[5], amended=[4, 6], admits=True)
    assert (done.guarantee, done.cost.visits) == (foretold.guarantee, foretold.cost.visits)
    assert done.guarantee.reference == REFERENCE + AMENDED + ADMITTED


def test_a_guarantee_compares_with_what_the_request_did(tmp_path):
    record = Ledgered(tmp_path)
    record.relabel(4)
    assert record.ask(range(N), amended=[4]).guarantee.reference == REFERENCE + AMENDED
    assert record.ask(admits=True).guarantee.reference == REFERENCE + ADMITTED
    assert record.ask(names=[3]).guarantee.reference == REFERENCE


def test_the_report_shows_what_was_amended_and_admitted(tmp_path):
    record = Ledgered(tmp_path)
    record.relabel(4, 6)
    page = record.ask(names=[5], amended=[4, 6], admits=True).report(tmp_path / "page.html").read_text()
    assert all(f"<th>rows {what}</th><td>{n}</td>" in page for what, n in (("amended", 2), ("admitted", MORE)))
    assert "<h1>Erasure request 1</h1>" in page
    plain = record.ask(names=[7]).report(tmp_path / "plain.html").read_text()
    assert "rows forgotten" in plain and "rows amended" not in plain and "rows admitted" not in plain
    record.relabel(8)
    assert "<h1>Request 3</h1>" in record.ask(amended=[8]).report(tmp_path / "amended.html").read_text()


def test_the_ledger_counts_the_rows_that_a_request_changed(tmp_path):
    record = Ledgered(tmp_path)
    record.relabel(4, 6)
    record.ask(names=[5], amended=[4, 6], admits=True)
    with closing(Record.open(tmp_path / "a", KEY)) as opened:
        (request,) = opened.requests
        assert request.rows == 1 + 2 + MORE
        assert [request.outcome[name] for name in ("rows", "amended", "admitted")] == [1, 2, MORE]


def test_new_rows_are_not_warned_about_where_they_join_and_elsewhere_the_warning_names_the_way(tmp_path, caplog):
    record = Ledgered(tmp_path)
    record.ask(names=[5])
    assert "10 rows of the data set are not recorded" in caplog.text and "record.admit()" in caplog.text
    caplog.clear()
    record.ask(admits=True)
    assert "not recorded" not in caplog.text


def test_three_requests_of_all_kinds_in_a_row_resurrect_nothing_and_drop_nothing(tmp_path):
    record = Ledgered(tmp_path, subjects=PEOPLE)
    record.relabel(4)
    record.ask(range(N + 4), names=[5], amended=[4], admits=True)
    record.relabel(31, 4)
    record.ask(range(N + 7), subjects=["subject-9"], amended=[4, 31], admits=True)
    record.ask(names=[31], admits=True)
    record.assert_like_a_fit_of([i for i in range(N + MORE) if i not in (5, 31) and i % 12 != 9])


@ORDERS
def test_what_a_record_remembers_of_its_samples_after_a_batch_is_what_its_ledger_says(order, tmp_path):
    rows = Ledgered(tmp_path, subjects=PEOPLE, order=order)
    rows.relabel(4)
    with closing(Record.open(tmp_path / "a", KEY)) as record:
        forgotten, amended = (record.names.samples([i]) for i in (IDS[5], IDS[4]))
        here, ids, subjects = rows.of(range(N + MORE))
        sources = Sources(NumpyLearner([9.0, 9.0, 9.0]), here, roster_of(here, ids, subjects)(record.names))
        ask = Wish(forgotten, amended=amended, admits=True)
        forget.unlearn(record, sources, ask, aggregate=lambda _: None)
        remembered, said = record.samples(), read_samples(record.ledger)
        assert len(said) == N + MORE - 1
        for column in fields(Samples):
            assert np.array_equal(getattr(remembered, column.name), getattr(said, column.name)), column.name


@ORDERS
def test_a_reader_that_knows_only_the_page_reads_a_batch_that_waits_and_the_record_that_it_leaves(order, tmp_path):
    batch, learner = Ledgered(tmp_path, subjects=PEOPLE, order=order), NumpyLearner([9.0, 9.0, 9.0])
    batch.relabel(4)
    learner.fail_at = 2, 1
    with pytest.raises(ArithmeticError):
        batch.ask(learner=learner, names=[5], amended=[4], admits=True)
    found = reader.read_record(tmp_path / "a")
    assert reader.defects(found) == []
    pending, ordered = found["pending"][1], order == "sequential"
    contents = {reader.pseudonym(KEY, IDS[i]): batch.digest(i) for i in (4, *range(N, N + MORE))}
    assert {row[0]: row[2] for row in pending["added"]} == contents
    owners = {
        (reader.subject_name(KEY, p), reader.pseudonym(KEY, IDS[i])) for i in (4, *range(N, 40)) for p in PEOPLE[i]
    }
    assert set(pending["pairs"]) == owners and pending["pairs"] == sorted(owners)
    left = sorted((reader.pseudonym(KEY, name), i) for i, name in enumerate(IDS) if i != 5)
    assert pending["places"] == ([i for _, i in left] if ordered else [])
    batch.ask(names=[5], amended=[4], admits=True)
    found = reader.read_record(tmp_path / "a")
    assert reader.defects(found) == [] and found["pending"] == {}
    positions = {row["name"]: row["position"] for row in found["tables"]["samples"]}
    assert positions == {name: i if ordered else None for name, i in left}
