"""What cannot be amended or admitted is refused before anything is touched, and says what to do."""

import hashlib
import shutil
import sqlite3
from contextlib import closing, contextmanager

import numpy as np
import pytest

from pybrush import forget
from pybrush.build import Sources
from pybrush.change import Additions, Change
from pybrush.errors import (
    ContentError,
    CorruptRecordError,
    ForgetError,
    IdError,
    MissingRowsError,
    UnknownSamplesError,
    UnsupportedError,
)
from pybrush.names import as_names
from pybrush.record import Record
from pybrush.record.resolve import Wish, resolve
from pybrush.request import strikes
from tests import reference
from tests.core.numpy_learner import NumpyLearner, roster_of
from tests.core.small_record import made, shard_of
from tests.core.test_changes import IDS, MORE, PEOPLE, N, equal_rows
from tests.core.test_fit_and_forget import KEY, assert_same_record, data, fit, keep, unlearn
from tests.core.test_refusals import refuses

FIRST = np.arange(N + MORE) < N


def record_of(folder, ids=IDS, subjects=None, rows=None, **plan):
    """A record of the first thirty of forty rows."""
    rows = keep(rows or data(N + MORE), FIRST)
    return made(folder / "record", rows, *(v and v[:N] for v in (ids, subjects)), **plan)


def amends(*ids, **more):
    return lambda record: Wish(amended=record.names.samples(ids), **more)


def relabelled(*places):
    x, y = data(N + MORE)
    y[list(places)] = 1 - y[list(places)]
    return x, y


def ledger_rows(folder):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        return list(connection.iterdump())


ADMIT = lambda _: Wish(admits=True)  # noqa: E731


def test_contents_and_missing_go_with_nothing_else():
    none = as_names([])
    for other in ({"names": none}, {"amended": none}, {"admits": True}, {"contents": none}):
        with pytest.raises(ForgetError, match="in one way"):
            Wish(missing=True, **other)
    for other in ({"names": none}, {"amended": none}, {"admits": True}):
        with pytest.raises(ForgetError, match="in one way"):
            Wish(contents=none, **other)
    with pytest.raises(ForgetError, match="not with missing"):
        Wish(missing=True, subjects=none)


def test_in_a_record_named_by_content_the_way_is_to_forget_and_to_admit(tmp_path):
    folder, rows = record_of(tmp_path, None), data(N + MORE)
    ask = lambda r: Wish(amended=roster_of(rows)(r.names).names[[3]])  # noqa: E731
    refuses(folder, UnsupportedError, "forget the old rows and admit the new ones", rows, ask)


def test_where_contents_are_off_no_code_can_tell_which_rows_changed(tmp_path):
    folder = record_of(tmp_path, contents="off")
    refuses(folder, UnsupportedError, "no content digests", relabelled(3), amends(IDS[3]), IDS)


def test_unknown_rows_to_amend_are_counted_and_named_by_at_most_five_pseudonyms(tmp_path):
    folder, unknown = record_of(tmp_path), [f"stranger-{i}" for i in range(7)]
    text = refuses(folder, UnknownSamplesError, "7 of 9 samples to amend", data(N), amends(*IDS[:2], *unknown), IDS[:N])
    names = [reference.pseudonym(KEY, b"s:" + i.encode()).hex() for i in unknown]
    assert sum(name in text for name in names) == 5


def test_a_row_that_would_join_is_not_one_to_amend(tmp_path):
    folder = record_of(tmp_path)
    refuses(folder, UnknownSamplesError, "1 of 1 samples to amend", data(N + MORE), amends(IDS[N], admits=True), IDS)


def test_an_empty_list_of_rows_to_amend_is_refused(tmp_path):
    refuses(record_of(tmp_path), ForgetError, "rows to amend is empty", data(N + MORE), amends(), IDS)


def test_rows_to_amend_that_are_not_in_the_data_set_are_refused_with_their_count(tmp_path):
    folder, left = record_of(tmp_path), ~np.isin(np.arange(N + MORE), (3, 4))
    ids = [i for i, kept in zip(IDS, left, strict=True) if kept]
    ask = amends(IDS[3], IDS[4], IDS[5])
    refuses(folder, MissingRowsError, "2 of 3 rows to amend", keep(relabelled(5), left), ask, ids)


def test_a_row_whose_content_changed_and_that_nobody_named_is_refused_and_the_message_names_amend(tmp_path):
    folder = record_of(tmp_path, shards=1, slices=1)
    refuses(folder, ContentError, r"content of 1 rows .* record\.amend\(ids\)", relabelled(3, 4), amends(IDS[3]), IDS)


def test_rows_are_not_given_to_people_who_were_forgotten_or_ask_to_be(tmp_path):
    folder, people = record_of(tmp_path, subjects=PEOPLE), [list(row) for row in PEOPLE]
    unlearn(folder, data(N + MORE), lambda r: Wish(subjects=r.names.subjects(["subject-3"])), IDS, PEOPLE)
    people[4], people[5] = ["subject-3"], ["subject-7", "guardian-0"]
    refuses(folder, ForgetError, "1 of the rows", data(N + MORE), amends(*IDS[4:6]), IDS, people)
    ask = lambda r: Wish(amended=r.names.samples([IDS[5]]), subjects=r.names.subjects(["subject-7"]))  # noqa: E731
    refuses(folder, ForgetError, "1 of the rows", data(N + MORE), ask, IDS, people)


def test_people_are_given_as_in_the_fit(tmp_path):
    folder, rows = record_of(tmp_path, subjects=PEOPLE), data(N + MORE)
    refuses(folder, ForgetError, "pass their subjects", relabelled(4), amends(IDS[4]), IDS)
    refuses(folder, ContentError, "first subject of 30 rows", rows, ADMIT, IDS)
    others = [row[::-1] if i in (3, 4) else row for i, row in enumerate(PEOPLE)]
    refuses(folder, ContentError, "first subject of 2 rows", rows, ADMIT, IDS, others)
    other = record_of(tmp_path / "without")
    refuses(other, ContentError, "first subject of 30 rows", rows, ADMIT, IDS, PEOPLE)


def test_rows_that_a_batch_amends_or_forgets_may_have_other_people_where_rows_join(tmp_path):
    folder, rows = record_of(tmp_path, subjects=PEOPLE), data(N + MORE)
    others = [["guardian-9"] if i in (3, 4) else row for i, row in enumerate(PEOPLE)]
    ask = lambda r: Wish(names=r.names.samples([IDS[3]]), amended=r.names.samples([IDS[4]]), admits=True)  # noqa: E731
    result = unlearn(folder, rows, ask, IDS, others)
    assert (result.forgotten, result.amended, result.admitted) == (1, 1, MORE)


def test_rows_that_join_need_the_recorded_rows_that_their_stages_train_on(tmp_path):
    folder, left = record_of(tmp_path, shards=1, slices=1), np.arange(N + MORE) != 4
    ids = [i for i in IDS if i != IDS[4]]
    refuses(folder, MissingRowsError, "1 of the 40 rows", keep(data(N + MORE), left), ADMIT, ids)


def test_under_a_sequential_loader_rows_join_only_where_the_place_of_every_row_is_known(tmp_path):
    folder, left = record_of(tmp_path, order="sequential"), ~np.isin(np.arange(N + MORE), (4, 9))
    ids = [i for i, kept in zip(IDS, left, strict=True) if kept]
    refuses(folder, MissingRowsError, "2 rows .* does not shuffle", keep(data(N + MORE), left), ADMIT, ids)
    ask = lambda r: Wish(names=r.names.samples([IDS[4], IDS[9]]), admits=True)  # noqa: E731
    assert unlearn(folder, keep(data(N + MORE), left), ask, ids).admitted == MORE
    fit(tmp_path / "twin", keep(data(N + MORE), left), ids, order="sequential")[0].record.close()
    assert_same_record(folder, tmp_path / "twin")


@pytest.mark.parametrize("others", [(31,), (31, 35), (33, 38)], ids=["one-recorded", "two-recorded", "new"])
def test_under_a_sequential_loader_equal_rows_do_not_join(others, tmp_path):
    x, y = equal_rows()
    fresh = data(N + MORE, seed=5)
    for i in set(range(N + MORE)) - {*others, 2}:
        x[i], y[i] = fresh[0][i], fresh[1][i]
    folder = record_of(tmp_path, None, rows=(x, y), order="sequential")
    refuses(folder, IdError, "equal rows need ids", (x, y), ADMIT)


def test_what_is_amended_or_joins_is_read_from_a_data_set(tmp_path):
    folder = record_of(tmp_path)
    with closing(Record.open(folder, KEY)) as record, pytest.raises(ForgetError, match="as it is now; pass it"):
        resolve(record, record.samples(), None, Wish(admits=True))


IN_SHARD_2 = [i for i in range(N + MORE) if shard_of(IDS[i]) == 2]
FORGOTTEN, AMENDED = IN_SHARD_2[:2]


@pytest.fixture(params=["shuffled"])
def stopped(request, tmp_path):
    """A record with a pending request that forgets, amends and admits, and a copy from before it."""
    folder = record_of(tmp_path, order=request.param)
    shutil.copytree(folder, tmp_path / "before")

    def ask(record):
        forgotten, amended = (record.names.samples([IDS[i]]) for i in (FORGOTTEN, AMENDED))
        return Wish(names=forgotten, amended=amended, admits=True)

    learner = NumpyLearner([9.0, 9.0, 9.0])
    learner.fail_at = 2, 1
    with pytest.raises(ArithmeticError):
        unlearn(folder, relabelled(AMENDED), ask, IDS, learner=learner)
    assert learner.weights.tolist() == [9.0, 9.0, 9.0]
    return folder, ask


def test_a_failed_batch_is_finished_by_the_next_call_also_where_the_data_set_has_grown_since(stopped, tmp_path):
    folder, ask = stopped
    x, y = relabelled(AMENDED)
    more = np.vstack([x, x[:4] + 9]), np.append(y, y[:4])
    ids = [*IDS, *(f"late-{i}" for i in range(4))]
    result = unlearn(folder, more, ask, ids)
    assert (result.request, result.forgotten, result.amended, result.admitted) == (2, 0, 0, 4)
    left = np.arange(N + MORE + 4) != FORGOTTEN
    fit(tmp_path / "twin", keep(more, left), [i for i in ids if i != IDS[FORGOTTEN]])[0].record.close()
    assert_same_record(folder, tmp_path / "twin")


@pytest.mark.parametrize("stopped", ["shuffled", "sequential"], indirect=True)
def test_the_same_batch_again_is_the_same_request_and_is_finished_from_its_file(stopped, tmp_path, request):
    folder, ask = stopped
    result = unlearn(folder, relabelled(AMENDED), ask, IDS)
    assert (result.request, result.forgotten, result.amended, result.admitted) == (1, 1, 1, MORE)
    left, order = np.arange(N + MORE) != FORGOTTEN, request.node.callspec.params["stopped"]
    ids = [i for i in IDS if i != IDS[FORGOTTEN]]
    fit(tmp_path / "twin", keep(relabelled(AMENDED), left), ids, order=order)[0].record.close()
    assert_same_record(folder, tmp_path / "twin")


def test_a_pending_batch_takes_no_other_rows_than_those_that_it_was_accepted_with(stopped):
    folder, ask = stopped
    before, new = ledger_rows(folder), IN_SHARD_2[-1]
    assert new >= N
    with pytest.raises(ContentError, match="content of 2 rows"):
        unlearn(folder, relabelled(new), ask, IDS)
    with pytest.raises(MissingRowsError, match=f"{sum(i >= N for i in IN_SHARD_2)} of the 39 rows"):
        unlearn(folder, keep(relabelled(AMENDED), FIRST), ask, IDS[:N])
    assert ledger_rows(folder) == before


def test_a_batch_that_was_withdrawn_leaves_the_record_as_it_was_and_nothing_of_the_new_rows(stopped, tmp_path):
    folder, _ = stopped
    names = [reference.pseudonym(KEY, b"s:" + i.encode()) for i in IDS[N:]]
    assert reference.files_holding(folder, names) == ["pending/1"]
    with closing(Record.open(folder, KEY)) as record:
        record.cancel(1)
    assert reference.files_holding(folder, names) == []
    assert_same_record(folder, tmp_path / "before")


def test_a_batch_whose_file_names_other_rows_to_record_is_found(stopped):
    folder, ask = stopped
    path = folder / "pending" / "1"
    found = Change.from_bytes(path.read_bytes())
    other = Additions(**{**vars(found.additions), "contents": found.additions.contents ^ 1})
    path.write_bytes(Change(found.strikes, other).to_bytes())
    with pytest.raises(CorruptRecordError, match="accepted with"):
        unlearn(folder, relabelled(AMENDED), ask, IDS)


def test_a_pending_file_whose_counts_do_not_fit_its_length_is_refused():
    names = as_names([bytes(range(16))])
    whole = Change(strikes(names, names, np.ones(1, dtype=np.int64))).to_bytes()
    more = Change(strikes(names, names, np.ones(1, dtype=np.int64)), Additions(places=np.arange(3))).to_bytes()
    assert Change.from_bytes(more).additions.places.tolist() == [0, 1, 2]
    longer, shorter = (content + hashlib.sha256(content).digest() for content in (whole[:-32] + bytes(8), whole[:60]))
    for damaged in (whole[:-1], whole + bytes(8), b"", longer, shorter):
        with pytest.raises(CorruptRecordError, match="truncated or changed"):
            Change.from_bytes(damaged)


@contextmanager
def stopped_after_its_commit(monkeypatch):
    def stop(*_):
        raise OSError("the disk is full of bees")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="bees"):  # noqa: PT012
        patch.setattr("pybrush.forget.collect", stop)
        yield


def test_after_its_commit_a_batch_of_a_person_is_known_again_and_another_of_that_person_is_not(tmp_path, monkeypatch):
    folder, rows = record_of(tmp_path, subjects=PEOPLE), data(N + MORE)

    def ask(*named):
        def of(record):
            persons = record.names.subjects(["subject-3"])
            return Wish(names=record.names.samples(named), subjects=persons, admits=True)

        return of

    with stopped_after_its_commit(monkeypatch):
        unlearn(folder, rows, ask(IDS[6]), IDS, PEOPLE)
    for number in range(3):
        shutil.copytree(folder, tmp_path / f"copy-{number}")
    again = unlearn(tmp_path / "copy-0", rows, ask(IDS[6]), IDS, PEOPLE)
    assert (again.request, again.forgotten) == (1, 4)
    other = unlearn(tmp_path / "copy-1", rows, ask(IDS[6], IDS[8]), IDS, PEOPLE)
    assert (other.request, other.forgotten) == (2, 1)
    person = unlearn(
        tmp_path / "copy-2", rows, lambda r: Wish(subjects=r.names.subjects(["subject-3"]), amended=r.names.samples(
            [IDS[8]])), [*IDS], PEOPLE
    )  # fmt: skip
    assert person.method == "none"


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_after_its_commit_an_amended_row_is_known_again(order, tmp_path, monkeypatch):
    people = [list(row) for row in PEOPLE]
    people[8], rows = [], relabelled(4)
    folder = record_of(tmp_path, subjects=PEOPLE, order=order)
    with stopped_after_its_commit(monkeypatch):
        unlearn(folder, rows, amends(IDS[4], IDS[8]), IDS, people)
    again = unlearn(folder, rows, amends(IDS[4], IDS[8]), IDS, people)
    assert (again.request, again.amended) == (1, 2)


def test_a_batch_that_is_wrong_does_not_hold_up_one_that_was_committed(tmp_path, monkeypatch):
    folder, rows = record_of(tmp_path), data(N + MORE)
    with stopped_after_its_commit(monkeypatch):
        unlearn(folder, rows, lambda r: Wish(names=r.names.samples([IDS[6]])), IDS)
    with pytest.raises(ContentError, match="first subject"):
        unlearn(folder, rows, ADMIT, IDS, PEOPLE)
    with closing(Record.open(folder, KEY)) as record:
        assert [request.state for request in record.requests] == ["sealed"]


def test_sources_are_not_read_twice_where_rows_join(tmp_path):
    """Reading a raw sample may cost as much as training on it."""
    folder, rows, read = record_of(tmp_path, shards=1, slices=1), relabelled(4), []
    with closing(Record.open(folder, KEY)) as record:
        roster = roster_of(rows, IDS)(record.names)
        encode = roster._encode
        roster._encode = lambda i: read.append(i) or encode(i)
        ask = Wish(amended=record.names.samples([IDS[4]]), admits=True)
        forget.unlearn(record, Sources(NumpyLearner([0.0] * 3), rows, roster), ask, aggregate=lambda _: None)
    assert sorted(read) == list(range(N + MORE))
