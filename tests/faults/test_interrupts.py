"""Ctrl-C at any step of a call; the same process then makes the call again.

The interrupt comes as an exception where Python code runs, so locks, transactions and what is in memory must stand it.
"""

import random
from contextlib import closing
from functools import partial

import numpy as np
import pytest

from pybrush.record import Record, files
from tests.core.numpy_learner import NumpyLearner
from tests.core.processes import fork, status_of
from tests.core.test_fit_and_forget import KEY, unlearn
from tests.core.test_kill import id_case, in_child, with_twins
from tests.faults.test_crash import CALLS
from tests.faults.test_full_disk import copied, weights_of

FEW = 5
"""Steps of each call at which the short run interrupts it."""


def interrupted(number, work):
    """Do some work that is interrupted at the n-th step that it announces; say whether it was."""
    count = 0

    def observe(step):
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt

    files.observer = observe
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        files.observer = None
    return False


def interrupt_and_go_on(call, folder, number):
    assert interrupted(number, partial(call.make, folder))
    if not call.is_sealed(folder):  # else the answer alone was lost
        call.make(folder)
    call.assert_done(folder)


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.long)], ids=["few", "all"])
@pytest.mark.parametrize("name", CALLS)
def test_after_an_interrupt_the_same_process_ends_as_if_there_had_been_none(name, few, scratch):
    call, folder = CALLS[name](scratch), scratch / "record"
    numbers = range(1, 1 + len(in_child(partial(call.make, copied(call.base, folder)))))
    for number in random.Random(name).sample(numbers, min(FEW, len(numbers))) if few else numbers:
        copied(call.base, folder)
        assert status_of(fork(partial(interrupt_and_go_on, call, folder, number))) == 0, f"at step {number}"


def test_the_model_in_hand_after_an_interrupt_is_what_the_ledger_says(scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    kept, forgotten, seen = weights_of(base), weights_of(twin), []
    for number in range(1, 1 + len(in_child(partial(case.serve, copied(base, scratch / "record"))))):
        folder, learner = copied(base, scratch / "record"), NumpyLearner(kept)
        ask = partial(unlearn, folder, case.rows, case.ask, case.ids, learner=learner)
        assert interrupted(number, ask)
        with closing(Record.open(folder, KEY)) as record:
            state = [request.state for request in record.requests][-1:]
        seen += state
        assert np.array_equal(learner.weights, kept if state in ([], ["pending"]) else forgotten), (number, state)
    assert {"pending", "committed", "collected", "sealed"} == set(seen)
