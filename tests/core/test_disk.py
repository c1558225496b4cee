"""Disks that are full or read-only, and files that another process holds: refused, and nothing half done is left.

Read-only by a mount or, without the right to mount, by the modes of the folders and a process without rights.
Full by a limit on the size of files and, where mounting is allowed, by a small file system.
"""

import ctypes
import os
import resource
import shutil
import sqlite3
from contextlib import closing, contextmanager, suppress

import numpy as np
import pytest

from pybrush import forget
from pybrush.errors import LockedError, RecordError, StorageError
from pybrush.record import Record
from pybrush.record.locks import coordinator_lock, request_lock
from tests.core.numpy_learner import NumpyLearner, roster_of, wish
from tests.core.processes import fork, paused, status_of
from tests.core.small_record import IDS, READERS, WRITERS, N, shard_of
from tests.core.test_fit_and_forget import KEY, assert_same_record, by_ids, data, fit, keep, unlearn
from tests.core.test_refusals import failing
from tests.untouched import files_in, untouched

# Read-only

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_PRIVATE_ALL, CLONE_NEWNS = 1, 32, 4096, (1 << 18) | (1 << 14), 0x20000
LIBC = ctypes.CDLL(None, use_errno=True)


def mounted_anew(place, *how):
    """Mount something on a folder for this process alone; False where that is not allowed."""
    return not (LIBC.unshare(CLONE_NEWNS) or LIBC.mount(None, b"/", None, MS_PRIVATE_ALL, None)) and not any(
        LIBC.mount(source, str(place).encode(), kind, flags, options) for source, kind, flags, options in how
    )


def by_a_mount(place):
    path = str(place).encode()
    return mounted_anew(place, (path, None, MS_BIND, None), (path, None, MS_BIND | MS_REMOUNT | MS_RDONLY, None))


def by_modes(place):
    """Let modes count for this process, also where it is the superuser's; the folders say what they allow."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    return not LIBC.capset(header, (ctypes.c_uint32 * 6)())


@pytest.fixture(params=[by_a_mount, by_modes], ids=["a mount", "modes"])
def read_only(request):
    """Return a function that runs another in a process that cannot write below a folder."""

    def run(place, work):
        def there():
            assert request.param(place) and not os.access(place, os.W_OK)
            work()

        if request.param is by_a_mount and status_of(fork(lambda: os._exit(not by_a_mount(place)))):
            pytest.skip("this process may not mount")
        folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
        modes = {path: path.stat().st_mode for path in folders if request.param is by_modes}
        for path in modes:
            path.chmod(0o500)
        with untouched(place):
            assert status_of(fork(there)) == 0
        for path, mode in modes.items():
            path.chmod(mode)

    return run


def test_a_read_only_record_can_be_looked_at_and_verified_and_nothing_else(folder, read_only):
    def work():
        for name in ("open", "info", "verify"):
            READERS[name](folder)
        for name in ("unlearn", "declare", "enqueue", "amend", "admit"):
            with pytest.raises(StorageError, match="could not be written"):
                WRITERS[name](folder)
        for name in ("fit", "cancel"):  # a fit that is complete, a request that is not known: there is little to write
            with suppress(RecordError):
                WRITERS[name](folder)

    WRITERS["unlearn from a stage"](folder)  # so that the files of the locks are there
    read_only(folder.parent, work)


def test_a_record_is_not_begun_in_a_read_only_folder(tmp_path, read_only):
    def work():
        learner = NumpyLearner([9.0, 9.0, 9.0])
        with pytest.raises(StorageError, match="could not be written"):
            forget.fit(tmp_path / "record", wish(key=None), learner, data(N), roster_of(data(N), IDS))
        assert learner.trained == [] and learner.weights.tolist() == [9.0, 9.0, 9.0]

    read_only(tmp_path, work)


# Full


def limited(size, work):
    """Run `work` in a process in which no file may grow beyond some bytes."""

    def there():
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        work()

    assert status_of(fork(there)) == 0


class Large(NumpyLearner):
    """Has weights that take more room than the ledger does."""

    def __init__(self, fill=0.1):
        super().__init__([fill, -0.2, 0.3])
        self.ballast = np.arange(25_000.0)

    def read_state(self):
        return {**super().read_state(), "ballast": self.ballast + self.weights[0]}


def large_fit(folder, left=None):
    left = np.full(N, True) if left is None else left
    rows, ids = keep(data(N), left), [i for i, kept in zip(IDS, left, strict=True) if kept]
    return forget.fit(folder, wish(), Large(), rows, roster_of(rows, ids)).record.close()


def large_unlearn(folder, learner, ids):
    return unlearn(folder, data(N), by_ids(ids), IDS, learner=learner)


def halves(folder):
    """Return what may not be left of anything that could not be finished."""
    names = {path.name for path in folder.rglob("*")}
    stages_left = [path for path in (folder / "stages").iterdir() if len(list(path.iterdir())) != 3]
    unfinished = [n for n in names if n.endswith(".new") or "journal" in n]
    return [*stages_left, *unfinished, *(folder / "tmp").iterdir()]


def test_a_disk_that_fills_up_in_a_request_leaves_it_pending_and_whole_and_a_rerun_ends_in_the_same_bits(tmp_path):
    folder = tmp_path / "record"
    large_fit(folder)
    before = files_in(folder / "stages", folder / "initial")
    victims = [IDS[0], next(i for i in IDS if shard_of(i) != shard_of(IDS[0]))]

    def on_a_full_disk():
        learner = Large(9.0)
        with pytest.raises(StorageError, match="could not be written") as caught:
            large_unlearn(folder, learner, victims)
        assert "cancel(1)" in caught.value.__notes__[0] and "call unlearn again" in caught.value.__notes__[0]
        assert learner.weights.tolist() == [9.0, -0.2, 0.3] and learner.velocity is None

    limited(150_000, on_a_full_disk)  # room for the ledger and for a manifest, not for a state
    assert halves(folder) == [] and files_in(folder / "stages", folder / "initial") == before
    with closing(Record.open(folder, KEY)) as record:
        assert [request.state for request in record.requests] == ["pending"]
        assert record.verify().pending
    learner = Large(9.0)
    assert large_unlearn(folder, learner, victims).request == 1
    large_fit(tmp_path / "twin", np.array([i not in victims for i in IDS]))
    assert_same_record(folder, tmp_path / "twin")


def test_what_was_built_before_the_disk_was_full_is_kept_and_not_built_again(tmp_path):
    folder = tmp_path / "record"
    large_fit(folder)
    victims, learner = [IDS[0], next(i for i in IDS if shard_of(i) != shard_of(IDS[0]))], Large(9.0)

    def first_stage_only():
        late = Large(9.0)
        train = late.train_stage

        def then_full(*arguments):
            if late.trained:
                resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return train(*arguments)

        late.train_stage = then_full
        with pytest.raises(StorageError):
            large_unlearn(folder, late, victims)
        assert len(late.trained) == 2

    limited(resource.RLIM_INFINITY, first_stage_only)
    assert halves(folder) == []
    needed = unlearn(folder, data(N), by_ids(victims), IDS, learner=learner, dry_run=True).cost.stages_rebuilt
    large_unlearn(folder, learner, victims)
    assert len(learner.trained) == needed - 1
    large_fit(tmp_path / "twin", np.array([i not in victims for i in IDS]))
    assert_same_record(folder, tmp_path / "twin")


@pytest.mark.parametrize("size", [0, 1, 500, 4096])
def test_a_disk_that_is_full_before_a_request_is_accepted_leaves_nothing_of_it(size, folder):
    WRITERS["unlearn from a stage"](folder)  # a ledger that has been written to

    def work():
        for name in ("unlearn", "declare", "enqueue", "amend", "admit"):
            with untouched(folder.parent), pytest.raises(StorageError, match="could not be written"):
                WRITERS[name](folder)

    limited(size, work)
    WRITERS["unlearn"](folder)


@pytest.mark.parametrize("size", [5_000, 20_000, 50_000])
def test_a_first_fit_without_room_for_its_ledger_leaves_no_half_of_it(size, tmp_path):
    record = tmp_path / "record"

    def work():
        with pytest.raises(StorageError, match=r"ledger\.sqlite.* could not be written"):
            fit(record, data(N), IDS)

    limited(size, work)
    assert halves(record) == [] and not (record / "ledger.sqlite").exists()
    fit(record, data(N), IDS)[0].record.close()


@pytest.mark.parametrize("size", [0, 10, 1000, 60_000, 150_000])
def test_a_first_fit_on_a_full_disk_leaves_no_half_of_a_file_and_can_be_run_again(size, tmp_path):
    folder = tmp_path / "record"

    def work():
        with pytest.raises(StorageError, match="could not be written"):
            large_fit(folder)

    limited(size, work)
    assert halves(folder) == [] if (folder / "stages").is_dir() else files_in(folder).keys() <= {str(folder)}
    large_fit(folder)
    large_fit(tmp_path / "twin")
    assert_same_record(folder, tmp_path / "twin")


def in_a_small_file_system(place, bytes_, work):
    """Run `work` in a process for which a folder is a file system of some bytes."""
    options = f"size={bytes_}".encode()

    def there(probe):
        if not mounted_anew(place, (b"tmpfs", b"tmpfs", 0, options)):
            os._exit(3)
        work() if not probe else os._exit(0)

    if os.waitstatus_to_exitcode(status_of(fork(lambda: there(probe=True)))) == 3:
        pytest.skip("this process may not mount")
    assert status_of(fork(lambda: there(probe=False))) == 0


@pytest.mark.parametrize("pages", range(0, 14, 2))
def test_a_request_that_no_space_is_left_for_is_not_accepted_or_stays_pending(pages, folder, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()

    def work():
        shutil.copytree(folder, place / "record")
        fill(place, pages)
        before = files_in(place)
        with pytest.raises(StorageError, match="could not be written"):
            WRITERS["unlearn"](place / "record")
        with closing(Record.open(place / "record", KEY)) as record:
            states = [request.state for request in record.requests]
        assert halves(place / "record") == []
        assert states == ["pending"] or (states == [] and files_in(place) == before)
        (place / "ballast").unlink()
        WRITERS["unlearn"](place / "record")

    in_a_small_file_system(place, 4 << 20, work)


def fill(place, pages):
    """Leave a file system room for some pages."""
    room = os.statvfs(place)
    (place / "ballast").write_bytes(bytes((room.f_bavail - pages) * room.f_frsize))


def test_a_request_on_a_disk_without_space_is_served_once_there_is_some(tmp_path):
    """The system's own answer: no space left on device."""
    place, twin = tmp_path / "disk", tmp_path / "twin"
    place.mkdir()
    victim = next(i for i in IDS if shard_of(i) == 0)
    large_fit(twin, np.array([i != victim for i in IDS]))

    def work():
        folder = place / "record"
        large_fit(folder)
        fill(place, 30)  # room for the ledger, and for no state
        learner = Large(9.0)
        with pytest.raises(StorageError, match="No space left"):
            large_unlearn(folder, learner, [victim])
        assert learner.weights.tolist() == [9.0, -0.2, 0.3] and halves(folder) == []
        with closing(Record.open(folder, KEY)) as record:
            assert [request.state for request in record.requests] == ["pending"]
        (place / "ballast").unlink()
        large_unlearn(folder, learner, [victim])
        assert_same_record(folder, twin)

    in_a_small_file_system(place, 8 << 20, work)


# Held by another process


def holding(hold):
    """Return what a second process does: take something, and hold it until it is told to go on."""

    def work(pause):
        with hold():
            pause()

    return work


@contextmanager
def of_the_ledger(folder, begin):
    with closing(sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)) as connection:
        connection.execute(begin)
        connection.execute("SELECT * FROM plan").fetchall()
        yield


BY_ALL = ["fit", "unlearn", "declare", "enqueue", "amend", "admit", "settle"]
HOLDS = {
    "the lock": (coordinator_lock, BY_ALL, "has been writing"),
    "the request's lock": (request_lock, ["dry run", "unlearn", "cancel"], "another process serves a request"),
    "the ledger, to write": (
        lambda folder: of_the_ledger(folder, "BEGIN EXCLUSIVE"), [*READERS, *WRITERS], "another connection holds"
    ),
    "the ledger, soon to write": (
        lambda folder: of_the_ledger(folder, "BEGIN IMMEDIATE"), ["unlearn", "enqueue"], "another connection holds"
    ),
    "the ledger, to read": (
        lambda folder: of_the_ledger(folder, "BEGIN"), ["unlearn", "declare", "enqueue"], "another connection holds"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOLDS)
def test_what_a_second_process_holds_is_refused_by_name(what, folder, monkeypatch):
    hold, calls, said = HOLDS[what]
    monkeypatch.setattr("pybrush.record.locks._PATIENCE", 0.05)
    monkeypatch.setattr("pybrush.record.ledger._PATIENCE", 0.05)
    with paused(holding(lambda: hold(folder))):
        for name in calls:
            with untouched(folder.parent), pytest.raises(LockedError, match=said):
                (READERS | WRITERS)[name](folder)
    WRITERS["unlearn"](folder)


def test_a_pending_request_that_another_process_serves_cannot_be_cancelled(folder, monkeypatch):
    failing(folder, IDS[:1])
    monkeypatch.setattr("pybrush.record.locks._PATIENCE", 0.05)
    for lock, said in ((request_lock, "another process serves"), (coordinator_lock, "has been writing")):
        held = paused(holding(lambda lock=lock: lock(folder)))
        with held, untouched(folder.parent), pytest.raises(LockedError, match=said):
            WRITERS["cancel"](folder)
    WRITERS["cancel"](folder)
