"""The process is killed, or the power fails, before or after any change on disk; the call is then made again.

Every write, rename, sync and unlink of a call is written down, those of SQLite too, and each disk that may be left
is built from that (see disk.py). Whatever is left, nothing that was reported as done is lost, and the second call
ends in the bits of a fit that never had the rows, with no file or byte that such a fit does not have.
"""

import random
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pybrush.errors import PyBrushError
from pybrush.record import Record
from pybrush.record.ledger import Ledger
from tests.core import test_encryption_kill as encrypted
from tests.core.numpy_methods import Shrink, by, exactly
from tests.core.test_fit_and_forget import KEY, by_ids, data
from tests.core.test_kill import (
    CASES,
    assert_finished,
    cancel,
    first_fit,
    fitted,
    id_case,
    kill_points,
    queue_case,
    with_twins,
)
from tests.core.test_release_kill import serve as ask_for
from tests.faults import disk, sqlite_files

needs_watching = pytest.mark.skipif(
    sqlite_files.library() is None or not Path("/proc/self/fd").is_dir(),
    reason="watches SQLite through its shared library, and open files through /proc",
)


@dataclass
class Call:
    """A call that is stopped somewhere, and what must hold once it was made again.

    Attributes:
        base: the folder before it, None for an empty one.
        make: the call, of a folder.
        twin: a record that is equal to the one afterwards.
        gone: what no file may hold afterwards.
        states: of the requests afterwards.
        record: where the record is below the folder.
    """

    base: Path | None
    make: Callable
    twin: Path
    gone: list
    states: tuple = ("sealed",)
    record: str = "."

    def is_sealed(self, folder):
        """Whether all its requests are, so that nobody has to call again."""
        return self.states[-1:] == ("sealed",) and states_of(folder / self.record) == self.states

    def assert_done(self, folder):
        assert_finished(folder / self.record, self.twin, self.gone)
        if (folder / "record.keys").exists():
            encrypted.assert_ring_fits(folder)
        assert states_of(folder / self.record) == self.states


def states_of(folder):
    """Return the states of the requests of a record; none where it was not finished."""
    with closing(Ledger(folder / "ledger.sqlite")) as ledger:
        if not ledger.plan():
            return ()
    with closing(Record.open(folder, KEY)) as record:
        return tuple(request.state for request in record.requests)


def request(name, scratch):
    case = CASES[name]()
    base, twin = with_twins(case, scratch)
    return Call(base, case.serve, twin, case.gone)


def fit(scratch):
    fitted(scratch / "twin", data(14))
    return Call(None, first_fit, scratch / "twin", [], (), "record")


def stopped(case, scratch, step):
    """Return a record of which a request was killed at a step."""
    base, _ = with_twins(case, scratch)
    ((_, folder),) = kill_points(base, case.serve, scratch, [step])
    return folder.rename(scratch / "stopped")


def fit_after_a_kill(scratch):
    case = id_case()
    return Call(stopped(case, scratch, "after commit accept"), case.refit, scratch / "twin", case.gone)


def one_more(case, base, scratch):
    """Return a request for another row of a record."""
    case.twin(scratch / "both", case.left & (np.arange(14) != 5))
    serve = partial(case.serve, ask=by_ids([case.ids[5]]))
    return Call(base, serve, scratch / "both", case.gone, ("sealed", "sealed"))


def second_request(scratch):
    case = id_case()
    base, _ = with_twins(case, scratch)
    case.serve(base)
    return one_more(case, base, scratch)


def request_after_a_kill(step, scratch):
    case = id_case()
    return one_more(case, stopped(case, scratch, step), scratch)


def cancellation(scratch):
    case = id_case()
    folder = stopped(case, scratch, "before commit commit")
    return Call(folder, cancel, scratch / "base", [], ("cancelled",))


def declaration(scratch):
    base, _ = with_twins(id_case(), scratch)

    def declare(folder):
        with closing(Record.open(folder, KEY)) as record:
            record.declare("consent", "every person was asked")

    return Call(base, declare, base, [], ())


def encrypted_fit(scratch):
    encrypted.make(scratch / "twin", encrypt=None)
    return Call(None, encrypted.make, scratch / "twin" / "record", [], (), "record")


def encrypted_request(scratch):
    case = id_case()
    encrypted.make(scratch / "base")
    case.twin(scratch / "twin")
    return Call(scratch / "base", encrypted.serve, scratch / "twin", case.gone, record="record")


def queue(scratch):
    case = queue_case()
    base, twin = with_twins(case, scratch)
    with closing(Record.open(base, KEY)) as record:
        case.enqueue(record)
    return Call(base, case.serve, twin, case.gone)


def approximate_then_exact(scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)

    def ask(folder):
        ask_for(case, by(Shrink()), folder)
        ask_for(case, exactly(), folder)

    return Call(base, ask, twin, case.gone, ("sealed", "sealed"))


CALLS = {name: partial(request, name) for name in CASES} | {
    "fit": fit,
    "fit after a kill": fit_after_a_kill,
    "second request": second_request,
    "request after a kill": partial(request_after_a_kill, "after commit accept"),
    "request after a late kill": partial(request_after_a_kill, "after commit commit"),
    "queue": queue,
    "approximate then exact": approximate_then_exact,
    "cancellation": cancellation,
    "declaration": declaration,
    "encrypted fit": encrypted_fit,
    "encrypted request": encrypted_request,
}
FEW = 25
"""Disks of each call that the short run looks at."""

STATES = ("pending", "committed", "collected", "sealed")
REPORTED = {"accept": 0, "commit": 1, "collected": 2, "seal": 2}
"""Commit to the ledger -> the state that it leads to; a sealed request counts as collected until its file is gone."""


def journal_of(call, folder):
    """Make a call on a copy of its base and return what it changed."""
    if call.base is None:
        folder.mkdir()
    else:
        shutil.copytree(call.base, folder)
    return disk.record(partial(call.make, folder), folder)


def assert_nothing_lost(call, journal, count, folder):
    """What was reported as done within the first `count` changes is done: on disk, whatever was not synced."""
    place, commits = folder / call.record, journal.commits(count)
    found = states_of(place) if commits else ()
    reported = [REPORTED[name] for name in commits if name in REPORTED]
    if reported and found[-1] != "cancelled":
        assert STATES.index(found[-1]) >= reported[-1]
    if "cancel" in commits:
        assert found == ("cancelled",)
    if "plan" in commits:
        assert call.make is not first_fit or (folder / "record.key").read_bytes() == KEY
        with closing(Record.open(place, KEY)) as record:
            assert record.samples().rows == 14
    if "declaration" in commits:
        with closing(Record.open(place, KEY)) as record:
            assert record.ledger.rows("SELECT name FROM declarations") == [("consent",)]


def look(call, journal, count, how, tree, folder):
    """Look at one disk that a crash left, then make the call again."""
    tree.write_to(folder)
    try:
        assert_nothing_lost(call, journal, count, folder)
        if not call.is_sealed(folder):  # else the answer alone was lost
            call.make(folder)
        call.assert_done(folder)
    except Exception as error:
        error.add_note(
            f"{how}, after {count} of {len(journal)} changes, the last announced of which is {journal.last(count)}"
        )
        raise


@needs_watching
@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.long)], ids=["few", "all"])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_made_again_after_a_crash_loses_nothing_and_brings_nothing_back(name, few, scratch):
    call, folder = CALLS[name](scratch), scratch / "disk"
    journal = journal_of(call, folder)
    call.assert_done(folder)
    disks = list(journal.disks(name, samples=1 if few else 4))
    for count, how, tree in random.Random(name).sample(disks, min(FEW, len(disks))) if few else disks:
        look(call, journal, count, how, tree, folder)


FORGETFUL = {
    "sync_folder": lambda path: None,
    "write_new": lambda path, data: path.write_bytes(data),
    "move": lambda source, target: source.replace(target),
    "unlink": lambda path: path.unlink(missing_ok=True),
}


@needs_watching
@pytest.mark.parametrize("name", FORGETFUL)
def test_a_library_that_forgets_to_sync_is_found_out(name, scratch, monkeypatch):
    """Of this campaign itself: what is not synced is really lost on the disks that it builds."""
    call, folder = request("ids", scratch), scratch / "disk"
    for module in ("files", "store", "transaction", "collect"):
        monkeypatch.setattr(f"pybrush.record.{module}.{name}", FORGETFUL[name], raising=False)
    journal = journal_of(call, folder)
    monkeypatch.undo()
    disks = reversed(list(journal.disks(name, samples=0)))
    assert any(is_lost(call, journal, *crashed, folder) for crashed in disks)


def is_lost(*what):
    """Whether something is wrong with one disk that a crash left."""
    try:
        look(*what)
    except (AssertionError, PyBrushError):
        return True
    return False
