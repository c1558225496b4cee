"""What SQLite itself answers to the settings on which erasure rests; no ledger is written that it would not erase."""

import sqlite3
from contextlib import closing

import pytest

from pybrush.errors import LockedError, UnsupportedError
from pybrush.record import Record, ledger
from pybrush.record.ledger import Ledger
from tests.core.test_encryption import everything
from tests.core.test_fit_and_forget import KEY, by_ids, data, fit, unlearn

OTHERS = {"journal_mode": "PERSIST", "secure_delete": "FAST", "temp_store": "FILE", "synchronous": "NORMAL"}
"""For each setting, what a build that ignores it could do in its place."""


@pytest.fixture
def record(tmp_path):
    found, _ = fit(tmp_path / "a", data(20), list(range(20)))
    found.record.close()
    return tmp_path / "a"


def ignoring(monkeypatch, name, value):
    """Let SQLite do something else than what a setting asks for, and answer so."""
    monkeypatch.setitem(ledger._SETTINGS, name, (value, ledger._SETTINGS[name][1]))


@pytest.mark.parametrize(("name", "value"), OTHERS.items())
def test_a_ledger_whose_setting_sqlite_does_not_follow_is_read_and_never_written(name, value, record, monkeypatch):
    before = everything(record)
    ignoring(monkeypatch, name, value)
    for call in (
        lambda: unlearn(record, data(20), by_ids([3]), list(range(20))),
        lambda: fit(record, data(20), list(range(20))),
    ):
        with pytest.raises(UnsupportedError, match=rf"SQLite 3\.\d+\.\d+ does not follow {name}={value} \(it answers"):
            call()
    with closing(Record.open(record, KEY)) as opened:
        assert opened.requests == () and opened.verify().is_clean
        with pytest.raises(UnsupportedError, match=name):
            opened.declare("consent", "every row came with consent")
    assert everything(record) == before


@pytest.mark.parametrize(("name", "value"), OTHERS.items())
def test_a_record_is_not_made_where_sqlite_does_not_follow_a_setting(name, value, tmp_path, monkeypatch):
    ignoring(monkeypatch, name, value)
    with pytest.raises(UnsupportedError, match=name):
        fit(tmp_path / "a", data(20), list(range(20)))
    monkeypatch.undo()
    fit(tmp_path / "a", data(20), list(range(20)))[0].record.verify()


def test_a_build_that_keeps_temporary_files_whatever_it_answers_is_not_written_with(record, monkeypatch):
    with closing(sqlite3.connect(":memory:")) as connection:
        (option,) = connection.execute("PRAGMA compile_options").fetchone()
    monkeypatch.setattr(ledger, "_FILES_ALWAYS", option)  # it is compiled so, though temp_store answers 2
    with pytest.raises(UnsupportedError, match=r"temp_store=MEMORY \(it answers 2, and "):
        unlearn(record, data(20), by_ids([3]), list(range(20)))


def test_a_ledger_that_somebody_put_under_a_write_ahead_log_is_taken_back_from_it(record):
    with closing(sqlite3.connect(record / "ledger.sqlite")) as connection:
        assert connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    with closing(Ledger(record / "ledger.sqlite")) as opened:
        assert opened.answers()["journal_mode"] == "delete"


def test_a_ledger_that_cannot_be_taken_back_from_a_write_ahead_log_is_not_written(record, monkeypatch):
    monkeypatch.setattr(ledger, "_PATIENCE", 0.05)
    with closing(sqlite3.connect(record / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM samples").fetchall()
        with pytest.raises(LockedError, match="another connection holds"):
            unlearn(record, data(20), by_ids([3]), list(range(20)))


def test_the_evidence_states_what_sqlite_answered(record):
    found = unlearn(record, data(20), by_ids([3]), list(range(20))).audit["sqlite"]
    assert found == (
        f"{sqlite3.sqlite_version}; it answers journal_mode=delete, secure_delete=1, temp_store=2, synchronous=3"
    )
