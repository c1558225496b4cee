"""What `record.info()` tells, against counts made without it: by sqlite3, the file system and the format's reader."""

import json
import shutil
import sqlite3
import tracemalloc
from collections import Counter
from contextlib import closing, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from pybrush import forget
from pybrush.build import Sources
from pybrush.errors import CorruptRecordError, RecordError
from pybrush.record import Record
from pybrush.record.resolve import Wish
from tests import reference
from tests.core import format_reader as reader
from tests.core.numpy_learner import NumpyLearner, roster_of, wish
from tests.core.test_fit_and_forget import KEY, by_ids, data, fit, unlearn

IDS = [f"person-{i:012d}" for i in range(40)]
PEOPLE = [[f"subject-{i % 20}"] for i in range(40)]


def info(folder, key=None):
    with closing(Record.open(folder, key)) as record:
        return record.info()


def asked(folder, query):
    """Return the rows of a query, read by a connection of its own."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        return connection.execute(query).fetchall()


def changed(folder, statement, values=()):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection, connection:
        connection.execute(statement, values)
        assert connection.total_changes > 0


def size(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def leaves(value):
    """Return every plain value as text; joined into JSON, or as `repr`, a name in bytes would be escaped twice."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in leaves(part)]
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in leaves(part)]
    return [str(value)]


def dated(folder, days):
    """Make the first request so many days old."""
    then = (datetime.now(UTC) - timedelta(days=days, minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    changed(folder, "UPDATE requests SET accepted = ? WHERE number = 1", (then,))


@pytest.fixture
def served(tmp_path):
    """A record of two sealed requests, one of a person, with files of user code of which one is gone."""
    folder = tmp_path / "served"
    fit(folder, data(), IDS, PEOPLE)[0].record.close()
    unlearn(folder, data(), by_ids(IDS[:2]), IDS, PEOPLE)
    unlearn(folder, data(), lambda r: Wish(subjects=r.names.subjects(["subject-3"])), IDS, PEOPLE)
    with closing(Record.open(folder)) as record:
        stage = record.graph()[-1].key
        for name in ("logs", "logs/deeper/events", "gone.ckpt", f"checkpoint-of-{IDS[9]}.ckpt"):
            record.register_artefact(folder / name, stage, "checkpoint")
        record.register_artefact(tmp_path / "outside.ckpt", stage, "checkpoint")
    (folder / "logs" / "deeper").mkdir(parents=True)
    (folder / "logs" / "deeper" / "events").write_bytes(bytes(1000))
    (folder / f"checkpoint-of-{IDS[9]}.ckpt").write_bytes(bytes(77))
    (tmp_path / "outside.ckpt").write_bytes(bytes(300))
    (folder / "link").symlink_to(tmp_path / "outside.ckpt")
    (folder / "loop").symlink_to(folder)
    return folder


@pytest.fixture
def pending(tmp_path):
    """A record with a request whose training failed."""
    folder = tmp_path / "pending"
    fitted, learner = fit(folder, data(), IDS)
    stage = fitted.record.graph()[-1]
    learner.fail_at = (stage.shard, stage.slice)
    fitted.record.close()
    victims = [i for i in IDS if reader.cell(reader.pseudonym(KEY, i), 3, 2) == (stage.shard, 0)][:2]
    with pytest.raises(ArithmeticError):
        unlearn(folder, data(), by_ids(victims), IDS, learner=learner)
    return folder


def test_rows_people_and_shards_are_those_of_the_ledger(served):
    changed(served, "UPDATE events SET time = '2020-01-02T03:04:05Z' WHERE kind = 'planned'")
    found, samples = info(served), asked(served, "SELECT shard, copies FROM samples")
    shards = Counter()
    for shard, copies in samples:
        shards[shard] += copies
    assert found.samples == len(samples) == 40 - 4 and found.rows == sum(shards.values())
    assert (found.fewest_rows, found.most_rows) == (min(shards.values()), max(shards.values()))
    assert found.subjects == len({row for (row,) in asked(served, "SELECT subject FROM subjects")}) == 19
    assert (found.shards, found.slices, found.epochs, found.adapter) == (3, 2, 3, "numpy")
    assert found.made == "2020-01-02T03:04:05Z"
    assert found.folder == str(served)


def test_copies_are_rows_and_one_sample(tmp_path):
    x, y = data()
    x[[5, 9, 12]], y[[5, 9, 12]] = x[5], y[5]
    fit(tmp_path / "a", (x, y))[0].record.close()
    found = info(tmp_path / "a")
    assert (found.rows, found.samples, found.subjects) == (40, 38, 0)


def test_a_shard_without_rows_has_none_and_no_constituent(tmp_path):
    ids = [i for i in range(60) if reference.cell(reference.pseudonym(KEY, b"i:%d" % i), 3, 2)[0] != 1][:20]
    fit(tmp_path / "a", data(20), ids)[0].record.close()
    found = info(tmp_path / "a")
    assert found.fewest_rows == 0 < found.most_rows < 20
    assert found.constituents.keys() == {0, 2}


def test_bytes_are_those_of_the_files(served, tmp_path):
    found = info(served)
    assert found.disk.stages == size(served / "stages") > 0
    assert found.disk.initial == size(served / "initial") > 0
    assert found.disk.ledger == (served / "ledger.sqlite").stat().st_size
    files = [path for path in served.rglob("*") if path.is_symlink() or path.is_file()]
    assert found.disk.everything == sum(path.lstat().st_size for path in files)
    assert (found.artefacts.count, found.artefacts.bytes, found.artefacts.absent) == (5, 1000 + 77 + 300, 1)
    (tmp_path / "short").symlink_to(served)
    assert info(tmp_path / "short").disk == found.disk


def test_stages_are_counted_on_disk_and_constituents_are_the_last_ones(served):
    found, read = info(served), reader.read_record(served)
    stages = reader.expected_stages(read)
    assert found.stages_built == found.stages_wanted == len(stages) == len(list((served / "stages").iterdir()))
    assert found.constituents == reader.constituents(read)
    shutil.rmtree(served / "stages" / found.constituents[1])
    (served / "stages" / "unwanted").mkdir()
    fewer = info(served)
    assert (fewer.stages_built, fewer.stages_wanted) == (len(stages) - 1, len(stages))
    assert fewer.constituents == {shard: key for shard, key in found.constituents.items() if shard != 1}


def test_sealed_requests_and_marks_are_told_with_their_times(served):
    changed(served, "UPDATE suppressions SET since = '2019-05-06' WHERE name = (SELECT max(name) FROM suppressions)")
    found = info(served)
    columns = "SELECT number, state, method, rows, accepted, committed, sealed FROM requests ORDER BY number"
    told = [(r.number, r.state, r.method, r.rows, r.accepted, r.committed, r.sealed) for r in found.requests]
    assert told == asked(served, columns) and [row[3] for row in told] == [2, 2]
    assert [(request.days, request.ways_out) for request in found.requests] == [(None, ()), (None, ())]
    assert found.request_states == {"sealed": 2}
    assert [(found.suppressions.count,)] == asked(served, "SELECT count(*) FROM suppressions")
    samples, subjects = 4, 1
    assert found.suppressions.count == 2 * samples + subjects and found.suppressions.oldest == "2019-05-06"


def test_a_pending_request_is_shown_with_its_age_and_both_ways_out_until_it_is_cancelled(pending):
    dated(pending, 12)
    found = info(pending)
    (request,) = found.requests
    assert (request.state, request.days, request.ways_out) == ("pending", 12, ("unlearn", "cancel"))
    assert found.request_states == {"pending": 1} and found.suppressions.count == 0
    assert [(found.stages_wanted,)] == asked(pending, "SELECT count(*) FROM wanted")
    assert found.stages_built < found.stages_wanted
    with closing(Record.open(pending)) as record:
        record.cancel(1)
    after = info(pending)
    (request,) = after.requests
    assert (request.state, request.days, request.ways_out) == ("cancelled", None, ())
    assert after.request_states == {"cancelled": 1} and after.stages_built == after.stages_wanted


@pytest.mark.parametrize("state", ["committed", "collected"])
def test_a_request_that_was_committed_can_only_be_finished(state, pending):
    dated(pending, 3)
    changed(pending, "UPDATE requests SET state = ?", (state,))
    (request,) = info(pending).requests
    assert (request.days, request.ways_out) == (3, ("unlearn",))


def test_a_finished_request_is_no_longer_pending(pending):
    learner = NumpyLearner([9.0, 9.0, 9.0])
    with closing(Record.open(pending, KEY)) as record:
        sources = Sources(learner, data(), roster_of(data(), IDS)(record.names))
        forget.unlearn(record, sources, by_ids([IDS[30]])(record), aggregate=lambda _: None)
    assert info(pending).request_states == {"sealed": 2}


def test_the_key_is_told_of_and_changes_nothing_else(served):
    with_key, without = info(served, KEY), info(served)
    assert (with_key.has_key, without.has_key) == (True, False)
    assert replace(with_key, has_key=False) == without


def test_no_name_mark_key_or_path_of_a_user_is_in_what_is_told(served):
    text = "\n".join(leaves(asdict(info(served, KEY))))
    secrets = [KEY]
    for table, columns in (
        ("samples", "name, content"),
        ("subjects", "subject, name"),
        ("suppressions", "name"),
        ("requests", "commitment"),
        ("cells", "digest"),
    ):
        secrets += [value for row in asked(served, f"SELECT {columns} FROM {table}") for value in row]
    secrets += [reader.pseudonym(KEY, i) for i in IDS] + [reader.subject_name(KEY, person) for (person,) in PEOPLE]
    assert len(secrets) > 200
    assert not [secret for secret in secrets if secret.hex() in text or repr(secret) in text]
    assert not [name for name in (*IDS, *(person for (person,) in PEOPLE), "checkpoint-of", "outside") if name in text]


def test_what_is_told_is_plain_json(served):
    plain = json.loads(json.dumps(asdict(info(served))))
    assert plain["request_states"] == {"sealed": 2} and plain["requests"][1]["rows"] == 2
    assert plain["constituents"].keys() == {"0", "1", "2"} and plain["disk"]["ledger"] > 0


def test_nothing_is_written(served):
    def state():
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in served.rglob("*") if path.is_file()}

    before = state()
    info(served, KEY)
    assert state() == before


def test_samples_are_counted_and_never_read(served):
    """Two hundred thousand names of sixteen bytes each would take megabytes."""
    more = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) "
        "INSERT INTO samples SELECT CAST(printf('%016d', i) AS BLOB), NULL, 0, 0, zeroblob(16), 1, NULL, 0 FROM n"
    )
    changed(served, more)
    with closing(Record.open(served)) as record:
        tracemalloc.start()
        found = record.info()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert found.samples == 200_000 + 36
    assert peak < 500_000


def test_one_state_of_the_ledger_is_told_while_another_process_commits(served):
    """The other one takes a sample away, with its row in the cells, as often as it is let."""
    other = sqlite3.connect(served / "ledger.sqlite", timeout=0, isolation_level=None)
    tries = []

    def commits(statement):
        if not statement.startswith("SELECT"):
            return
        tries.append("refused")
        with suppress(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
            ((name, shard, cell),) = other.execute("SELECT name, shard, slice FROM samples LIMIT 1").fetchall()
            other.execute("DELETE FROM samples WHERE name = ?", (name,))
            other.execute("UPDATE cells SET rows = rows - 1 WHERE shard = ? AND slice = ?", (shard, cell))
            other.execute("COMMIT")
            tries[-1] = "committed"
        if other.in_transaction:
            other.execute("ROLLBACK")

    with closing(other), closing(Record.open(served)) as record:
        record.ledger._connection.set_trace_callback(commits)
        found = record.info()
        assert found.rows == found.samples
        assert tries.count("refused") > 3
        record.ledger._connection.set_trace_callback(None)
        assert record.ledger.rows("SELECT count(*) FROM samples") == asked(served, "SELECT count(*) FROM samples")
        changed(served, "UPDATE cells SET rows = rows + 1")  # the lock was given back


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        ("DELETE FROM plan", RecordError, "was not finished"),
        ("PRAGMA user_version = 2", CorruptRecordError, "format version 2"),
        ("DELETE FROM events WHERE kind = 'planned'", CorruptRecordError, "planned"),
    ],
)
def test_what_is_no_sound_record_is_refused(damage, error, said, served):
    with closing(sqlite3.connect(served / "ledger.sqlite")) as connection, connection:
        connection.execute(damage)
    with pytest.raises(error, match=said):
        info(served)


def test_a_fit_that_was_interrupted_is_told_of(tmp_path):
    learner = NumpyLearner(np.zeros(3))
    learner.fail_at = (2, 1)
    with pytest.raises(ArithmeticError):
        forget.fit(tmp_path / "a", wish(), learner, data(), roster_of(data(), IDS))
    found = info(tmp_path / "a")
    assert (found.stages_built, found.stages_wanted) == (5, 6)
    assert found.constituents.keys() == {0, 1}
