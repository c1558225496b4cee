"""SIGKILL at every step on disk of a fit, a request and a cancellation; the call is then made again.

Whatever the instant, the second call must end in the bits of a fresh fit without the rows, and leave no
file behind that such a fit does not have. Steps are those that `pybrush.record.files` announces.
"""

import json
import os
import shutil
import signal
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pybrush import forget
from pybrush.content import encode
from pybrush.errors import UnknownSamplesError
from pybrush.names import as_names
from pybrush.record import Record, files
from pybrush.record.resolve import Wish
from pybrush.record.secret import keep_key
from tests import reference
from tests.core.numpy_learner import NumpyLearner, roster_of, wish
from tests.core.processes import at_once, fork, status_of
from tests.core.test_fit_and_forget import KEY, assert_same_record, by_ids, data, fit, keep, unlearn

SMALL = {"shards": 2, "slices": 2, "epochs": 1}
LOCKS = {"lock", "request.lock"}


@pytest.fixture
def scratch():
    """A folder in memory, where the system has one: these tests sync thousands of files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def in_child(work, kill_at=None):
    """Run `work` in a forked process and return the steps it announced; kill it at step `kill_at`, from 1."""
    reader, writer = os.pipe()

    def watched():
        steps = []

        def observe(step):
            steps.append(step)
            if len(steps) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        files.observer = observe
        work()
        os.write(writer, json.dumps(steps).encode())

    child = fork(watched)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read()
    assert status_of(child) == (0 if kill_at is None else signal.SIGKILL)
    return json.loads(told) if told else None


def fitted(folder, *arguments, **plan):
    """A fit whose record is closed again."""
    found, _ = fit(folder, *arguments, **SMALL, **plan)
    found.record.close()


@dataclass
class Case:
    """A record, a request on it, and what the record must be afterwards.

    Attributes:
        rows: the data set. ids, subjects: of its rows, or None.
        ask: record -> wish.
        left: mask of the rows that stay, shape (n,).
        gone: names, subjects and digests that no file may hold afterwards.
        later: mask of the rows that are still in the data set when the request is made; None for all.
        artefact: a row of which some user code left a checkpoint behind, in the record; None for none.
        first: rows, ids and subjects of the fit, where the data set has changed since.
        enqueue: what comes into the queue after the fit, a function of the record; None for nothing.
    """

    rows: Any
    ids: Any
    subjects: Any
    ask: Any
    left: Any
    gone: list
    later: Any = None
    artefact: int | None = None
    first: tuple | None = None
    enqueue: Any = None

    def make(self, folder):
        fitted(folder, *(self.first or (self.rows, self.ids, self.subjects)))
        if self.artefact is not None:
            leave_checkpoint(folder, self.ids[self.artefact])
        if self.enqueue is not None:
            with closing(Record.open(folder, KEY)) as record:
                self.enqueue(record)

    def serve(self, folder, ask=None):
        rows, ids, subjects = self.of(np.full(len(self.left), True) if self.later is None else self.later)
        return unlearn(folder, rows, ask or self.ask, ids, subjects)

    def refit(self, folder):
        fitted(folder, self.rows, self.ids, self.subjects)

    def twin(self, folder, left=None):
        fitted(folder, *self.of(self.left if left is None else left))

    def new_names(self):
        """Return the pseudonyms of rows that the data set got after the fit."""
        return [] if self.first is None else [reference.pseudonym(KEY, b"s:" + i.encode()) for i in self.ids[14:]]

    def of(self, mask):
        kept = np.flatnonzero(mask)
        ids, subjects = (None if values is None else [values[i] for i in kept] for values in (self.ids, self.subjects))
        return keep(self.rows, kept), ids, subjects


def leave_checkpoint(folder, sample_id):
    """Do what a user's callback does: announce a file that holds what a stage made of a sample, then write it."""
    with closing(Record.open(folder, KEY)) as record:
        samples = record.samples()
        shard = samples.shards[samples.find(record.names.samples([sample_id]))[0]]
        record.register_artefact(folder / "logs" / "last.ckpt", record.constituents()[shard], "checkpoint")
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "last.ckpt").write_bytes(b"weights")


def digests_of(rows, positions):
    return [reference.content_digest(KEY, encode((rows[0][i], rows[1][i]))) for i in positions]


def id_case():
    rows, ids = data(14), [f"person-{i:012d}" for i in range(14)]
    names = [reference.pseudonym(KEY, b"s:" + ids[i].encode()) for i in (3, 8)]
    left = ~np.isin(np.arange(14), (3, 8))
    gone = names + digests_of(rows, (3, 8)) + [ids[3].encode()]
    return Case(rows, ids, None, by_ids([ids[3], ids[8]]), left, gone, artefact=3)


def subject_case():
    rows, subjects = data(14), [[f"subject-{i % 7}", f"guardian-{i % 7}"] for i in range(14)]
    persons = [reference.subject(KEY, b"s:" + text) for text in (b"subject-4", b"guardian-4")]
    digests = digests_of(rows, (4, 11))
    names = [reference.pseudonym(KEY, b"c:" + digest + persons[0]) for digest in digests]
    left = np.arange(14) % 7 != 4
    ask = lambda record: Wish(subjects=record.names.subjects(["subject-4"]))  # noqa: E731
    return Case(rows, None, subjects, ask, left, persons + names + digests)


def copies_case():
    """Three equal rows of which one is forgotten, and a row of its own."""
    x, y = data(14)
    x[[5, 9, 12]], y[[5, 9, 12]] = x[5], y[5]
    left = ~np.isin(np.arange(14), (2, 5))
    digests = digests_of((x, y), (2,))
    names = [reference.pseudonym(KEY, b"c:" + digest) for digest in digests]
    ask = lambda record: Wish(names=roster_of((x, y))(record.names).names[[2, 5]])  # noqa: E731
    return Case((x, y), None, None, ask, left, names + digests)


def contents_case():
    """An id record from which rows are forgotten that are given as data."""
    case = id_case()
    contents = as_names(digests_of(case.rows, (3, 8)))
    case.ask = lambda _: Wish(contents=contents)
    return case


def owned_case():
    """Rows given as data, with the person whose they are."""
    case = subject_case()
    contents = as_names(digests_of(case.rows, (4, 11)))
    case.ask = lambda record: Wish(contents=contents, subjects=record.names.subjects(["subject-4"]))
    return case


def missing_case():
    case = id_case()
    case.later, case.ask = case.left, lambda _: Wish(missing=True)
    return case


def batch_case():
    """Of fourteen people one id and one person are forgotten, two rows are amended, and of four new rows three join."""
    rows, ids = data(18), [f"person-{i:012d}" for i in range(18)]
    before, people = (rows[0].copy(), rows[1].copy()), [[f"subject-{i % 9}"] for i in range(18)]
    people_before = [["moves-away"] if i == 10 else row for i, row in enumerate(people)]
    rows[0][[4, 10]] += 1
    left = ~np.isin(np.arange(18), (3, 5, 14))
    persons = [reference.subject(KEY, text) for text in (b"s:subject-5", b"s:moves-away")]
    names = [reference.pseudonym(KEY, b"s:" + ids[i].encode()) for i in (3, 5)]
    first = (before[0][:14], before[1][:14]), ids[:14], people_before[:14]

    def ask(record):
        named, amended = (record.names.samples([ids[i] for i in rows]) for rows in ((3,), (3, 4, 10)))
        asking = record.names.subjects(["subject-5"])
        return Wish(names=named, subjects=asking, amended=amended, admits=True)

    gone = persons + names + digests_of(before, (3, 4, 5, 10))
    return Case(rows, ids, people, ask, left, gone, artefact=4, first=first)


def queue_case():
    """The same batch, which waits in the queue."""
    case = batch_case()

    def enqueue(record):
        record.enqueue(ids=[case.ids[3]])
        record.enqueue(subjects=["subject-5"])
        record.amend([case.ids[i] for i in (3, 4, 10)])
        record.admit()

    case.enqueue, case.ask = enqueue, lambda _: Wish(queued=True, raw_ids=None)
    return case


def joining_case():
    """Rows without ids: one is forgotten, and among the new ones are copies of a recorded one and of a new one."""
    (x, y), left = data(18), np.arange(18) != 2
    for first, *others in ([5, 9, 14, 16], [15, 17]):
        x[others], y[others] = x[first], y[first]
    digests = digests_of((x, y), (2,))
    ask = lambda record: Wish(names=roster_of((x, y))(record.names).names[[2]], admits=True)  # noqa: E731
    gone = [reference.pseudonym(KEY, b"c:" + digest) for digest in digests] + digests
    return Case((x, y), None, None, ask, left, gone, first=((x[:14], y[:14]), None, None))


CASES = {
    "ids": id_case,
    "subject": subject_case,
    "copies": copies_case,
    "contents": contents_case,
    "owned": owned_case,
    "missing": missing_case,
    "batch": batch_case,
    "joining": joining_case,
}


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - LOCKS


def assert_finished(folder, twin, gone):
    """The record is the twin's, bit for bit and file for file, and holds nothing of what is gone."""
    assert_same_record(folder, twin)
    with closing(Record.open(folder, KEY)) as record:
        assert record.verify().is_clean
        assert {request.state for request in record.requests} <= {"sealed", "cancelled"}
    assert files_in(folder) == files_in(twin)
    assert reference.files_holding(folder, gone) == []


def kill_points(base, work, scratch, only=None):
    """Kill `work` at each of its steps, or at some, each time on a copy of `base`; yields (step, copy)."""
    copy = scratch / "copy"
    _copy(base, copy)
    steps = in_child(partial(work, copy))
    for number, step in enumerate(steps, start=1):
        if only is None or step in only:
            _copy(base, copy)
            in_child(partial(work, copy), kill_at=number)
            yield step, copy


def _copy(base, copy):
    shutil.rmtree(copy, ignore_errors=True)
    return copy if base is None else shutil.copytree(base, copy)


LAST = "after unlink 1"
"""The last step on disk: only the answer is still to be given, and nobody knows any more what the request named."""


def with_twins(case, scratch):
    case.make(scratch / "base")
    case.twin(scratch / "twin")
    return scratch / "base", scratch / "twin"


@pytest.mark.parametrize("name", CASES)
def test_a_request_killed_at_any_step_and_made_again_has_the_bits_of_a_fit_without_the_rows(name, scratch):
    case = CASES[name]()
    base, twin = with_twins(case, scratch)
    steps = []
    for step, folder in kill_points(base, case.serve, scratch):
        steps.append(step)
        if step == LAST and name == "copies":  # the next test
            continue
        case.serve(folder)
        assert_finished(folder, twin, case.gone)
        with closing(Record.open(folder, KEY)) as record:
            assert len(record.requests) == 1
    assert {LAST, "after commit accept", "after commit commit", "after vacuum", "after commit seal"} < set(steps)
    assert case.artefact is None or "after unlink last.ckpt" in steps


def test_made_again_after_its_last_step_a_request_for_one_of_three_equal_rows_takes_one_more(scratch):
    case = copies_case()
    base, _ = with_twins(case, scratch)
    one_more = case.left & (np.arange(14) != 9)
    case.twin(scratch / "fewer", one_more)
    for _, folder in kill_points(base, case.serve, scratch, [LAST]):
        case.serve(folder)
        assert_finished(folder, scratch / "fewer", case.gone)


def test_a_request_of_which_all_but_the_file_is_there_to_be_sealed_is_sealed(scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    for _, folder in kill_points(base, case.serve, scratch, ["after commit collected"]):
        (folder / "pending" / "1").unlink()
        case.serve(folder)
        assert_finished(folder, twin, case.gone)


def test_until_its_file_is_unlinked_a_request_is_collected_and_not_sealed(scratch):
    case = id_case()
    base, _ = with_twins(case, scratch)
    for _, folder in kill_points(base, case.serve, scratch, ["after commit seal"]):
        with closing(Record.open(folder, KEY)) as record:
            assert [request.state for request in record.requests] == ["collected"]
            assert not record.verify().is_clean
        case.serve(folder)
        with closing(Record.open(folder, KEY)) as record:
            assert [kind for (kind,) in record.ledger.rows("SELECT kind FROM events")].count("sealed") == 1


def test_a_file_that_was_unlinked_just_before_a_kill_is_not_told_of_as_absent(scratch):
    case = id_case()
    base, _ = with_twins(case, scratch)
    for _, folder in kill_points(base, case.serve, scratch, ["before unlink last.ckpt", "after unlink last.ckpt"]):
        audit = case.serve(folder).audit
        assert audit["artefacts_unlinked"] == [str(folder / "logs" / "last.ckpt")] and audit["absent"] == []


def test_another_request_after_a_kill_finishes_the_first_and_serves_its_own(scratch):
    case = id_case()
    base, _ = with_twins(case, scratch)
    case.twin(scratch / "both", case.left & (np.arange(14) != 5))
    steps = in_child(partial(case.serve, _copy(base, scratch / "copy")))
    # What holds after one step holds before the next.
    for _, folder in kill_points(base, case.serve, scratch, [step for step in steps if step.startswith("after")]):
        with closing(Record.open(folder, KEY)) as record:
            accepted = bool(record.requests)
        case.serve(folder, by_ids([case.ids[5]] if accepted else [case.ids[i] for i in (3, 5, 8)]))
        assert_finished(folder, scratch / "both", case.gone)


def test_a_wish_that_is_refused_does_not_hold_up_a_request_that_was_committed(scratch):
    case = subject_case()
    base, twin = with_twins(case, scratch)
    steps = ["after commit commit", "after vacuum", "after commit seal", LAST]
    for _, folder in kill_points(base, case.serve, scratch, steps):
        with pytest.raises(UnknownSamplesError):
            case.serve(folder, lambda record: Wish(names=record.names.samples(["nobody"])))
        assert_finished(folder, twin, case.gone)


@pytest.mark.parametrize("first", ["after commit accept", "after commit commit"])
def test_a_rerun_may_be_killed_at_any_step_as_well(first, scratch):
    case = copies_case()
    base, twin = with_twins(case, scratch)
    for _, stopped in kill_points(base, case.serve, scratch, [first]):
        shutil.copytree(stopped, scratch / "stopped")
    for step, folder in kill_points(scratch / "stopped", case.serve, scratch):
        if step != LAST:
            case.serve(folder)
            assert_finished(folder, twin, case.gone)


@pytest.mark.parametrize("name", ["ids", "subject"])
def test_a_fit_finishes_a_request_that_was_accepted_and_drops_one_that_was_not(name, scratch):
    case = CASES[name]()
    base, twin = with_twins(case, scratch)
    for _, folder in kill_points(base, case.serve, scratch):
        with closing(Record.open(folder, KEY)) as record:
            accepted = bool(record.requests)
        case.refit(folder)
        assert_finished(folder, *((twin, case.gone) if accepted else (base, [])))


def test_a_fit_finishes_a_batch_that_amends_and_admits(scratch):
    case = batch_case()
    base, twin = with_twins(case, scratch)
    late = ("before commit seal", "after commit seal", "after unlink 1")
    for _, folder in kill_points(base, case.serve, scratch, ["after commit accept", "after commit commit", *late]):
        case.refit(folder)
        assert_finished(folder, twin, case.gone)


@pytest.mark.parametrize("name", ["ids", "batch"])
def test_a_cancellation_killed_at_any_step_and_made_again_leaves_the_record_as_before_the_request(name, scratch):
    case = CASES[name]()
    base, _ = with_twins(case, scratch)
    # Killed once all is built: every stage of the request has to go again.
    for _, stopped in kill_points(base, case.serve, scratch, ["before commit commit"]):
        shutil.copytree(stopped, scratch / "pending")
    for _, folder in kill_points(scratch / "pending", cancel, scratch):
        cancel(folder)
        never = case.new_names() + [ids for ids in case.gone if len(ids) > 16]
        assert_finished(folder, base, never)
        with closing(Record.open(folder, KEY)) as record:
            assert [request.state for request in record.requests] == ["cancelled"]


def test_a_stage_whose_removal_was_cut_short_is_built_again_when_it_is_wanted_again(scratch, monkeypatch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    for _, stopped in kill_points(base, case.serve, scratch, ["before commit commit"]):
        folder = shutil.copytree(stopped, scratch / "pending")

    def removed_in_part(path):
        next(path.iterdir()).unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr("pybrush.record.files.shutil", SimpleNamespace(rmtree=removed_in_part))
        assert status_of(fork(partial(cancel, folder))) == signal.SIGKILL
    case.serve(folder)
    assert_finished(folder, twin, case.gone)


def cancel(folder):
    with closing(Record.open(folder, KEY)) as record:
        record.cancel(1)


def first_fit(folder):
    """A fit that makes its record and, beside it, its key."""
    rows = data(14)
    plan = wish(**SMALL, naming="content", key=None)
    found = forget.fit(folder / "record", plan, NumpyLearner([0.1, -0.2, 0.3]), rows, roster_of(rows))
    found.record.close()


def test_a_first_fit_killed_at_any_step_and_made_again_has_the_bits_of_one_that_was_not(scratch, monkeypatch):
    # Another key is another placement, and has other steps.
    monkeypatch.setattr("pybrush.record.secret.secrets", SimpleNamespace(token_bytes=lambda size: KEY[:size]))
    steps = []
    fitted(scratch / "twin", data(14))
    for step, folder in kill_points(None, first_fit, scratch):
        steps.append(step)
        first_fit(folder)
        assert {path.name for path in folder.iterdir()} == {"record", "record.key"}
        assert (folder / "record.key").read_bytes() == KEY
        assert_finished(folder / "record", scratch / "twin", [])
    assert {"after link record.key", "before write ledger", "after commit plan", "after commit release"} < set(steps)


def test_a_request_finishes_a_fit_that_was_killed(scratch):
    case = id_case()
    case.twin(scratch / "twin")
    for step, folder in kill_points(None, case.make, scratch):
        if (folder / "ledger.sqlite").is_file() and step not in ("after rename ledger", "before commit plan"):
            case.serve(folder)
            assert_finished(folder, scratch / "twin", case.gone)


def test_a_request_killed_at_any_instant_and_made_again_has_the_same_bits(scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    started = time.perf_counter()
    assert status_of(fork(partial(case.serve, _copy(base, scratch / "copy")))) == 0
    whole = time.perf_counter() - started
    # Also in the middle of a write, and between two steps that are not announced.
    for number in range(25):
        folder = _copy(base, scratch / "copy")
        child = fork(partial(case.serve, folder))
        time.sleep(whole * number / 25)
        os.kill(child, signal.SIGKILL)
        status_of(child)
        case.serve(folder)
        assert_finished(folder, twin, case.gone)


def test_two_processes_that_make_one_record_at_once_end_with_the_same_one(scratch):
    case = id_case()
    case.make(scratch / "twin")
    for attempt in range(3):
        work = partial(case.make, scratch / f"record-{attempt}")
        at_once(work, work)
        assert_finished(scratch / f"record-{attempt}", scratch / "twin", [])


def test_records_that_share_a_key_file_and_are_made_at_once_share_the_key(scratch, monkeypatch):
    monkeypatch.setenv("PYBRUSH_KEY_FILE", str(scratch / "shared.key"))
    at_once(*(partial(first_fit, scratch / f"run-{number}") for number in range(4)))
    for number in range(4):
        with closing(Record.open(scratch / f"run-{number}" / "record")) as record:
            assert record.names.key_id == record.plan.key_id
    assert {path.name for path in scratch.iterdir() if path.is_file()} == {"shared.key"}


def test_a_key_that_another_process_made_meanwhile_is_read_and_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "record.key"

    def make_another(step):
        if step == "before link record.key":
            path.write_bytes(KEY)

    monkeypatch.setattr(files, "observer", make_another)
    assert keep_key(tmp_path / "record", None, bytes(32)) == KEY == path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


class Disk:
    """Watches syncs and renames: what a power loss would leave behind.

    Attributes:
        unsynced: files written or folders changed since they were last synced.
        steps: each step announced, with what was not yet synced at that moment.
    """

    def __init__(self, root, monkeypatch):
        self.root, self.unsynced, self.steps = root, set(), []
        opened, synced, replaced, unlinked = os.open, os.fsync, os.replace, os.unlink

        def spy_open(path, flags, *mode, **more):
            # SQLite syncs its own files, and locks carry no data.
            if flags & os.O_CREAT and Path(path).name not in {*LOCKS, "ledger.sqlite.new"}:
                self.unsynced |= {Path(path), Path(path).parent}
            return opened(path, flags, *mode, **more)

        def spy_unlink(path, **more):
            self.unsynced.add(Path(path).parent)
            unlinked(path, **more)

        def spy_sync(handle):
            self.unsynced.discard(Path(f"/proc/self/fd/{handle}").readlink())
            synced(handle)

        def spy_replace(source, target):
            source, target = Path(source), Path(target)
            lost = {path for path in self.unsynced if path == source or path.is_relative_to(source)}
            self.steps.append((f"move {target.name}", lost))
            self.unsynced.add(target.parent)
            replaced(source, target)

        monkeypatch.setattr(os, "open", spy_open)
        monkeypatch.setattr(os, "fsync", spy_sync)
        monkeypatch.setattr(os, "replace", spy_replace)
        monkeypatch.setattr(os, "unlink", spy_unlink)
        monkeypatch.setattr(files, "observer", self.announced)

    def announced(self, step):
        # What lies in tmp/ is written again after a crash.
        here = {path for path in self.unsynced if path.is_relative_to(self.root) and path.exists()}
        lost = here - {self.root / "tmp"}
        self.steps.append((step, lost))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are read from /proc")
def test_whatever_the_ledger_speaks_of_is_synced_before_the_ledger_says_so(tmp_path, monkeypatch):
    folder = tmp_path.resolve() / "record"
    case = id_case()
    with monkeypatch.context() as patch:
        disk = Disk(folder, patch)
        case.make(folder)
        case.serve(folder)
    said = [(step, lost) for step, lost in disk.steps if step.startswith(("before commit", "move"))]
    steps = {step for step, _ in said}
    assert {"before commit accept", "before commit commit", "before commit seal", "move 1"} <= steps
    assert [(step, lost) for step, lost in said if lost] == []
