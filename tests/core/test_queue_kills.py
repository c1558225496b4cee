"""SIGKILL at every step on disk of what comes into the queue, waits there, is served or let wait again.

Nothing that was asked is lost, nothing is served twice, and the bits are those of a fit on what is then there.
"""

import shutil
from contextlib import closing
from functools import partial

import pytest

from pybrush.errors import CorruptRecordError, LockedError
from pybrush.record import Record, files
from tests import reference
from tests.core import format_reader as reader
from tests.core import test_kill
from tests.core.processes import at_once, paused
from tests.core.test_fit_and_forget import KEY, assert_same_record, by_ids
from tests.core.test_kill import cancel, files_in, id_case, kill_points, queue_case, with_twins

scratch = test_kill.scratch

AROUND = [f"{when} commit {what}" for when in ("before", "after") for what in ("accept", "commit", "seal")]
"""Where a request changes what the queue says."""


def states_of(folder):
    with closing(Record.open(folder, KEY)) as record:
        return [(entry.state, entry.request) for entry in record.queue]


def enqueue(folder, ids):
    with closing(Record.open(folder, KEY)) as record:
        record.enqueue(ids=ids)


def withdraw(folder):
    with closing(Record.open(folder, KEY)) as record:
        record.withdraw(1)


def assert_served(folder, twin, case):
    """The record is the twin's, every entry was served by the one request, and no file names who is gone."""
    assert_same_record(folder, twin)
    assert states_of(folder) == [("served", 1)] * 4
    assert reader.defects(reader.read_record(folder)) == []
    assert files_in(folder) == files_in(twin)
    assert reference.files_holding(folder, case.gone) == []


def test_an_entry_whose_coming_is_killed_is_there_whole_or_not_at_all(scratch):
    case = id_case()
    base, _ = with_twins(case, scratch)
    seen = set()
    for _, folder in kill_points(base, partial(enqueue, ids=case.ids[3:6]), scratch):
        states = states_of(folder)
        assert states in ([], [("waiting", None)])
        assert reader.defects(reader.read_record(folder)) == []
        enqueue(folder, case.ids[3:6])  # whoever is not sure notes it once more
        result = case.serve(folder, queue_case().ask)
        assert result.forgotten == 3 and result.entries == (1, 2)[: len(states) + 1]
        seen.add(len(states))
    assert seen == {0, 1}


def test_an_entry_whose_withdrawal_is_killed_waits_or_is_withdrawn(scratch):
    case = id_case()
    base, _ = with_twins(case, scratch)
    enqueue(base, case.ids[3:4])
    seen = set()
    for _, folder in kill_points(base, withdraw, scratch):
        (state,) = states_of(folder)
        assert reader.defects(reader.read_record(folder)) == []
        assert case.serve(folder, queue_case().ask).forgotten == (1 if state[0] == "waiting" else 0)
        seen.add(state[0])
    assert seen == {"waiting", "withdrawn"}


def test_the_entries_of_a_request_that_is_killed_are_served_once_and_by_it(scratch):
    case = queue_case()
    base, twin = with_twins(case, scratch)
    for step, folder in kill_points(base, case.serve, scratch):
        states = set(states_of(folder))
        assert states in ({("waiting", None)}, {("accepted", 1)}, {("served", 1)}), step
        result = case.serve(folder)
        sealed = step == "after unlink 1"  # nothing is left to do
        assert (result.request, result.entries) == ((0, ()) if sealed else (1, (1, 2, 3, 4)))
        assert_served(folder, twin, case)


def test_a_cancellation_that_is_killed_and_made_again_lets_all_entries_wait_and_be_served(scratch):
    case = queue_case()
    base, twin = with_twins(case, scratch)
    for _, stopped in kill_points(base, case.serve, scratch, ["before commit commit"]):
        shutil.copytree(stopped, scratch / "pending")
    for _, folder in kill_points(scratch / "pending", cancel, scratch):
        cancel(folder)
        assert states_of(folder) == [("waiting", None)] * 4
        assert_same_record(folder, base)
        result = case.serve(folder)
        assert (result.request, result.entries) == (2, (1, 2, 3, 4))
        assert_same_record(folder, twin)
        assert reference.files_holding(folder, case.gone) == []


def test_a_fit_after_a_kill_finishes_what_was_accepted_and_leaves_what_waits(scratch):
    case = queue_case()
    base, twin = with_twins(case, scratch)
    for _, folder in kill_points(base, case.serve, scratch, AROUND):
        accepted = ("waiting", None) not in states_of(folder)
        case.refit(folder)
        if not accepted:
            assert states_of(folder) == [("waiting", None)] * 4
            assert_same_record(folder, base)
        else:
            assert_served(folder, twin, case)


def test_a_request_for_others_that_is_killed_takes_its_names_out_of_the_queue_once(scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    for ids in (case.ids[3:5], case.ids[8:9]):
        enqueue(base, ids)
    for step, folder in kill_points(base, case.serve, scratch, AROUND):
        case.serve(folder)
        assert_same_record(folder, twin)
        assert states_of(folder) == [("waiting", None), ("served", 1)], step
        assert reader.defects(reader.read_record(folder)) == []
        assert reference.files_holding(folder, case.gone) == []


def test_an_entry_that_waited_is_served_after_a_request_that_was_killed(scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    enqueue(base, case.ids[8:9])
    for _, folder in kill_points(base, partial(case.serve, ask=by_ids(case.ids[3:4])), scratch, AROUND):
        with closing(Record.open(folder, KEY)) as record:
            accepted = bool(record.requests)
        result = case.serve(folder, queue_case().ask)
        if not accepted:  # nobody asks for it any more
            result = case.serve(folder, by_ids(case.ids[3:4]))
        assert result.forgotten == 1
        assert_same_record(folder, twin)
        with closing(Record.open(folder, KEY)) as record:
            assert record.verify().is_clean


def test_entries_that_come_at_once_are_all_there(scratch):
    case = id_case()
    case.make(scratch / "a")
    at_once(*(partial(enqueue, scratch / "a", case.ids[i : i + 1]) for i in range(5)))
    assert states_of(scratch / "a") == [("waiting", None)] * 5
    assert reader.defects(reader.read_record(scratch / "a")) == []
    assert case.serve(scratch / "a", queue_case().ask).forgotten == 5


def test_an_entry_comes_while_another_process_trains_and_is_served_by_it_where_that_forgets_its_rows(scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)

    def train(pause):
        steps = iter([pause])
        files.observer = lambda step: next(steps, int)() if step == "before write tree.json" else None
        case.serve(base)

    with paused(train):
        enqueue(base, case.ids[3:4])
        enqueue(base, case.ids[5:6])
        with pytest.raises(LockedError):
            case.serve(base, queue_case().ask)
    assert states_of(base) == [("served", 1), ("waiting", None)]
    assert_same_record(base, twin)


def test_a_name_of_the_forgotten_that_stays_in_the_queue_stops_the_seal(scratch, monkeypatch):
    case = id_case()
    case.make(scratch / "a")
    enqueue(scratch / "a", case.ids[3:5])
    monkeypatch.setattr("pybrush.record.transaction.settle", lambda *_: None)
    with pytest.raises(Exception, match=r"forgotten names are still in .*ledger\.sqlite"):
        case.serve(scratch / "a")
    with closing(Record.open(scratch / "a", KEY)) as record, pytest.raises(CorruptRecordError, match="not recorded"):
        record.verify()
