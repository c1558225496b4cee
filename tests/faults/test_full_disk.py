"""The disk is full, or does not answer, at some change; once it is mended the call is made again in the same process.

Also after an error the model in hand is what the ledger says: as before until the commit, forgotten from then on.
"""

import random
import resource
import shutil
import sqlite3
from contextlib import closing
from functools import partial

import numpy as np
import pytest

from pybrush.errors import PyBrushError
from pybrush.record import Record
from tests.core.numpy_learner import NumpyLearner
from tests.core.processes import fork, status_of
from tests.core.test_fit_and_forget import KEY, unlearn
from tests.core.test_kill import assert_finished, id_case, with_twins
from tests.faults.test_crash import CALLS, journal_of, needs_watching
from tests.faults.watched import GROWS, Watched, broken, full

ERRORS = OSError, sqlite3.DatabaseError, PyBrushError
FEW = 3
"""Changes of each call at which the short run lets it fail."""
DISKS = {"full": (full, GROWS), "broken": (broken, ())}


def copied(base, folder):
    """Make a folder as it was before a call."""
    shutil.rmtree(folder, ignore_errors=True)
    if base is None:
        folder.mkdir()
    else:
        shutil.copytree(base, folder)
    return folder


def fail_and_go_on(call, folder, fail):
    """Make a call whose disk fails, mend the disk, make the call again."""
    is_mended = False
    Watched(folder, before=lambda change: None if is_mended else fail(change))
    try:
        call.make(folder)
    except ERRORS:
        is_mended = True
        if not call.is_sealed(folder):  # else only the last sync of a name failed
            call.make(folder)
    is_mended = True
    call.assert_done(folder)


@needs_watching
@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.long)], ids=["few", "all"])
@pytest.mark.parametrize("kind", DISKS)
@pytest.mark.parametrize("name", CALLS)
def test_once_a_disk_is_mended_the_same_process_ends_as_if_it_had_never_failed(name, kind, few, scratch):
    call, folder = CALLS[name](scratch), scratch / "disk"
    steps = [step.change.kind for step in journal_of(call, folder).steps]
    fails, kinds = DISKS[kind]
    numbers = range(1, 1 + sum(step in kinds if kinds else step != "note" for step in steps))
    for number in random.Random(name).sample(numbers, min(FEW, len(numbers))) if few else numbers:
        copied(call.base, folder)
        child = fork(partial(fail_and_go_on, call, folder, fails(number)))
        assert status_of(child) == 0, f"after change {number} failed"


def ask_and_look(case, folder, kept, forgotten):
    """Make a request that may fail; the model in hand is then the one that the ledger speaks of."""
    learner = NumpyLearner(kept)
    try:
        unlearn(folder, case.rows, case.ask, case.ids, learner=learner)
    except ERRORS:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with closing(Record.open(folder, KEY)) as record:
            is_committed = [request.state for request in record.requests][-1:] not in ([], ["pending"])
        assert np.array_equal(learner.weights, forgotten if is_committed else kept)
        unlearn(folder, case.rows, case.ask, case.ids, learner=learner)
    assert np.array_equal(learner.weights, forgotten)


def weights_of(folder):
    with closing(Record.open(folder, KEY)) as record:
        last = record.constituents()
        return record.store.load(last[max(last)])[0]["weights"]


@pytest.mark.parametrize("size", [0, 100, 160, 300, 520, 5000, 20000, 40000, 57000])
def test_no_file_may_grow_beyond_a_size_and_the_model_in_hand_is_what_the_ledger_says(size, scratch):
    """The limit is the operating system's: writes stop half done, those of SQLite too."""
    case = id_case()
    base, twin = with_twins(case, scratch)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        ask_and_look(case, base, weights_of_base, weights_of(twin))

    weights_of_base = weights_of(base)
    assert status_of(fork(limited)) == 0
    assert_finished(base, twin, case.gone)
