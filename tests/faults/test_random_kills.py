"""A user's script is killed again and again at random instants, and started again, until it is through.

The script notes what it has done, as a careful user does, after each call; whatever was not noted it does again.
"""

import os
import random
import signal
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from pybrush.names import as_names
from pybrush.record import Record
from pybrush.record.resolve import Wish
from tests import reference
from tests.core.processes import fork, status_of
from tests.core.test_fit_and_forget import KEY, by_ids, data
from tests.core.test_kill import Case, assert_finished, digests_of, fitted

N = 24
ROWS, IDS = data(N), [f"person-{i:012d}" for i in range(N)]
OWNERS = [[f"owner-{i % 8}"] for i in range(N)]


@dataclass(frozen=True)
class Ask:
    """One request of the script: what it names, and which rows it takes."""

    how: str
    rows: tuple

    def wish(self, record):
        if self.how == "ids":
            return by_ids([IDS[i] for i in self.rows])(record)
        if self.how == "contents":
            return Wish(contents=as_names(digests_of(ROWS, self.rows)))
        if self.how == "subjects":
            return Wish(subjects=record.names.subjects([OWNERS[self.rows[0]][0]]))
        return Wish(missing=True)


SERIES = (
    Ask("ids", (3, 4)),
    Ask("contents", (9,)),
    Ask("missing", (10,)),
    Ask("subjects", (5, 13, 21)),
    Ask("missing", (1, 22)),
    Ask("contents", (0, 8)),
)


def left_after(asked, how=None):
    """Return which rows stay after some requests; of one kind alone, where it is said."""
    return ~np.isin(np.arange(N), [row for ask in asked if how in (None, ask.how) for row in ask.rows])


def case_of(number):
    """Return the request of a number: rows asked for as missing are not in the data any more."""
    done = SERIES[: number + 1]
    return Case(ROWS, IDS, OWNERS, SERIES[number].wish, left_after(done), [], later=left_after(done, "missing"))


def script(folder, notes):
    """Fit, then make one request after the other; begin where the notes end."""
    if not notes.read_text():
        fitted(folder, ROWS, IDS, OWNERS)
        note(notes)
    for number in range(len(notes.read_text()) - 1, len(SERIES)):
        case_of(number).serve(folder)
        note(notes)


def note(notes):
    """Note that one more call is done, in a single write."""
    handle = os.open(notes, os.O_WRONLY | os.O_APPEND)
    os.write(handle, b".")
    os.close(handle)


def run_with_kills(work, chance, longest):
    """Start some work again and again, and kill it after a random time; return how often it was killed."""
    for kills in range(10_000):
        child = fork(work)
        time.sleep(chance.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        status = status_of(child)
        if status == 0:
            return kills
        assert status == signal.SIGKILL
    raise AssertionError("the work never came to an end")


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(s, marks=pytest.mark.long) for s in range(3, 40))])
def test_a_script_that_is_killed_until_it_is_through_ends_in_the_bits_of_a_fit_without_the_rows(seed, scratch):
    folder, notes, chance = scratch / "record", scratch / "notes", random.Random(seed)
    notes.write_text("")
    started = time.perf_counter()
    (scratch / "dry notes").write_text("")
    assert status_of(fork(partial(script, scratch / "dry", scratch / "dry notes"))) == 0
    whole = time.perf_counter() - started
    # Half of a request at most: of ten starts, some get through one.
    assert run_with_kills(partial(script, folder, notes), chance, whole / 4) > 0
    last = case_of(len(SERIES) - 1)
    last.later = None
    fitted(scratch / "twin", *last.of(last.left))
    names = [reference.pseudonym(KEY, b"s:" + IDS[i].encode()) for i in np.flatnonzero(~last.left)]
    gone = names + digests_of(ROWS, np.flatnonzero(~last.left))
    assert_finished(folder, scratch / "twin", gone)
    with closing(Record.open(folder, KEY)) as record:
        served = [request.rows for request in record.requests]
    assert served == [len(ask.rows) for ask in SERIES]
