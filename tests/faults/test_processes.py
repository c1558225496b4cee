"""Several processes at one record at once: each waits, is refused in words, or helps; the record is the same."""

import time
from contextlib import closing
from functools import partial

import numpy as np
import pytest

from pybrush.errors import ErasureError, LockedError, RecordError
from pybrush.record import Record, files
from tests.core.processes import at_once, paused
from tests.core.test_fit_and_forget import KEY, by_ids
from tests.core.test_kill import assert_finished, id_case, with_twins


def until_done(work):
    """Call again for as long as another process is in the way, as the messages say."""
    for _ in range(500):
        try:
            return work()
        except (LockedError, RecordError) as error:
            if not str(error).endswith("again."):
                raise
        time.sleep(0.01)
    raise AssertionError("another process was in the way for too long")


@pytest.mark.parametrize("attempt", range(3))
def test_two_requests_for_the_same_rows_at_once_are_served_once(attempt, scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    serve = partial(until_done, partial(case.serve, base))
    at_once(serve, serve)
    assert_finished(base, twin, case.gone)
    with closing(Record.open(base, KEY)) as record:
        assert [request.rows for request in record.requests] == [2]


@pytest.mark.parametrize("attempt", range(3))
def test_requests_for_different_rows_at_once_are_served_one_after_the_other(attempt, scratch):
    case = id_case()
    base, _ = with_twins(case, scratch)
    asks = [case.ask, by_ids([case.ids[5]]), by_ids([case.ids[1]])]
    case.twin(scratch / "all", case.left & ~np.isin(np.arange(14), (1, 5)))
    at_once(*(partial(until_done, partial(case.serve, base, ask)) for ask in asks))
    assert_finished(base, scratch / "all", case.gone)


@pytest.mark.parametrize("attempt", range(3))
def test_fits_and_a_request_on_a_record_that_is_being_built_end_in_the_same_record(attempt, scratch):
    case = id_case()
    case.artefact = None
    case.twin(scratch / "twin")
    fit = partial(until_done, partial(case.make, scratch / "record"))

    def ask_when_there_is_a_record():
        while not (scratch / "record" / "ledger.sqlite").is_file():
            time.sleep(0.001)
        until_done(partial(case.serve, scratch / "record"))

    at_once(fit, fit, ask_when_there_is_a_record)
    assert_finished(scratch / "record", scratch / "twin", case.gone)


FREE = ["before write tree.json", "before write manifest.json"]
"""Steps of a request at which others may change the ledger as well."""
HELD = ["before commit accept", "after commit accept", "before commit commit"]
COLLECTING = ["after commit commit", "before vacuum", "before unlink 1"]


def serve_and_pause(case, folder, step, pause):
    """Serve a request and pause when it comes to a step for the first time."""
    left = [step]

    def observe(told):
        if told in left:
            left.remove(told)
            pause()

    files.observer = observe
    case.serve(folder)


@pytest.mark.parametrize("step", FREE + HELD + COLLECTING)
def test_while_a_request_is_served_others_can_look_and_are_refused_to_change(step, scratch, monkeypatch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    monkeypatch.setattr("pybrush.record.locks.coordinator_lock.__wrapped__.__defaults__", (0.05,))  # seconds
    with paused(partial(serve_and_pause, case, base, step)):
        look(base, is_collecting=step in COLLECTING)
        for ask in (case.ask, by_ids([case.ids[5]])):
            with pytest.raises(LockedError):
                case.serve(base, ask)
        with closing(Record.open(base, KEY)) as record, pytest.raises((LockedError, RecordError)):
            record.cancel(1)
        if step in FREE:
            with pytest.raises(LockedError, match="serves a request"):
                case.refit(base)
    assert_finished(base, twin, case.gone)


def look(folder, is_collecting):
    """Ask for all that can be asked for without a lock."""
    with closing(Record.open(folder, KEY)) as record:
        assert record.info().rows in (14, 12)
        try:
            assert record.verify().is_clean is (not record.requests)
        except ErasureError:
            assert is_collecting


def test_a_declaration_during_a_request_waits_or_is_kept(scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    with (
        paused(partial(serve_and_pause, case, base, "before write manifest.json")),
        closing(Record.open(base, KEY)) as record,
    ):
        record.declare("consent", "every person was asked")
    assert_finished(base, twin, case.gone)
    with closing(Record.open(base, KEY)) as record:
        assert record.ledger.rows("SELECT name FROM declarations") == [("consent",)]
