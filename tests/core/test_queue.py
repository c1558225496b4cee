"""What waits in the queue of a record: how it comes in, who serves it, and what is left of it."""

import json
import sqlite3
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from pybrush import forget
from pybrush.build import Sources
from pybrush.content import encode
from pybrush.days import day_of
from pybrush.errors import (
    CorruptRecordError,
    ForgetError,
    RecordError,
    SecretKeyError,
    UnknownSamplesError,
    UnsupportedError,
)
from pybrush.record import Record, queue
from pybrush.record.resolve import Wish
from pybrush.request import Roster
from tests import reference
from tests.core import format_reader as reader
from tests.core.numpy_learner import NumpyLearner, wish
from tests.core.test_fit_and_forget import KEY, assert_same_record, by_ids, data, fit, keep, unlearn

N = 24
IDS = [f"person-{i:012d}" for i in range(N)]
OWNERS = [[f"subject-{i % 8}", f"guardian-{i % 8}"] for i in range(N)]
DAYS = np.array([day_of("2026-01-01") + i for i in range(N)])
TODAY = "2999-01-01"


@pytest.fixture
def folder(tmp_path):
    """A record of twenty-four ids, three of each of eight people, one a day."""
    forget.fit(tmp_path / "a", wish(), NumpyLearner([0.1, -0.2, 0.3]), data(N), dated()).record.close()
    return tmp_path / "a"


def dated(rows=None, ids=IDS, owners=OWNERS, days=DAYS):
    rows = rows or data(N)
    return lambda namer: Roster(namer, len(rows[1]), ids, owners, lambda i: encode((rows[0][i], rows[1][i])), days)


def opened(folder):
    return closing(Record.open(folder, KEY))


def serve(folder, ask=None, rows=None, **more):
    ask = ask or (lambda _: Wish(queued=True, raw_ids=None))
    return unlearn(folder, rows or data(N), ask, IDS, OWNERS, **more)


def twin(folder, gone):
    left = np.array([i not in gone for i in range(N)])
    kept = np.flatnonzero(left)
    fit(folder, keep(data(N), left), [IDS[i] for i in kept], [OWNERS[i] for i in kept])[0].record.close()
    return folder


def name_of(i):
    return reader.pseudonym(KEY, IDS[i])


def subject_of(text):
    return reader.subject_name(KEY, text)


def states_of(folder):
    with opened(folder) as record:
        return [(entry.number, entry.state, entry.request) for entry in record.queue]


def queued_in(folder):
    tables = reader.read_record(folder)["tables"]
    return {
        row["number"]: {q["name"] for q in tables["queued"] if q["entry"] == row["number"]} for row in tables["queue"]
    }


# What comes in


def test_an_entry_is_told_with_its_rows_and_the_days_it_waits(folder):
    with opened(folder) as record:
        numbers = [
            record.enqueue(ids=[IDS[3], IDS[4], IDS[3]]),
            record.enqueue(subjects=["subject-1", "guardian-2"]),
            record.enqueue(before="2026-01-06"),
            record.amend([IDS[9]]),
            record.admit(),
        ]
        assert numbers == [1, 2, 3, 4, 5]
        kinds = [(entry.kind, entry.rows) for entry in record.queue]
        assert kinds == [("ids", 2), ("subjects", 6), ("before", 5), ("amend", 1), ("admit", 0)]
        assert {(entry.state, entry.request, entry.days) for entry in record.queue} == {("waiting", None, 0)}
    assert queued_in(folder) == {
        1: {name_of(3), name_of(4)},
        2: {subject_of("subject-1"), subject_of("guardian-2")},
        3: {name_of(i) for i in range(5)},
        4: {name_of(9)},
        5: set(),
    }
    assert reader.defects(reader.read_record(folder)) == []


def test_an_entry_touches_neither_samples_nor_stages(folder):
    before = reader.read_record(folder)["tables"]
    with opened(folder) as record:
        record.enqueue(ids=IDS[:3])
    after = reader.read_record(folder)["tables"]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"queue", "queued", "events"}


def test_it_needs_the_key(folder):
    with closing(Record(folder, Record.open(folder, KEY).ledger, None)) as record, pytest.raises(SecretKeyError):
        record.enqueue(ids=IDS[:1])


@pytest.mark.parametrize("kind", ["ids", "subjects"])
def test_whoever_is_unknown_is_refused_at_once_in_the_words_of_unlearn(folder, kind):
    asked = [*(IDS[:2] if kind == "ids" else ["subject-1"]), *(f"stranger-{i}" for i in range(7))]
    name = "samples" if kind == "ids" else "subjects"
    ask = lambda r: Wish(**{"names" if kind == "ids" else kind: getattr(r.names, name)(asked)})  # noqa: E731
    with pytest.raises(UnknownSamplesError) as of_unlearn:
        serve(folder, ask)
    before = (folder / "ledger.sqlite").read_bytes()
    with opened(folder) as record, pytest.raises(UnknownSamplesError) as of_queue:
        record.enqueue(**{kind: asked})
    told = [str(error.value).partition(" (pseudonyms ") for error in (of_unlearn, of_queue)]
    assert told[0][0] == told[1][0] and told[0][0].startswith(f"7 of {len(asked)} {name} to forget")
    assert [text[2].count(", ") for text in told] == [6, 6]  # five names, and more
    assert (folder / "ledger.sqlite").read_bytes() == before


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({}, ForgetError, "in one way"),
        ({"ids": [IDS[0]], "before": TODAY}, ForgetError, "in one way"),
        ({"ids": [IDS[0]], "subjects": ["subject-1"]}, ForgetError, "in one way"),
        ({"ids": []}, ForgetError, "empty"),
        ({"subjects": []}, ForgetError, "empty"),
        ({"ids": IDS[0]}, ForgetError, "takes a list"),
        ({"before": "2026-01-01"}, ForgetError, "no recorded row is older than 2026-01-01"),
    ],
)
def test_what_names_nothing_or_two_things_is_refused_and_nothing_is_written(folder, asked, error, words):
    before = (folder / "ledger.sqlite").read_bytes()
    with opened(folder) as record, pytest.raises(error, match=words):
        record.enqueue(**asked)
    assert (folder / "ledger.sqlite").read_bytes() == before


def test_a_record_without_ids_takes_no_ids_and_amends_nothing(tmp_path):
    fit(tmp_path / "a", data(N), subjects=OWNERS)[0].record.close()
    with opened(tmp_path / "a") as record:
        with pytest.raises(ForgetError, match="names samples by content"):
            record.enqueue(ids=[1])
        with pytest.raises(UnsupportedError, match=r"names rows by their content.*admit the new"):
            record.amend([1])
        assert record.queue == ()


def test_without_content_digests_nothing_is_amended(tmp_path):
    roster = lambda namer: Roster(namer, N, IDS, None, None)  # noqa: E731
    forget.fit(tmp_path / "a", wish(contents="off"), NumpyLearner([0.1, -0.2, 0.3]), data(N), roster).record.close()
    with opened(tmp_path / "a") as record, pytest.raises(UnsupportedError, match="keeps no content digests"):
        record.amend(IDS[:1])


def test_who_was_forgotten_before_is_passed_over_and_an_entry_of_only_such_is_refused(folder):
    serve(folder, by_ids(IDS[:2]))
    with opened(folder) as record:
        with pytest.raises(ForgetError, match="all 2 were forgotten before"):
            record.enqueue(ids=IDS[:2])
        record.enqueue(ids=IDS[:4])
        assert [entry.rows for entry in record.queue] == [2]
    assert queued_in(folder) == {1: {name_of(2), name_of(3)}}


def test_rows_are_older_by_their_own_day_or_else_by_that_on_which_they_were_recorded(tmp_path, folder):
    today = datetime.now(UTC).date()
    fit(tmp_path / "b", data(N), IDS)[0].record.close()
    with opened(tmp_path / "b") as record:
        with pytest.raises(ForgetError, match="older"):
            record.enqueue(before=today)
        record.enqueue(before=today + timedelta(days=2))
        assert record.queue[0].rows == N
    with opened(folder) as record:
        for day, rows in ((date(2026, 1, 2), 1), (datetime(2026, 1, 3, 23), 2), (np.datetime64("2026-01-24"), 23)):
            record.enqueue(before=day)
            assert record.queue[-1].rows == rows


# What serves it


def test_all_that_waits_is_served_by_one_request_with_the_bits_of_a_fit_without_it(folder, tmp_path):
    with opened(folder) as record:
        record.enqueue(ids=[IDS[9]])
        record.enqueue(subjects=["subject-4"])
        record.enqueue(ids=[IDS[17], IDS[20]])
        record.enqueue(before="2026-01-03")
    result = serve(folder)
    gone = {9, 17, 4, 12, 20, 0, 1}
    assert_same_record(folder, twin(tmp_path / "b", gone))
    assert (result.request, result.forgotten, result.entries) == (1, 7, (1, 2, 3, 4))
    assert states_of(folder) == [(number, "served", 1) for number in (1, 2, 3, 4)]
    names = [name_of(i) for i in gone] + [subject_of("subject-4"), subject_of("guardian-4")]
    assert reference.files_holding(folder, names) == []
    assert result.audit["searched"] == "names and digests only"
    marks = {row["name"] for row in reader.read_record(folder)["tables"]["suppressions"]}
    assert reader.suppression(KEY, subject_of("subject-4")) in marks
    assert reader.defects(reader.read_record(folder)) == []


def test_of_equal_rows_that_are_too_old_all_copies_are_forgotten(tmp_path):
    x, y = data(N)
    x[[5, 9, 12]], y[[5, 9, 12]] = x[5], y[5]
    plan, learner = wish(naming="content"), NumpyLearner([0.1, -0.2, 0.3])
    forget.fit(tmp_path / "a", plan, learner, (x, y), dated((x, y), None, None)).record.close()
    with opened(tmp_path / "a") as record:
        record.enqueue(before="2026-01-07")
        assert record.queue[0].rows == 8
    assert unlearn(tmp_path / "a", (x, y), lambda _: Wish(queued=True)).forgotten == 8
    left = ~np.isin(np.arange(N), (0, 1, 2, 3, 4, 5, 9, 12))
    fit(tmp_path / "b", keep((x, y), left))[0].record.close()
    assert_same_record(tmp_path / "a", tmp_path / "b")


def test_an_empty_queue_is_served_by_nothing_and_that_is_said(folder):
    result = serve(folder)
    assert (result.method, result.request, result.entries) == ("none", 0, ())
    assert "no entry waits in the queue" in result.notes[0]
    with opened(folder) as record:
        assert record.requests == ()


def test_a_dry_run_prices_the_queue_and_leaves_it(folder):
    with opened(folder) as record:
        record.enqueue(ids=IDS[:2])
    before = (folder / "ledger.sqlite").read_bytes()
    foretold = serve(folder, dry_run=True)
    assert (foretold.forgotten, foretold.entries) == (2, (1,)) and foretold.cost.stages_rebuilt > 0
    assert (folder / "ledger.sqlite").read_bytes() == before


def test_what_names_something_else_leaves_the_queue_and_says_so(folder, caplog):
    with opened(folder) as record:
        record.enqueue(ids=[IDS[5]])
        record.admit()
    for result in (serve(folder, by_ids([IDS[7]])), serve(folder, by_ids([IDS[7]]))):  # the second has nothing to do
        assert any("2 entries wait in the queue, the oldest for 0 days" in note for note in result.notes)
    assert states_of(folder) == [(1, "waiting", None), (2, "waiting", None)]
    with caplog.at_level("WARNING"):
        fit(folder, keep(data(N), np.arange(N) != 7), [i for i in IDS if i != IDS[7]], None)[0].record.close()
    assert sum("2 entries wait in the queue" in message for message in caplog.messages) == 1


def test_names_that_another_request_forgets_leave_their_entries_in_its_commit(folder, tmp_path):
    with opened(folder) as record:
        record.enqueue(ids=[IDS[5], IDS[6]])
        record.enqueue(ids=[IDS[5]])
        record.amend([IDS[5], IDS[8]])
        record.enqueue(subjects=["subject-5", "subject-2"])
    serve(folder, by_ids([IDS[5], IDS[13], IDS[21]]))  # all rows of subject-5
    assert states_of(folder) == [(1, "waiting", None), (2, "served", 1), (3, "waiting", None), (4, "waiting", None)]
    assert queued_in(folder) == {1: {name_of(6)}, 2: set(), 3: {name_of(8)}, 4: {subject_of("subject-2")}}
    names = [name_of(i) for i in (5, 13, 21)] + [subject_of("subject-5"), subject_of("guardian-5")]
    assert reference.files_holding(folder, names) == []
    tables = reader.read_record(folder)["tables"]
    marks = {row["name"] for row in tables["suppressions"]}
    assert reader.suppression(KEY, subject_of("subject-5")) in marks  # it asked, and waits no longer
    assert reader.suppression(KEY, subject_of("guardian-5")) not in marks
    assert reader.defects(reader.read_record(folder)) == []
    with opened(folder) as record:
        record.verify()


def test_a_person_who_is_forgotten_by_another_request_leaves_the_queue_too(folder):
    with opened(folder) as record:
        record.enqueue(subjects=["subject-2"])
        record.enqueue(subjects=["guardian-2", "subject-4"])
        record.enqueue(ids=[IDS[2], IDS[3]])
    serve(folder, lambda record: Wish(subjects=record.names.subjects(["subject-2"])))
    assert states_of(folder) == [(1, "served", 1), (2, "waiting", None), (3, "waiting", None)]
    assert queued_in(folder) == {1: set(), 2: {subject_of("subject-4")}, 3: {name_of(3)}}
    assert reference.files_holding(folder, [subject_of("subject-2"), subject_of("guardian-2"), name_of(2)]) == []
    assert reader.defects(reader.read_record(folder)) == []


def test_an_entry_that_comes_while_a_request_is_open_and_names_its_rows_is_served_by_it(folder):
    learner = NumpyLearner([0.0] * 3)
    learner.fail_at = first_stage_of(folder, 5)
    with pytest.raises(ArithmeticError):
        serve(folder, by_ids([IDS[5]]), learner=learner)
    with opened(folder) as record:
        record.enqueue(ids=[IDS[5]])
        record.enqueue(ids=[IDS[6]])
    result = serve(folder)
    assert (result.request, result.entries) == (2, (2,))
    assert states_of(folder) == [(1, "served", 1), (2, "served", 2)]


def test_an_open_request_of_others_is_finished_first_and_is_not_the_answer_to_an_empty_queue(folder):
    learner = NumpyLearner([0.0] * 3)
    learner.fail_at = first_stage_of(folder, 5)
    with pytest.raises(ArithmeticError):
        serve(folder, by_ids([IDS[5]]), learner=learner)
    result = serve(folder)
    assert (result.method, result.request, result.entries) == ("none", 0, ())
    with opened(folder) as record:
        assert [request.state for request in record.requests] == ["sealed"]


def first_stage_of(folder, i):
    with opened(folder) as record:
        samples = record.samples()
        at = samples.find(record.names.samples([IDS[i]]))[0]
        return int(samples.shards[at]), int(samples.slices[at])


@pytest.fixture
def failed(folder):
    """A record whose queue is being served by a request that failed."""
    with opened(folder) as record:
        record.enqueue(ids=[IDS[5]])
        record.enqueue(subjects=["subject-3"])
    learner = NumpyLearner([0.0] * 3)
    learner.fail_at = first_stage_of(folder, 5)
    with pytest.raises(ArithmeticError):
        serve(folder, learner=learner)
    assert states_of(folder) == [(1, "accepted", 1), (2, "accepted", 1)]
    return folder


def test_a_request_that_failed_has_its_entries_and_the_next_call_finishes_it_for_them(failed, tmp_path):
    assert reader.defects(reader.read_record(failed)) == []
    with opened(failed) as record:
        assert record.verify().queued == ()
        assert [entry.days for entry in record.queue] == [0, 0]
    result = serve(failed)
    assert (result.request, result.forgotten, result.entries) == (1, 4, (1, 2))
    assert_same_record(failed, twin(tmp_path / "b", {5, 3, 11, 19}))
    assert states_of(failed) == [(1, "served", 1), (2, "served", 1)]


def test_what_came_meanwhile_is_served_after_the_request_that_was_open(failed, tmp_path):
    with opened(failed) as record:
        record.enqueue(ids=[IDS[7]])
    foretold = serve(failed, dry_run=True)  # of what waits; what was taken is the open request's
    assert (foretold.forgotten, foretold.entries) == (1, (3,))
    assert any("request 1 is not finished" in note for note in foretold.notes)
    result = serve(failed)
    assert (result.request, result.forgotten, result.entries) == (2, 1, (3,))
    assert states_of(failed) == [(1, "served", 1), (2, "served", 1), (3, "served", 2)]
    assert_same_record(failed, twin(tmp_path / "b", {5, 3, 11, 19, 7}))


def test_the_entries_of_a_request_that_is_cancelled_wait_again(failed, tmp_path):
    with opened(failed) as record:
        with pytest.raises(RecordError, match=r"entry 1 .* is accepted.*cancel request 1"):
            record.withdraw(1)
        record.cancel(1)
        assert {(entry.state, entry.request) for entry in record.queue} == {("waiting", None)}
    assert reader.defects(reader.read_record(failed)) == []
    assert queued_in(failed) == {1: {name_of(5)}, 2: {subject_of("subject-3")}}
    assert serve(failed).request == 2
    assert_same_record(failed, twin(tmp_path / "b", {5, 3, 11, 19}))


def test_a_fit_finishes_a_request_for_the_queue_and_leaves_what_came_since(failed):
    with opened(failed) as record:
        record.enqueue(ids=[IDS[7]])
    fit(failed, data(N), IDS, OWNERS)[0].record.close()
    assert states_of(failed) == [(1, "served", 1), (2, "served", 1), (3, "waiting", None)]


def test_an_entry_that_is_withdrawn_leaves_no_name_and_nobody_suppressed(folder):
    with opened(folder) as record:
        record.withdraw(record.enqueue(ids=IDS[:2]))
        for entry in (1, 2):
            with pytest.raises(RecordError, match="only a waiting one"):
                record.withdraw(entry)
    assert states_of(folder) == [(1, "withdrawn", None)] and queued_in(folder) == {1: set()}
    assert serve(folder).method == "none"
    assert reader.read_record(folder)["tables"]["suppressions"] == []
    assert reader.defects(reader.read_record(folder)) == []


def test_an_entry_that_is_withdrawn_while_its_request_is_worked_out_stops_that_and_nothing_was_touched(folder):
    with opened(folder) as record:
        record.enqueue(ids=[IDS[5]])
        record.enqueue(ids=[IDS[6]])
    rows = data(N)

    def encoded(position):  # what a stage is to be trained on is read before the request is accepted
        with opened(folder) as other:
            if other.queue[0].state == "waiting":
                other.withdraw(1)
        return encode((rows[0][position], rows[1][position]))

    with opened(folder) as record:
        sources = Sources(NumpyLearner([0.0] * 3), rows, Roster(record.names, N, IDS, OWNERS, encoded))
        with pytest.raises(RecordError, match=r"1 entries of the queue were withdrawn or served .*\(1\)"):
            forget.unlearn(record, sources, Wish(queued=True), aggregate=lambda _: None)
        assert record.requests == ()
    assert states_of(folder) == [(1, "withdrawn", None), (2, "waiting", None)]
    assert serve(folder).entries == (2,)


def test_rows_older_than_a_date_are_forgotten_at_once(folder, tmp_path):
    result = serve(folder, lambda _: Wish(before=day_of("2026-01-08")))
    assert result.forgotten == 7
    assert_same_record(folder, twin(tmp_path / "b", set(range(7))))
    again = serve(folder, lambda _: Wish(before=day_of("2026-01-08")))
    assert (again.method, again.request) == ("none", 0)
    assert "no recorded row is older than 2026-01-08" in again.notes[0]


# Rows that change and rows that join


def changed_rows():
    """The data set as it is when the queue is served: two labels fixed, six rows new."""
    x, y = data(N + 6)
    x[:N], y[:N] = data(N)
    y[[2, 11]] = 1 - y[[2, 11]]
    return x, y


MORE_IDS = [*IDS, *(f"person-{i:012d}" for i in range(N, N + 6))]
MORE_OWNERS = [*OWNERS, *([f"subject-{i % 8}", f"guardian-{i % 8}"] for i in range(N, N + 6))]
MORE_DAYS = np.append(DAYS, [day_of("2027-01-01")] * 6)


def enqueue_all_kinds(folder):
    with opened(folder) as record:
        record.enqueue(ids=[IDS[9], IDS[17]])
        record.enqueue(subjects=["subject-3"])
        record.enqueue(before="2026-01-03")
        record.amend([IDS[2], IDS[11], IDS[14], IDS[0]])  # one that is as recorded, one that is too old
        record.admit()


def serve_changed(folder, days=MORE_DAYS):
    with opened(folder) as record:
        roster = dated(changed_rows(), MORE_IDS, MORE_OWNERS, days)(record.names)
        sources = Sources(NumpyLearner([9.0] * 3), changed_rows(), roster)
        return forget.unlearn(record, sources, Wish(queued=True, raw_ids=None), aggregate=lambda _: None)


def test_one_request_forgets_amends_and_admits_with_the_bits_of_a_fit_on_what_is_then_there(folder, tmp_path):
    enqueue_all_kinds(folder)
    result = serve_changed(folder)
    gone = {9, 17, 3, 11, 19, 27, 0, 1}  # whose label was fixed too, and who joins no more
    left = [i for i in range(N + 6) if i not in gone]
    fit(tmp_path / "b", keep(changed_rows(), left), [MORE_IDS[i] for i in left], [MORE_OWNERS[i] for i in left])
    assert_same_record(folder, tmp_path / "b")
    counts = (result.forgotten, result.amended, result.admitted)
    assert (result.request, result.entries, counts) == (1, (1, 2, 3, 4, 5), (7, 1, 5))
    with opened(folder) as record:
        assert record.verify().is_clean
    assert reader.defects(reader.read_record(folder)) == []
    old = [reader.content_digest(KEY, encode((data(N)[0][i], data(N)[1][i]))) for i in (2, 11)]
    assert reference.files_holding(folder, [*old, *(reader.pseudonym(KEY, MORE_IDS[i]) for i in gone)]) == []


def test_a_row_that_joins_has_its_own_day_and_one_that_is_amended_keeps_its_day_where_none_is_given(folder, tmp_path):
    enqueue_all_kinds(folder)
    serve_changed(folder, None)
    rows = {row["name"]: row["day"] for row in reader.read_record(folder)["tables"]["samples"]}
    assert rows[name_of(2)] == DAYS[2]
    assert rows[reader.pseudonym(KEY, MORE_IDS[N])] >= day_of(datetime.now(UTC).date()) - 1
    forget.fit(tmp_path / "b", wish(), NumpyLearner([0.1, -0.2, 0.3]), data(N), dated()).record.close()
    enqueue_all_kinds(tmp_path / "b")
    later = MORE_DAYS + 7
    serve_changed(tmp_path / "b", later)
    rows = {row["name"]: row["day"] for row in reader.read_record(tmp_path / "b")["tables"]["samples"]}
    assert rows[name_of(2)] == later[2] and rows[name_of(14)] == DAYS[14]  # only what changed is read anew
    assert rows[reader.pseudonym(KEY, MORE_IDS[N])] == later[N]


def test_a_further_copy_of_a_row_makes_its_day_the_earliest(tmp_path):
    rows = data(N)
    plan, learner = wish(naming="content"), NumpyLearner([0.1, -0.2, 0.3])
    forget.fit(tmp_path / "a", plan, learner, rows, dated(rows, None, None)).record.close()
    more = np.append(np.arange(N), [4, 5])
    days = np.append(DAYS, [3, day_of("2027-01-01")])
    with opened(tmp_path / "a") as record:
        record.admit()
        sources = Sources(
            NumpyLearner([9.0] * 3), keep(rows, more), dated(keep(rows, more), None, None, days)(record.names)
        )
        assert forget.unlearn(record, sources, Wish(queued=True), aggregate=lambda _: None).admitted == 2
    found = {(row["copies"], row["day"]) for row in reader.read_record(tmp_path / "a")["tables"]["samples"]}
    assert {(2, 3), (2, int(DAYS[5]))} <= found


def test_entries_for_which_there_is_nothing_to_do_are_served_without_a_request(folder):
    with opened(folder) as record:
        record.amend([IDS[4]])
        record.admit()
    result = serve(folder)
    assert (result.method, result.request, result.entries) == ("none", 0, (1, 2))
    assert "as they are recorded" in result.notes[0] and "no row of the data set is new" in result.notes[0]
    assert states_of(folder) == [(1, "served", None), (2, "served", None)] and queued_in(folder) == {1: set(), 2: set()}
    assert reader.defects(reader.read_record(folder)) == []
    with opened(folder) as record:
        assert record.verify().is_clean


def test_what_is_to_be_amended_and_unknown_is_refused_with_that_word(folder):
    with opened(folder) as record:
        with pytest.raises(UnknownSamplesError, match="1 of 1 samples to amend"):
            record.amend(["stranger"])
        with pytest.raises(ForgetError, match="rows to amend is empty"):
            record.amend([])


def test_a_request_that_is_made_again_on_another_day_is_the_same(folder, monkeypatch):
    learner = NumpyLearner([0.0] * 3)
    roster = dated(changed_rows(), MORE_IDS, MORE_OWNERS, None)
    learner.fail_at = first_stage_of(folder, 5)
    with opened(folder) as record:
        sources = Sources(learner, changed_rows(), roster(record.names))
        asked = Wish(amended=record.names.samples([IDS[2], IDS[11]]), admits=True)
        with pytest.raises(ArithmeticError):
            forget.unlearn(record, sources, asked, aggregate=lambda _: None)
        learner.fail_at = None
        monkeypatch.setattr("pybrush.record.joining.now", lambda: "2999-01-01T00:00:00Z")
        result = forget.unlearn(record, sources, asked, aggregate=lambda _: None)
        assert (result.request, result.admitted, len(record.requests)) == (1, 6, 1)
    assert max(row["day"] for row in reader.read_record(folder)["tables"]["samples"]) < day_of("2999-01-01")


def test_whoever_is_forgotten_while_an_entry_waits_for_the_lock_is_not_written_down_again(folder, monkeypatch):
    lock = queue.coordinator_lock

    @contextmanager
    def late(place):
        monkeypatch.setattr(queue, "coordinator_lock", lock)
        serve(folder, by_ids([IDS[5]]))
        with lock(place):
            yield

    monkeypatch.setattr(queue, "coordinator_lock", late)
    with opened(folder) as record, pytest.raises(ForgetError, match="all 1 were forgotten before"):
        record.enqueue(ids=[IDS[5]])
    assert reference.files_holding(folder, [name_of(5)]) == []


# What tells of it


def test_verify_tells_what_waits_and_is_not_clean_until_it_is_served(folder):
    with opened(folder) as record:
        assert record.verify().is_clean and record.verify().queued == ()
        record.enqueue(ids=IDS[:2])
        found = record.verify()
        assert not found.is_clean and found.queued == ("1: ids, 2 rows, 0 days old",)
    serve(folder)
    with opened(folder) as record:
        assert record.verify().is_clean


def test_info_has_every_entry_with_the_days_that_it_waits(folder):
    with opened(folder) as record:
        record.enqueue(ids=IDS[:2])
        record.withdraw(record.admit())
    with closing(sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)) as ledger:
        past = (datetime.now(UTC) - timedelta(days=12, hours=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
        ledger.execute("UPDATE queue SET enqueued = ?", (past,))
    with closing(Record(folder, Record.open(folder, KEY).ledger, None)) as record:  # without the key
        assert [(entry.number, entry.days) for entry in record.info().queue] == [(1, 12), (2, None)]
        assert record.verify().queued == ("1: ids, 2 rows, 12 days old",)


DAMAGES = {
    "name taken out": "DELETE FROM queued WHERE entry = 1",
    "name exchanged": "UPDATE queued SET name = (SELECT max(name) FROM samples) WHERE entry = 1",
    "name put in": "INSERT INTO queued VALUES (9, (SELECT max(name) FROM samples))",
    "stranger put in": "INSERT INTO queued VALUES (2, zeroblob(16))",
    "entry taken out": "DELETE FROM queue WHERE number = 1",
    "entry put in": "INSERT INTO queue VALUES (7, 'admit', 0, '2026-01-31T12:00:00Z', zeroblob(16), 'waiting', NULL)",
    "kind changed": "UPDATE queue SET kind = 'amend' WHERE number = 1",
    "served by nobody": "UPDATE queue SET state = 'served', request = 1 WHERE number = 1",
    "withdrawn by nobody": "UPDATE queue SET state = 'withdrawn' WHERE number = 1",
    "accepted by nobody": "UPDATE queue SET state = 'accepted', request = 1 WHERE number = 1",
    "served by another": "UPDATE queue SET request = 2 WHERE number = 3",
    "waiting again": "UPDATE queue SET state = 'waiting', request = NULL WHERE number = 3",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_an_entry_that_its_events_do_not_tell_is_a_defect(folder, damage):
    with opened(folder) as record:
        for i in (1, 2, 3):
            record.enqueue(ids=[IDS[i]])
    serve(folder, by_ids([IDS[3]]))
    with closing(sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)) as ledger:
        assert ledger.execute(damage).rowcount == 1
    with opened(folder) as record, pytest.raises(CorruptRecordError, match="queue"):
        record.verify()


def test_the_events_name_nobody(folder):
    with opened(folder) as record:
        record.enqueue(ids=IDS[:2])
        record.enqueue(subjects=["subject-3"])
    serve(folder)
    bodies = [json.loads(event["body"]) for event in reader.read_record(folder)["tables"]["events"]]
    told = [body for body in bodies if "entry" in body]
    assert [set(body) for body in told] == [{"commitment", "entry", "what"}] * 2 + [{"entry", "request"}] * 2
    assert all(row["salt"] is None for row in reader.read_record(folder)["tables"]["queue"])
