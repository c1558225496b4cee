"""The clock jumps by up to two years, forwards and backwards, between any two looks at it."""

import os
import random
import signal
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pytest

from pybrush.record import Record, files, ledger
from tests.core.processes import fork, status_of
from tests.core.test_fit_and_forget import KEY, by_ids, data
from tests.core.test_kill import Case, assert_finished, fitted


class Jumping(datetime):
    """A clock that says another time whenever it is asked, or what it is told to say."""

    chance = random.Random(0)
    days = None

    @classmethod
    def now(cls, tz=None):
        away = cls.chance.uniform(-730, 730) if cls.days is None else cls.days
        return datetime(2026, 1, 31, 12, tzinfo=UTC) + timedelta(days=away)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(ledger, "datetime", Jumping)
    monkeypatch.setattr(Jumping, "chance", random.Random(5))
    monkeypatch.setattr(Jumping, "days", None)
    return Jumping


ROWS, IDS = data(14), [f"person-{i:012d}" for i in range(14)]


def asking(gone, rows):
    left = ~np.isin(np.arange(14), gone)
    return Case(ROWS, IDS, None, by_ids([IDS[i] for i in rows]), left, [IDS[i].encode() for i in gone])


def killed_at(step, work):
    """Do some work in a process that is killed at a step."""

    def observed():
        files.observer = lambda told: os.kill(os.getpid(), signal.SIGKILL) if told == step else None
        work()

    assert status_of(fork(observed)) == signal.SIGKILL


@pytest.mark.parametrize("step", ["after commit accept", "before commit commit", "after commit commit", "after vacuum"])
def test_requests_keep_their_order_and_their_bits_whatever_the_clock_says(step, clock, scratch):
    folder, gone = scratch / "record", []
    fitted(folder, ROWS, IDS)
    for number, rows in enumerate(([3], [8, 2], [5], [11]), start=1):
        gone += rows
        case = asking(gone, rows)
        killed_at(step, partial(case.serve, folder))
        with closing(Record.open(folder, KEY)) as record:
            found, info = record.verify(), record.info()
            assert [request.number for request in record.requests] == list(range(1, number + 1))
        assert len(found.pending) == 1 and " -" not in found.pending[0]
        assert [request.days >= 0 for request in info.requests if request.days is not None] == [True]
        case.serve(folder)
    case.twin(scratch / "twin")
    assert_finished(folder, scratch / "twin", case.gone)


def test_an_age_is_told_in_whole_days_and_is_none_where_the_clock_was_set_back(clock, scratch):
    case = asking([3], [3])
    case.make(scratch / "record")
    clock.days = 0
    killed_at("after commit accept", partial(case.serve, scratch / "record"))
    with closing(Record.open(scratch / "record", KEY)) as record:
        ages = []
        for clock.days in (0.9, 1.1, 400, -0.1, -400):
            (asked,) = record.info().requests
            ages.append(asked.days)
            assert record.verify().pending == (f"1: pending, {asked.days} days old",)
    assert ages == [0, 1, 400, 0, 0]
