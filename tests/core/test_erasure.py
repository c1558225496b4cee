"""What a request leaves behind: nothing that names the forgotten, by a search that is not the library's.

Names and digests are computed by the twins and looked for in every file of the record, raw and in hexadecimal.
"""

import os
import shutil
import socket
import sqlite3
import stat
from contextlib import closing

import numpy as np
import pytest

from pybrush import forget
from pybrush.build import Sources
from pybrush.errors import CorruptRecordError, ErasureError, LockedError, RecordError
from pybrush.learner import Trained
from pybrush.record import Record
from pybrush.record.ledger import Ledger
from pybrush.record.resolve import Wish
from pybrush.record.search import find_bytes, name_needles
from pybrush.request import Roster
from tests import reference
from tests.core.numpy_learner import NumpyLearner, roster_of, wish
from tests.core.processes import fork, status_of
from tests.core.test_fit_and_forget import KEY, assert_same_record, by_ids, data, fit, keep, unlearn
from tests.core.test_kill import CASES, digests_of, id_case


@pytest.fixture
def served(tmp_path):
    """A record of twenty ids, with two artefacts a stage, from which nothing was forgotten yet."""
    rows, ids = data(20), [f"person-{i:012d}" for i in range(20)]
    found, _ = fit(tmp_path / "a", rows, ids)
    found.record.close()
    return tmp_path / "a", rows, ids


def name_of(sample_id):
    return reference.pseudonym(KEY, b"s:" + sample_id.encode())


@pytest.mark.parametrize("name", CASES)
def test_after_a_request_no_file_of_the_record_holds_what_it_forgot(name, tmp_path):
    case = CASES[name]()
    case.make(tmp_path / "a")
    before = reference.files_holding(tmp_path / "a", [row for row in case.gone if len(row) == 16])
    assert before == ["ledger.sqlite"]
    audit = case.serve(tmp_path / "a").audit
    assert reference.files_holding(tmp_path / "a", case.gone) == []
    assert audit["searched_names"] == len({row for row in case.gone if len(row) == 16})
    assert audit["searched_files"] > 5 and audit["raw_ids_found_in"] == []


def stages_of(folder, sample_id):
    """Return the keys of the stages that saw a sample, and of those that did not."""
    with closing(Record.open(folder, KEY)) as record:
        samples = record.samples()
        at = int(samples.find(record.names.samples([sample_id]))[0])
        seen = [
            stage.key
            for stage in record.graph()
            if stage.shard == samples.shards[at] and stage.slice >= samples.slices[at]
        ]
        return seen, sorted(record.store.keys() - set(seen))


def register(folder, path, key):
    with closing(Record.open(folder, KEY)) as record:
        record.register_artefact(path, key, "checkpoint")


def test_artefacts_of_stages_that_saw_a_forgotten_row_are_removed_wherever_they_lie_and_no_others(served, tmp_path):
    folder, rows, ids = served
    seen, unseen = stages_of(folder, ids[4])
    doomed = [tmp_path / "logs" / "last.ckpt", folder / "logs" / "one.ckpt", tmp_path / "sharded"]
    kept = [tmp_path / "logs" / "other.ckpt", tmp_path / "logs" / "never-registered.ckpt"]
    for path in (doomed[0], doomed[1], *kept, doomed[2] / "part-0"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
    for path in doomed:
        register(folder, path, seen[0])
    register(folder, kept[0], unseen[0])
    register(folder, tmp_path / "announced-and-never-written", seen[0])
    audit = unlearn(folder, rows, by_ids([ids[4]]), ids).audit
    assert audit["artefacts_unlinked"] == sorted(map(str, doomed))
    assert audit["absent"] == [str(tmp_path / "announced-and-never-written")]
    assert not any(path.exists() for path in doomed) and all(path.exists() for path in kept)
    with closing(Record.open(folder, KEY)) as record:
        assert record.artefacts() == {str(kept[0]): unseen[0]}
        assert record.verify().artefacts == 1


def test_a_record_that_was_moved_still_finds_the_artefacts_inside_it(served, tmp_path):
    folder, rows, ids = served
    seen, _ = stages_of(folder, ids[4])
    register(folder, folder / "logs" / "one.ckpt", seen[0])
    (folder / "logs").mkdir()
    (folder / "logs" / "one.ckpt").write_bytes(b"weights")
    shutil.move(folder, tmp_path / "elsewhere")
    unlearn(tmp_path / "elsewhere", rows, by_ids([ids[4]]), ids)
    assert not (tmp_path / "elsewhere" / "logs" / "one.ckpt").exists()


def test_a_file_that_passes_to_another_stage_is_removed_before_it_is_registered_anew(served, tmp_path):
    folder, _, ids = served
    seen, unseen = stages_of(folder, ids[4])
    (tmp_path / "last.ckpt").write_bytes(b"weights")
    register(folder, tmp_path / "last.ckpt", seen[0])
    assert (tmp_path / "last.ckpt").exists()
    register(folder, tmp_path / "last.ckpt", unseen[0])
    assert not (tmp_path / "last.ckpt").exists()


def test_a_folder_that_holds_the_record_is_never_registered_as_an_artefact(served, tmp_path):
    folder, _, ids = served
    for path in (folder, tmp_path):
        with pytest.raises(RecordError, match="holds the record"):
            register(folder, path, stages_of(folder, ids[4])[0][0])


def test_an_artefact_that_outlives_its_stage_is_a_defect_for_verify(served, tmp_path):
    folder, rows, ids = served
    seen, _ = stages_of(folder, ids[4])
    unlearn(folder, rows, by_ids([ids[4]]), ids)
    register(folder, tmp_path / "late.ckpt", seen[0])
    (tmp_path / "late.ckpt").write_bytes(b"weights")
    with closing(Record.open(folder, KEY)) as record, pytest.raises(ErasureError, match=r"late\.ckpt"):
        record.verify()


@pytest.mark.parametrize("form", [lambda name: name, lambda name: name.hex().encode()], ids=["raw", "hex"])
@pytest.mark.parametrize("many", [1, 10], ids=["one-name", "many-names"])
def test_a_file_that_still_names_the_forgotten_stops_the_seal_until_it_is_gone(served, form, many):
    folder, rows, ids = served
    leak = folder / "evidence" / "notes.txt"
    leak.write_bytes(b"x" * 5 + form(name_of(ids[many - 1])) + b"y")
    (folder / "evidence" / "tiny").write_bytes(b"abc")
    learner = NumpyLearner([9.0, 9.0, 9.0])
    with pytest.raises(ErasureError, match=r"notes\.txt") as caught:
        unlearn(folder, rows, by_ids(ids[:many]), ids, learner=learner)
    assert str(folder / "evidence" / "tiny") not in str(caught.value)
    with closing(Record.open(folder, KEY)) as record:
        assert [request.state for request in record.requests] == ["committed"]
        with pytest.raises(ErasureError, match=r"notes\.txt"):
            record.verify()
        last = record.constituents()
        state, _ = record.store.load(last[max(last)])
        assert np.array_equal(learner.weights, state["weights"]), "the model in hand has not forgotten"
    leak.unlink()
    assert unlearn(folder, rows, by_ids(ids[:many]), ids).request == 1
    fit(folder.with_name("b"), keep(rows, np.arange(20) >= many), ids[many:])[0].record.close()
    assert_same_record(folder, folder.with_name("b"))


def test_a_digest_that_a_file_still_holds_stops_the_seal_too(served):
    folder, rows, ids = served
    (folder / "evidence" / "digest").write_bytes(digests_of(rows, [4])[0])
    with pytest.raises(ErasureError, match="digest"):
        unlearn(folder, rows, by_ids([ids[4]]), ids)


def test_a_long_id_in_a_file_is_reported_and_does_not_stop_the_seal(served):
    folder, rows, ids = served
    (folder / "evidence" / "list.txt").write_text(f"{ids[4]}\n")
    ask = lambda record: Wish(names=record.names.samples([ids[4]]), raw_ids=(ids[4].encode(),))  # noqa: E731
    assert unlearn(folder, rows, ask, ids).audit["raw_ids_found_in"] == [str(folder / "evidence" / "list.txt")]


def test_the_search_finds_what_a_naive_search_finds_at_every_offset_and_in_files_of_every_size(tmp_path):
    rng = np.random.default_rng(0)
    names = [rng.bytes(16) for _ in range(40)]
    for count in (1, 40):
        for size in (*range(1, 40), 300):
            for at in {0, 1, 7, max(0, size - 16)}:
                path = tmp_path / "file"
                path.write_bytes((rng.bytes(at) + names[count - 1] + rng.bytes(size))[:size])
                found = bool(find_bytes([path], name_needles(names[:count])))
                assert found == bool(reference.files_holding(tmp_path, names[:count])) == (size >= at + 16)


def test_the_search_finds_what_lies_across_the_pieces_in_which_it_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("pybrush.record.search._CHUNK", 64)
    rng = np.random.default_rng(0)
    names = [rng.bytes(16) for _ in range(40)]
    path = tmp_path / "file"
    for at in range(140):
        path.write_bytes(bytes(at) + names[-1].hex().encode() + bytes(50))
        assert find_bytes([path], name_needles(names[:1] + names[-1:])) == [path]
        assert find_bytes([path], name_needles(names)) == [path]
        assert find_bytes([path], name_needles(names[:-1])) == []


class Idle(NumpyLearner):
    """Trains nothing, for records of many rows."""

    def train_stage(self, data, rows, horizon, seeds):
        return Trained(1, 0.0)


def large_record(folder):
    """Forget every fifth of 100,000 rows of 50,000 people, and return what no file may hold."""
    n = 100_000
    ids, people = list(range(n)), [[f"person-{i % (n // 2)}"] for i in range(n)]

    def name(namer):
        return Roster(namer, n, ids, people, lambda i: b"row %d" % i)

    forget.fit(folder, wish(shards=1, slices=1), Idle([0.0]), None, name).record.close()
    gone = range(0, n, 5)
    with closing(Record.open(folder, KEY)) as record:
        sources = Sources(Idle([0.0]), None, name(record.names))
        forget.unlearn(record, sources, Wish(names=record.names.samples(gone)), aggregate=lambda _: None)
    return (
        {reference.pseudonym(KEY, b"i:%d" % i) for i in gone}
        | {reference.content_digest(KEY, b"row %d" % i) for i in gone}
        | {reference.subject(KEY, b"s:person-%d" % (i % (n // 2))) for i in gone}
    )


def held(folder, secrets):
    """Return which of many 16-byte strings the ledger holds: the naive search, over a set."""
    data = (folder / "ledger.sqlite").read_bytes()
    return {data[i : i + 16] for i in range(len(data) - 15) if data[i : i + 16] in secrets}


def test_a_large_ledger_holds_no_forgotten_name_after_it_was_rewritten(tmp_path):
    gone = large_record(tmp_path / "a")
    assert len(gone) == 50_000
    assert held(tmp_path / "a", gone) == set()


def test_a_large_ledger_that_is_not_rewritten_keeps_names_and_both_searches_notice(tmp_path, monkeypatch):
    # Measured with SQLite 3.40: names stay from about 30,000 rows on, where pages were split and merged.
    monkeypatch.setattr(Ledger, "vacuum", lambda self: None)
    with pytest.raises(ErasureError, match=r"ledger\.sqlite"):
        large_record(tmp_path / "a")
    gone = {reference.subject(KEY, b"s:person-%d" % i) for i in range(0, 50_000, 5)}
    assert held(tmp_path / "a", gone)


def test_what_is_deleted_from_a_small_ledger_is_overwritten_even_before_it_is_rewritten(tmp_path, monkeypatch):
    monkeypatch.setattr(Ledger, "vacuum", lambda self: None)
    case = id_case()
    case.make(tmp_path / "a")
    case.serve(tmp_path / "a")
    assert reference.files_holding(tmp_path / "a", case.gone) == []


class Noting(NumpyLearner):
    """Notes every row that it is given to train on."""

    def __init__(self):
        super().__init__([9.0, 9.0, 9.0])
        self.seen = set()

    def train_stage(self, data, rows, horizon, seeds):
        self.seen |= set(rows(0).tolist())
        return super().train_stage(data, rows, horizon, seeds)


@pytest.mark.parametrize("ids", [None, list(range(40))], ids=["content", "ids"])
def test_rows_that_were_forgotten_are_never_trained_again_though_they_are_still_in_the_file(ids, tmp_path):
    rows, learner = data(), Noting()
    fit(tmp_path / "a", rows, ids)[0].record.close()
    for gone in ([3, 4], [5], [20]):
        ask = lambda record, gone=gone: Wish(names=roster_of(rows, ids)(record.names).names[gone])  # noqa: E731
        unlearn(tmp_path / "a", rows, ask, ids, learner=learner)
        learner.seen -= {20} if gone != [20] else set()
    plan = wish(naming="content" if ids is None else "ids")
    again = forget.fit(tmp_path / "a", plan, learner, rows, roster_of(rows, ids))
    again.record.close()
    assert again.built == () and learner.seen
    assert not learner.seen & {3, 4, 5, 20}


def tamper(folder, statement):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        assert connection.execute(statement).rowcount > 0
        connection.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET body = replace(body, '1', '2') WHERE kind = 'accepted'",
        "UPDATE events SET time = '2001-01-01T00:00:00Z' WHERE number = 2",
        "UPDATE events SET kind = 'cancelled' WHERE kind = 'sealed'",
        "DELETE FROM events WHERE number = 2",
        "DELETE FROM events WHERE number = 1",
        "DELETE FROM events WHERE kind = 'sealed'",
        "DELETE FROM events WHERE number > 2",
        "DELETE FROM events",
        "INSERT INTO events SELECT number + 1, kind, time, body, digest FROM events ORDER BY number DESC LIMIT 1",
    ],
)
def test_whoever_changes_cuts_or_lengthens_the_history_of_a_record_is_noticed(statement, served):
    folder, rows, ids = served
    unlearn(folder, rows, by_ids([ids[4]]), ids)
    with closing(Record.open(folder, KEY)) as record:
        assert record.verify().events == 5  # planned, fitted, accepted, committed, sealed
    tamper(folder, statement)
    with closing(Record.open(folder, KEY)) as record, pytest.raises(CorruptRecordError, match="event"):
        record.verify()


def test_events_hold_commitments_that_the_salt_in_the_result_opens_and_nothing_else_does(served):
    folder, rows, ids = served
    result = unlearn(folder, rows, by_ids([ids[4]]), ids)
    with closing(Record.open(folder, KEY)) as record:
        bodies = [body for (body,) in record.ledger.rows("SELECT body FROM events WHERE kind = 'accepted'")]
        assert record.ledger.rows("SELECT * FROM salts") == []
    body = name_of(ids[4]) + digests_of(rows, [4])[0] + reference.numbers(1)
    assert reference.commitment(bytes.fromhex(result.salt), body).hex() in bodies[0]
    assert reference.files_holding(folder, [bytes.fromhex(result.salt)]) == []


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_nobody_but_the_owner_may_enter_a_record_or_read_its_files_whatever_the_umask(mask, tmp_path):
    case = id_case()
    before = os.umask(mask)
    try:
        plan = wish(key=None)
        forget.fit(tmp_path / "a", plan, NumpyLearner([0.1, -0.2, 0.3]), case.rows, roster_of(case.rows, case.ids))
        with closing(Record.open(tmp_path / "a")) as record:
            sources = Sources(NumpyLearner([0.0] * 3), case.rows, roster_of(case.rows, case.ids)(record.names))
            modes = {}

            def look(_):
                modes.update({p: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a").rglob("*")})

            forget.unlearn(record, sources, case.ask(record), aggregate=look)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    assert len(modes) > 10
    assert {(path.is_dir(), mode) for path, mode in modes.items()} == {(True, 0o700), (False, 0o600)}


def test_another_record_object_in_the_same_process_does_not_hinder_collection(served):
    folder, rows, ids = served
    with closing(Record.open(folder, KEY)) as other:
        assert other.samples().rows == 20
        unlearn(folder, rows, by_ids([ids[4]]), ids)
        assert other.samples().rows == 19 and other.verify().is_clean


def test_a_connection_that_reads_during_collection_is_named_and_the_rerun_seals(served, monkeypatch):
    folder, rows, ids = served
    monkeypatch.setattr(Ledger, "vacuum", _impatient(Ledger.vacuum))
    with closing(sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)) as reader:
        monkeypatch.setattr("pybrush.forget.collect", _while_reading(reader, forget.collect))
        with pytest.raises(LockedError, match="another connection holds"):
            unlearn(folder, rows, by_ids([ids[4]]), ids)
    monkeypatch.undo()
    with closing(Record.open(folder, KEY)) as record:
        assert record.requests[0].state == "committed"
    assert unlearn(folder, rows, by_ids([ids[4]]), ids).request == 1


def _impatient(vacuum):
    def at_once(ledger):
        ledger.rows("PRAGMA busy_timeout=50")
        vacuum(ledger)

    return at_once


def _while_reading(reader, collect):
    def collect_meanwhile(record, *arguments):
        record.ledger.rows("PRAGMA busy_timeout=50")
        reader.execute("BEGIN")
        reader.execute("SELECT name FROM samples").fetchone()
        return collect(record, *arguments)

    return collect_meanwhile


def test_empty_folders_that_a_copy_dropped_are_not_needed(served, tmp_path):
    folder, rows, ids = served
    for path in list(folder.iterdir()):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    unlearn(folder, rows, by_ids([ids[4]]), ids)
    with closing(Record.open(folder, KEY)) as record:
        assert record.verify().is_clean


@pytest.mark.parametrize("owner", ["{host}.{own}.00000000", "{host}.{dead}.00000000"])
def test_a_half_written_stage_of_a_dead_process_is_removed_though_its_number_is_in_use_again(owner, served):
    folder, rows, ids = served
    dead = fork(lambda: None)
    assert status_of(dead) == 0
    _, unseen = stages_of(folder, ids[4])
    names = {"host": socket.gethostname(), "own": os.getpid(), "dead": dead}
    left = folder / "tmp" / f"{unseen[0]}.{owner.format(**names)}"
    others = folder / "tmp" / f"{unseen[0]}.elsewhere.{os.getpid()}.00000000"
    for path in (left, others):
        path.mkdir()
    unlearn(folder, rows, by_ids([ids[4]]), ids)
    assert list((folder / "tmp").iterdir()) == [others]


def test_a_second_subject_whose_rows_lose_only_copies_is_not_taken_for_gone(tmp_path):
    x, y = data(12)
    x[[3, 7]], y[[3, 7]] = x[3], y[3]
    subjects = [[f"person-{i % 11}"] for i in range(12)]
    subjects[3] = subjects[7] = ["person-3", "guardian"]
    fit(tmp_path / "a", (x, y), None, subjects, shards=1, slices=1)[0].record.close()
    ask = lambda record: Wish(names=roster_of((x, y), None, subjects)(record.names).names[[3]])  # noqa: E731
    assert unlearn(tmp_path / "a", (x, y), ask, None, subjects).forgotten == 1
    with closing(Record.open(tmp_path / "a", KEY)) as record:
        assert record.verify().is_clean
        assert reference.files_holding(tmp_path / "a", [reference.subject(KEY, b"s:guardian")]) == ["ledger.sqlite"]
    unlearn(tmp_path / "a", (x, y), lambda r: Wish(subjects=r.names.subjects(["person-3"])), None, subjects)
    assert reference.files_holding(tmp_path / "a", [reference.subject(KEY, b"s:guardian")]) == []


def test_a_request_that_hits_only_rows_too_few_to_train_rebuilds_nothing_and_forgets_them(tmp_path):
    rows, ids = data(30), list(range(30))
    cells = {i: reference.cell(reference.pseudonym(KEY, b"i:%d" % i), 12, 1)[0] for i in ids}
    alone = [i for i in ids if list(cells.values()).count(cells[i]) == 1]
    fit(tmp_path / "a", rows, ids, shards=12, slices=1)[0].record.close()
    result = unlearn(tmp_path / "a", rows, by_ids(alone[:1]), ids)
    assert (result.cost.stages_rebuilt, result.forgotten, result.audit["stages_unlinked"]) == (0, 1, 0)
    left = [i for i in ids if i != alone[0]]
    fit(tmp_path / "b", keep(rows, left), left, shards=12, slices=1)[0].record.close()
    assert_same_record(tmp_path / "a", tmp_path / "b")


def test_a_shard_that_a_request_empties_is_left_out_and_its_stages_go(tmp_path):
    rows, ids = data(30), list(range(30))
    members = [i for i in ids if reference.cell(reference.pseudonym(KEY, b"i:%d" % i), 4, 2)[0] == 2]
    fit(tmp_path / "a", rows, ids, shards=4)[0].record.close()
    result = unlearn(tmp_path / "a", rows, by_ids(members), ids)
    assert result.left_out == (2,) and result.shards == (0, 1, 3)
    left = [i for i in ids if i not in members]
    fit(tmp_path / "b", keep(rows, left), left, shards=4)[0].record.close()
    assert_same_record(tmp_path / "a", tmp_path / "b")
