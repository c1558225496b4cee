"""The ledger: one SQLite file that says what a record holds, what was asked and what was done.

It names samples by pseudonym only. Rollback journal (a write-ahead log fails on network file systems and
keeps deleted rows), `secure_delete` and VACUUM together, since either alone leaves names in free pages.
What SQLite makes of these settings is asked of SQLite itself, since some builds ignore them without a word: a ledger
that would keep what is deleted from it is not written. The tables are the law of docs/record_format.md.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pybrush.errors import CorruptRecordError, LockedError, UnsupportedError
from pybrush.hashing import chained, u64
from pybrush.record.files import announced, not_writable, sync_folder, writing_to

SCHEMA_VERSION = 1

_TABLES = """
CREATE TABLE plan (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE samples (
    name BLOB PRIMARY KEY, placement BLOB, shard INTEGER NOT NULL, slice INTEGER NOT NULL,
    content BLOB NOT NULL, copies INTEGER NOT NULL, position INTEGER,
    day INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE subjects (subject BLOB, name BLOB, PRIMARY KEY (subject, name)) WITHOUT ROWID;
CREATE TABLE cells (
    shard INTEGER, slice INTEGER, rows INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (shard, slice)) WITHOUT ROWID;
CREATE TABLE wanted (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE requests (
    number INTEGER PRIMARY KEY, state TEXT NOT NULL, method TEXT NOT NULL,
    commitment BLOB NOT NULL, rows INTEGER NOT NULL, accepted TEXT NOT NULL, committed TEXT, sealed TEXT,
    outcome TEXT, purge TEXT NOT NULL DEFAULT 'delete');
CREATE TABLE salts (request INTEGER PRIMARY KEY, salt BLOB NOT NULL);
CREATE TABLE releases (
    key TEXT PRIMARY KEY, parent TEXT, request INTEGER, method TEXT NOT NULL, guarantee TEXT NOT NULL,
    constituents TEXT NOT NULL, made TEXT NOT NULL);
CREATE TABLE artefacts (
    path TEXT PRIMARY KEY, stage TEXT NOT NULL, kind TEXT NOT NULL, request INTEGER) WITHOUT ROWID;
CREATE TABLE suppressions (name BLOB PRIMARY KEY, since TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE declarations (
    name TEXT PRIMARY KEY, statement TEXT NOT NULL, since TEXT NOT NULL, salt BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE queue (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, rows INTEGER NOT NULL, enqueued TEXT NOT NULL, salt BLOB,
    state TEXT NOT NULL, request INTEGER);
CREATE TABLE queued (entry INTEGER, name BLOB, PRIMARY KEY (entry, name)) WITHOUT ROWID;
CREATE TABLE events (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, time TEXT NOT NULL, body TEXT NOT NULL, digest BLOB NOT NULL);
"""


_SETTINGS = {
    "journal_mode": ("DELETE", "delete"),
    "secure_delete": ("ON", 1),
    "temp_store": ("MEMORY", 2),
    "synchronous": ("EXTRA", 3),
}
"""Setting -> what is asked for, and what SQLite answers where it does that."""

_CACHE = -65536
"""KiB, negative: names are hashes, so a request's rows lie on as many pages."""

_FILES_ALWAYS = "TEMP_STORE=0"
"""Compile option of builds that write temporary files, whatever `temp_store` says and answers."""

_PATIENCE = 60.0
"""Seconds that a connection waits for others."""

_PIECE = 1000
"""Rows that `pieces` fetches at a time: more cost memory, fewer time."""

_UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)

_TIME = "%Y-%m-%dT%H:%M:%SZ"


def now() -> str:
    """Return the time in UTC to the second, ISO 8601."""
    return datetime.now(UTC).strftime(_TIME)


def days_since(time: str) -> int:
    """Return the whole days since a time that `now` gave; 0 where the clock was set back since."""
    then = datetime.strptime(time, _TIME).replace(tzinfo=UTC)
    return max(0, (datetime.now(UTC) - then).days)


class Ledger:
    """A connection to the ledger. Writes go through `writing`, under the record's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
        try:
            self._begin()
        except BaseException:
            self._connection.close()
            raise

    def _begin(self) -> None:
        """Make the settings, and look that the file is of this version and has all its tables."""
        try:
            with _waiting_for(self.path):
                for name, (value, _) in _SETTINGS.items():
                    self._connection.execute(f"PRAGMA {name}={value}").fetchall()
                self._connection.execute(f"PRAGMA cache_size={_CACHE}")
                with self.snapshot():
                    version = self._connection.execute("PRAGMA user_version").fetchone()[0]
                    tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
                    page_bytes = self._connection.execute("PRAGMA page_size").fetchone()[0]
                    rest = self.path.stat().st_size % page_bytes
        except sqlite3.DatabaseError as error:
            reason = f"{self.path} is not a readable ledger ({error}); restore it from a backup."
            raise CorruptRecordError(reason) from error
        if version != SCHEMA_VERSION:
            raise CorruptRecordError(
                f"{self.path} has format version {version}; this PyBrush reads version {SCHEMA_VERSION}. "
                "Use the release of PyBrush that wrote it, or its migration."
            )
        lacking = set(re.findall(r"CREATE TABLE (\w+)", _TABLES)) - tables
        if lacking or rest:  # SQLite takes what is missing of the last page for zeros
            lacking |= {"the end of its last page"} if rest else set()
            raise CorruptRecordError(f"{self.path} lacks {', '.join(sorted(lacking))}; restore it from a backup.")

    @classmethod
    def create(cls, path: Path) -> None:
        """Make an empty ledger that only its owner may read; the journal inherits the mode."""
        temporary = path.with_name(path.name + ".new")
        with announced("write ledger"), writing_to(temporary), _waiting_for(temporary):
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            try:
                temporary.chmod(0o600)
                with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                    connection.executescript(f"PRAGMA synchronous=EXTRA; BEGIN; {_TABLES} COMMIT;")
                    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            except BaseException:
                temporary.unlink()
                raise
        with announced("rename ledger"), writing_to(path):
            temporary.replace(path)
            sync_folder(path.parent)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def answers(self) -> dict[str, Any]:
        """Return SQLite's version, and what it answers to each setting on which erasure and durability rest."""
        found = {name: self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in _SETTINGS}
        if (_FILES_ALWAYS,) in self._connection.execute("PRAGMA compile_options").fetchall():
            found["temp_store"] = f"{found['temp_store']}, and {_FILES_ALWAYS}"
        return {"version": sqlite3.sqlite_version, **found}

    def check_settings(self) -> None:
        """Check that SQLite does what it was asked for.

        Raises:
            UnsupportedError: naming each setting that it does not follow.
        """
        answers = self.answers()
        wrong = [
            f"{name}={asked} (it answers {answers[name]})"
            for name, (asked, expected) in _SETTINGS.items()
            if answers[name] != expected
        ]
        if wrong:
            raise UnsupportedError(
                f"SQLite {answers['version']} does not follow {', '.join(wrong)}, so {self.path} could keep what is "
                "deleted from it, or lose what was committed. Nothing is written. Use a Python whose SQLite does."
            )

    @contextmanager
    def writing(self, purpose: str) -> Iterator[None]:
        """One transaction, all or nothing.

        Raises:
            LockedError: where another connection holds the file.
            StorageError: where the disk is full or read-only.
            CorruptRecordError: where the file is damaged.
            UnsupportedError: where SQLite does not follow its settings.
        """
        self.check_settings()
        with _waiting_for(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            with self._explained():
                yield
                with announced(f"commit {purpose}"):
                    self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all queries of the block see one state of the ledger; who commits meanwhile waits, so be quick."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def remove_journal(self) -> None:
        """Remove the journal of a process that was killed before it changed the file; call under the record's lock.

        It may hold names, and SQLite leaves it until the next transaction.
        """
        if self.path.with_name(self.path.name + "-journal").is_file():
            with self.writing("no change"):
                self.change(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def rows(self, query: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query.

        Raises:
            CorruptRecordError: where the file is truncated or damaged.
        """
        with self._explained():
            return self._connection.execute(query, tuple(values)).fetchall()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with _waiting_for(self.path):
                yield
        except sqlite3.DatabaseError as error:
            lacks_table = type(error) is sqlite3.OperationalError and "no such table" in str(error)
            if type(error) is not sqlite3.DatabaseError and not lacks_table:  # others say other things than "malformed"
                raise
            raise CorruptRecordError(f"{self.path} is damaged ({error}); restore it from a backup.") from error

    def pieces(self, query: str) -> Iterator[list[tuple[Any, ...]]]:
        """Return the rows of a query a thousand at a time, so that a million never lie in memory as Python objects.

        Raises:
            CorruptRecordError: where the file is truncated or damaged.
        """
        with self._explained():
            cursor = self._connection.execute(query)
            while rows := cursor.fetchmany(_PIECE):
                yield rows

    def version_of_others(self) -> int:
        """Return a number that changes when another connection has written to the ledger."""
        return int(self.rows("PRAGMA data_version")[0][0])

    def change(self, statement: str, values: Iterable[Any] = ()) -> int:
        """Run one statement inside `writing`; returns the id of the inserted row, if any."""
        return int(self._connection.execute(statement, tuple(values)).lastrowid or 0)

    def change_many(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Run one statement for many rows inside `writing`."""
        self._connection.executemany(statement, rows)

    @contextmanager
    def listed(self, names: Iterable[bytes]) -> Iterator[str]:
        """Let statements of the block, inside `writing`, name some rows: `WHERE name IN` what this yields."""
        self.change("CREATE TEMP TABLE IF NOT EXISTS listed (name BLOB PRIMARY KEY)")  # in memory, see _SETTINGS
        self.change_many("INSERT OR IGNORE INTO temp.listed VALUES (?)", ((name,) for name in names))
        yield "(SELECT name FROM temp.listed)"
        self.change("DELETE FROM temp.listed")

    def plan(self) -> dict[str, Any]:
        """Return the recorded plan; empty before the first fit."""
        return {name: json.loads(value) for name, value in self.rows("SELECT name, value FROM plan")}

    def set_wanted(self, keys: Iterable[str]) -> None:
        """Say which stages may be published; a builder looks here before it does."""
        self.change("DELETE FROM wanted")
        self.change_many("INSERT OR IGNORE INTO wanted VALUES (?)", ((key,) for key in keys))

    def wanted(self) -> set[str]:
        """Return the keys of the stages that the record wants."""
        return {key for (key,) in self.rows("SELECT key FROM wanted")}

    def append_event(self, kind: str, **body: Any) -> None:
        """Append an event to the chain. The body holds counts and salted commitments, never names."""
        last = self.rows("SELECT number, digest FROM events ORDER BY number DESC LIMIT 1")
        number, previous = (last[0][0] + 1, last[0][1]) if last else (1, bytes(32))
        time, text = now(), json.dumps(body, sort_keys=True, separators=(",", ":"))
        digest = event_digest(previous, number, kind, time, text)
        self.change("INSERT INTO events VALUES (?, ?, ?, ?, ?)", (number, kind, time, text, digest))

    def vacuum(self) -> None:
        """Rewrite the file without free pages.

        Raises:
            LockedError: where another connection held the file; collection is then repeated.
            StorageError: where the disk is full or read-only; the same.
        """
        with announced("vacuum"), _waiting_for(self.path):
            self._connection.execute("VACUUM")


@contextmanager
def _waiting_for(path: Path) -> Iterator[None]:
    """Turn SQLite's busy answer, given after the connection's time-out, into ours, and what it says of a bad disk."""
    try:
        yield
    except sqlite3.OperationalError as error:
        code = error.sqlite_errorcode & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            reason = f"another connection holds {path}; close it, or end its process, and call again."
            raise LockedError(reason) from error
        if code in _UNWRITABLE:
            raise not_writable(path, error) from error
        raise


def event_digest(previous: bytes, number: int, kind: str, time: str, body: str) -> bytes:
    """Return the digest that chains one event to the one before it."""
    return chained("pybrush-event", previous, u64(number), kind.encode(), time.encode(), body.encode())


def check_events(ledger: Ledger) -> int:
    """Check the chain of events; return how many there are.

    Raises:
        CorruptRecordError: at the first event that does not follow from the one before it.
    """
    previous, count = bytes(32), 0
    for number, kind, time, body, digest in ledger.rows("SELECT * FROM events ORDER BY number"):
        count += 1
        if number != count or digest != event_digest(previous, number, kind, time, body):
            raise CorruptRecordError(f"event {number} of {ledger.path} does not follow from the one before it.")
        previous = digest
    return count
