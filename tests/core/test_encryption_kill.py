"""SIGKILL at every step on disk of a fit, a request and a cancellation, where stages are encrypted.

Whatever the instant, the second call ends in the bits of a fresh fit, and the ring holds one key for each stage and
none besides. A request that leaves files of user code leaves them, whoever finishes it.
"""

import json
import re
import shutil
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from pybrush.errors import ErasureError, RecordError
from pybrush.record import Record
from pybrush.record.resolve import Wish
from tests.core.numpy_learner import NumpyLearner
from tests.core.processes import at_once
from tests.core.test_fit_and_forget import KEY, fit, unlearn
from tests.core.test_kill import (  # noqa: F401 (scratch is a fixture)
    SMALL,
    Disk,
    assert_finished,
    id_case,
    in_child,
    kill_points,
    scratch,
)


def make(folder, encrypt=True):
    """Fit the record of `id_case` in a folder of its own, so that its key ring is copied with it."""
    case = id_case()
    found, _ = fit(folder / "record", case.rows, case.ids, **SMALL, encrypt=encrypt)
    found.record.close()


def serve(folder):
    return id_case().serve(folder / "record")


def cancel(folder):
    with closing(Record.open(folder / "record", KEY)) as record:
        record.cancel(1)


@pytest.fixture
def base(scratch):  # noqa: F811 (the fixture)
    make(scratch / "base")
    id_case().twin(scratch / "twin")
    return scratch / "base"


OURS = ("ring", "latest")


def keys_in(folder):
    return {path.name: path.read_bytes() for path in (folder / "record.keys").iterdir() if path.name not in OURS}


def assert_ring_fits(folder):
    """One key for each stage, under which it opens, and no other file."""
    with closing(Record.open(folder / "record", KEY)) as record:
        noted = {record.store.manifest(stage.key).encryption["key_id"] for stage in record.graph()}
        for stage in record.graph():
            record.store.load(stage.key)
    assert keys_in(folder).keys() == noted and len(noted) == len(record_stages(folder))


def record_stages(folder):
    return [path.name for path in (folder / "record" / "stages").iterdir()]


KEY_STEPS = r"after (write ([0-9a-f]{64}|manifest|\.ring)|rename|destroy key|commit commit)"
"""What holds after one step holds before the next; the long tests kill at every step."""

DEPTHS = [KEY_STEPS, pytest.param("", marks=pytest.mark.long)]


def killed(base, work, scratch, pattern):  # noqa: F811
    """Kill `work` after each step that a pattern matches, as `kill_points` does."""
    copy = scratch / "copy"

    def begin_anew():
        shutil.rmtree(copy, ignore_errors=True)
        return copy if base is None else shutil.copytree(base, copy)

    for number, step in enumerate(in_child(partial(work, begin_anew())), start=1):
        if re.match(pattern, step):
            in_child(partial(work, begin_anew()), kill_at=number)
            yield step, copy


@pytest.mark.parametrize("pattern", DEPTHS)
def test_a_request_killed_at_any_step_and_made_again_leaves_one_key_for_each_stage(pattern, base, scratch):  # noqa: F811
    before, steps = keys_in(base), []
    wanted = {path.name for path in (scratch / "twin" / "stages").iterdir()}
    gone = {key for name, key in before.items() if name.partition(".")[0] not in wanted}
    for step, folder in killed(base, serve, scratch, pattern):
        steps.append(step)
        serve(folder)
        assert_finished(folder / "record", scratch / "twin", id_case().gone)
        assert_ring_fits(folder)
        assert set(before.values()) - set(keys_in(folder).values()) == gone != set()
    assert {"after destroy key", "after write manifest.json", "after commit commit"} < set(steps)
    assert any(re.fullmatch(r"after write [0-9a-f]{64}\.[0-9a-f]{8}", step) for step in steps)


@pytest.mark.parametrize("pattern", DEPTHS)
def test_a_first_fit_killed_at_any_step_and_made_again_leaves_one_key_for_each_stage(pattern, scratch):  # noqa: F811
    make(scratch / "twin", encrypt=None)
    steps = []
    for step, folder in killed(None, make, scratch, pattern):
        steps.append(step)
        make(folder)
        assert {path.name for path in folder.iterdir()} == {"record", "record.keys"}
        assert_finished(folder / "record", scratch / "twin" / "record", [])
        assert_ring_fits(folder)
    assert {"after rename ring", "after write .ring.new", "after rename ledger"} < set(steps)


@pytest.mark.parametrize("pattern", DEPTHS)
def test_a_cancellation_killed_at_any_step_and_made_again_leaves_the_keys_of_before(pattern, base, scratch):  # noqa: F811
    for _, stopped in killed(base, serve, scratch, "before commit commit"):
        shutil.copytree(stopped, scratch / "pending")
    assert keys_in(scratch / "pending").keys() > keys_in(base).keys()
    for _, folder in killed(scratch / "pending", cancel, scratch, pattern or "after"):
        cancel(folder)
        assert_finished(folder / "record", base / "record", [])
        assert keys_in(folder) == keys_in(base)


def test_two_processes_that_build_the_same_stages_at_once_leave_one_key_for_each(scratch):  # noqa: F811
    make(scratch / "twin", encrypt=None)
    for attempt in range(3):
        folder = scratch / f"run-{attempt}"
        at_once(partial(make, folder), partial(make, folder))
        assert_finished(folder / "record", scratch / "twin" / "record", [])
        assert_ring_fits(folder)


def test_a_builder_that_comes_second_destroys_its_own_key_and_no_other(base):
    with closing(Record.open(base / "record", KEY)) as record:
        key = record.graph()[0].key
        before = keys_in(base)
        state, manifest = record.store.load(key)
        aside = record.store.write_aside(state, manifest)
        assert len(keys_in(base)) == len(before) + 1
        record.store.sweep(record.ledger.wanted() | {"initial"})
        assert len(keys_in(base)) == len(before) + 1, "this process still writes it"
        record.store.publish(aside, key)
        assert keys_in(base) == before
        record.store.load(key)


def test_a_stage_that_nobody_wants_any_more_when_it_is_built_leaves_no_key(base):
    class Late(NumpyLearner):
        def train_stage(self, *arguments):
            with closing(Record.open(base / "record", KEY)) as record, record.ledger.writing("wanted"):
                record.ledger.set_wanted([])
            return super().train_stage(*arguments)

    before, case = keys_in(base), id_case()
    with pytest.raises(RecordError, match="changed while a state of it was made"):
        unlearn(base / "record", case.rows, case.ask, case.ids, learner=Late([9.0] * 3))
    assert keys_in(base) == before and list((base / "record" / "tmp").iterdir()) == []


def test_keys_of_a_stage_whose_manifest_is_damaged_are_not_swept(base):
    before = keys_in(base)
    (base / "record" / "stages" / record_stages(base)[0] / "manifest.json").write_text("{")
    with closing(Record.open(base / "record", KEY)) as record:
        record.store.sweep(record.ledger.wanted() | {"initial"})
    assert keys_in(base) == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are read from /proc")
def test_a_key_is_on_the_disk_before_its_stage_and_gone_from_it_before_the_ledger_says_so(tmp_path, monkeypatch):
    root = tmp_path.resolve()
    (root / "record").mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(root, patch)
        make(root)
        serve(root)
    ring = root / "record.keys"
    said = [(step, {path for path in lost if path == ring or path.parent == ring}) for step, lost in disk.steps]
    moments = [step for step, _ in said if re.match(r"before (rename [0-9a-f]{64}|commit)", step)]
    assert len(moments) > 10 and any("collected" in step for step in moments)
    assert [(step, lost) for step, lost in said if step in moments and lost] == []
    assert any(lost for _, lost in said), "what is not synced is not noticed"


# Files that a request leaves


def left_by_request(folder):
    with closing(Record.open(folder / "record", KEY)) as record:
        return [request for (request,) in record.ledger.rows("SELECT request FROM artefacts")]


def serve_leaving(folder):
    case = id_case()
    case.ask = lambda record: Wish(names=record.names.samples([case.ids[3], case.ids[8]]), purge="list")
    return case.serve(folder / "record")


@pytest.fixture
def with_checkpoint(scratch):  # noqa: F811
    case = id_case()
    case.make(scratch / "base" / "record")
    case.twin(scratch / "twin")
    return scratch / "base"


@pytest.mark.parametrize("finish", ["again", "fit", "another"])
def test_a_request_that_leaves_files_leaves_them_whoever_finishes_it_after_a_kill(
    finish, with_checkpoint, scratch  # noqa: F811
):  # fmt: skip
    case, kept = id_case(), b"weights"
    moments = r"after (commit (accept|commit|artefacts|collected)|vacuum|remove)"
    for _, folder in killed(with_checkpoint, serve_leaving, scratch, moments):
        if finish == "again":
            result = serve_leaving(folder)
            assert not result.is_complete
            assert result.audit["artefacts_left"] == [str((folder / "record" / "logs" / "last.ckpt").resolve())]
        elif finish == "fit":
            case.refit(folder / "record")
        else:
            ask = lambda record: Wish(names=record.names.samples([case.ids[5]]), purge="list")  # noqa: E731
            case.serve(folder / "record", ask)
        assert (folder / "record" / "logs" / "last.ckpt").read_bytes() == kept
        assert left_by_request(folder) == [1]
        with closing(Record.open(folder / "record", KEY)) as record:
            with pytest.raises(ErasureError, match=r"last\.ckpt"):
                record.verify()
            kinds = [(kind, json.loads(body)) for kind, body in record.ledger.rows("SELECT kind, body FROM events")]
            assert [body for kind, body in kinds if kind == "left"] == [{"artefacts": 1, "request": 1}]
            assert record.settle() == (str((folder / "record" / "logs" / "last.ckpt").resolve()),)
            assert record.verify().is_clean and record.settle() == ()


@pytest.mark.parametrize("first", ["after commit accept", "before commit commit", "after commit commit"])
def test_the_last_word_of_who_repeats_a_request_decides_over_its_files(first, with_checkpoint, scratch):  # noqa: F811
    for begun, again, stays in ((serve, serve_leaving, True), (serve_leaving, serve, False)):
        for _, folder in kill_points(with_checkpoint, begun, scratch, [first]):
            again(folder)
            assert (folder / "record" / "logs" / "last.ckpt").exists() == stays
            assert left_by_request(folder) == [1] * stays


def test_settling_killed_at_any_step_and_done_again_leaves_nothing(with_checkpoint, scratch):  # noqa: F811
    serve_leaving(with_checkpoint)

    def settle(folder):
        with closing(Record.open(folder / "record", KEY)) as record:
            record.settle()

    for _, folder in kill_points(with_checkpoint, settle, scratch):
        settle(folder)
        assert not (folder / "record" / "logs" / "last.ckpt").exists() and left_by_request(folder) == []
        with closing(Record.open(folder / "record", KEY)) as record:
            assert record.verify().is_clean
            kinds = [kind for (kind,) in record.ledger.rows("SELECT kind FROM events")]
            assert kinds.count("settled") == 1
