"""Files of a record that were cut, changed, lost, exchanged or taken from another: refused, and nothing was touched.

Refused by whatever relies on them, before a request is accepted. Also what only reads them changes nothing.
"""

import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import closing, contextmanager, suppress

import pytest

from pybrush import forget
from pybrush.errors import CorruptRecordError, PyBrushError, RecordError, SecretKeyError, UnsupportedError
from pybrush.record import Record
from pybrush.record.store import MANIFEST
from tests.core.damage import cut, flip, lose, stages
from tests.core.numpy_learner import NumpyLearner, roster_of, wish
from tests.core.small_record import IDS, READERS, WRITERS, N, first_in, forgetting, made, opened, shard_of
from tests.core.test_fit_and_forget import KEY, by_ids, data, fit, keep, unlearn
from tests.untouched import untouched


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A record of other rows under the same key and settings."""
    return made(tmp_path_factory.mktemp("foreign") / "record", data(N, seed=1), [f"other-{i}" for i in range(N)])


def refuse(folder, calls, error, match=None):
    """Expect each call to refuse, and neither record nor model to be touched."""
    for name in calls:
        with untouched(folder.parent), pytest.raises(error, match=match):
            (READERS | WRITERS)[name](folder)


def read_without_harm(folder):
    """Make the calls that only read; they may say what is wrong, in our words."""
    for call in READERS.values():
        with untouched(folder.parent), suppress(PyBrushError):
            call(folder)


# States


def at(folder, where):
    return folder / "initial" if where == "initial" else stages(folder)[where]


RELYING = {
    "initial": ("verify", "dry run", "unlearn"),
    (0, 0): ("verify", "unlearn from a stage"),
    (1, 1): ("verify", "fit", "dry run", "unlearn", "unlearn from a stage"),
}
"""Which calls need which state: requests the one from which they go on, and all that stays in the model."""


@pytest.mark.parametrize("damage", [cut, flip, lose])
@pytest.mark.parametrize("file", ["tree.json", "state.safetensors", MANIFEST])
@pytest.mark.parametrize("where", RELYING, ids=str)
def test_a_damaged_file_of_a_state_is_refused_by_all_that_need_it(where, file, damage, folder):
    place = at(folder, where)
    damage(place / file)
    read_without_harm(folder)
    refuse(folder, RELYING[where], CorruptRecordError, str(place))


def exchange(one, other):
    aside = one.parent.parent / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_stages_that_changed_places_are_refused(folder):
    exchange(at(folder, (0, 0)), at(folder, (1, 1)))
    refuse(folder, RELYING[1, 1], CorruptRecordError, "belongs to stage")


def test_a_stage_in_the_place_of_the_initial_state_is_refused(folder):
    shutil.rmtree(folder / "initial")
    shutil.copytree(at(folder, (0, 0)), folder / "initial")
    refuse(folder, RELYING["initial"], CorruptRecordError, "belongs to stage|not the one that was recorded")


def of_another(folder, other, where):
    """Put the files of another record's state in the place of one, under its name."""
    place, source = at(folder, where), at(other, where)
    for file in ("tree.json", "state.safetensors"):
        shutil.copyfile(source / file, place / file)
    signed(place)


def signed(place):
    """Let a manifest say what its folder holds now."""
    values = json.loads((place / MANIFEST).read_text())
    parts = (place / "tree.json").read_bytes() + (place / "state.safetensors").read_bytes()
    values["sha256"] = hashlib.sha256(parts).hexdigest()
    (place / MANIFEST).write_text(json.dumps(values))


@pytest.mark.parametrize("where", [(0, 0), (1, 1)], ids=str)
def test_a_state_of_another_record_is_refused_although_its_manifest_fits(where, folder, foreign):
    of_another(folder, foreign, where)
    # What was built from the one, and what was released of the other, bear witness.
    calls = RELYING[where] if where == (1, 1) else ("verify", "dry run", "unlearn from a stage")
    refuse(folder, [c for c in calls if c != "dry run" or where == (1, 1)], CorruptRecordError)


def test_another_initial_state_is_refused_although_its_manifest_fits(folder, tmp_path):
    learner, rows = NumpyLearner([7.0, 7.0, 7.0]), data(N)
    forget.fit(tmp_path / "other", wish(), learner, rows, roster_of(rows, IDS)).record.close()
    of_another(folder, tmp_path / "other", "initial")
    refuse(folder, RELYING["initial"], CorruptRecordError, "not the one that was recorded")


def test_a_whole_stage_of_another_record_is_refused(folder, foreign):
    place = at(folder, (1, 1))
    shutil.rmtree(place)
    shutil.copytree(at(foreign, (1, 1)), place)
    refuse(folder, RELYING[1, 1], CorruptRecordError, "belongs to stage")


def test_what_a_request_replaces_may_be_damaged(folder):
    for file in ("tree.json", "state.safetensors", MANIFEST):
        lose(at(folder, (0, 1)) / file)
    assert forgetting((0, 1))(folder).forgotten == 1
    opened(lambda record: record.verify())(folder)


# Versions


def with_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, separators=(",", ":")))


@pytest.mark.parametrize("where", RELYING, ids=str)
def test_another_version_of_a_manifest_is_refused(where, folder):
    with_json(at(folder, where) / MANIFEST, format=2)
    read_without_harm(folder)
    refuse(folder, RELYING[where], CorruptRecordError, "format 2")


@pytest.mark.parametrize("where", [(0, 0), (1, 1)], ids=str)
def test_another_version_of_a_state_is_refused(where, folder):
    place = at(folder, where)
    with_json(place / "tree.json", format=2)
    signed(place)
    read_without_harm(folder)
    refuse(folder, [c for c in RELYING[where] if "unlearn" in c], (UnsupportedError, CorruptRecordError))


def test_another_version_of_the_ledger_is_refused(folder):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        connection.execute("PRAGMA user_version=2")
    refuse(folder, READERS | WRITERS, CorruptRecordError, "format version 2; this PyBrush reads version 1")


# Ledger and key


@pytest.mark.parametrize("size", [0, 50, 4096, 9000, -3, -4096])
def test_a_ledger_that_was_cut_is_refused_and_not_made_anew(size, folder):
    os.truncate(folder / "ledger.sqlite", size if size >= 0 else (folder / "ledger.sqlite").stat().st_size + size)
    refuse(folder, READERS | WRITERS, CorruptRecordError)


def test_a_file_that_is_no_ledger_is_refused_and_not_made_anew(folder):
    (folder / "ledger.sqlite").write_bytes(b"a letter to the editor" * 99)
    refuse(folder, READERS | WRITERS, CorruptRecordError, "not a readable ledger")


@pytest.mark.parametrize("table", ["cells", "samples", "requests", "events", "wanted", "salts", "artefacts"])
def test_a_ledger_without_one_of_its_tables_is_corrupt(table, folder):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        connection.execute(f"DROP TABLE {table}")
    refuse(folder, READERS | WRITERS, CorruptRecordError, f"lacks {table}")


def test_a_table_that_goes_while_the_ledger_is_open_is_damage_too(folder):
    with closing(Record.open(folder, KEY)) as record:
        with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
            connection.execute("DROP TABLE cells")
            connection.execute("DROP TABLE declarations")
        with untouched(folder.parent), pytest.raises(CorruptRecordError, match="no such table: cells"):
            record.graph()
        with untouched(folder.parent), pytest.raises(CorruptRecordError, match="no such table: declarations"):
            record.declare("initial-state", "the weights were random")


def test_a_page_of_the_ledger_that_turned_to_rubbish_is_told_as_damage(folder):
    whole = (folder / "ledger.sqlite").read_bytes()
    told = 0
    for start in range(4096, len(whole), 4096):
        (folder / "ledger.sqlite").write_bytes(whole[:start] + b"\xff" * 4096 + whole[start + 4096 :])
        with untouched(folder.parent):
            try:
                READERS["verify"](folder)
            except CorruptRecordError:
                told += 1
        read_without_harm(folder)
    # Empty tables and indexes are not read.
    assert told > len(whole) // 4096 // 2


CHANGES = {
    "UPDATE samples SET copies = 2": ("verify", "dry run", "unlearn"),
    "UPDATE samples SET content = zeroblob(16) WHERE shard = 0": ("verify", "dry run", "unlearn"),
    "UPDATE cells SET rows = rows + 1": ("verify", "fit", "dry run", "unlearn"),
    "DELETE FROM samples WHERE shard = 1": ("verify", "fit", "dry run", "unlearn"),
    "DELETE FROM wanted WHERE key IN (SELECT key FROM wanted LIMIT 1)": ("verify",),
    "UPDATE plan SET value = '12' WHERE name = 'seed'": ("verify", "fit"),
    "UPDATE plan SET value = replace(value, 'logistic', 'linear') WHERE name = 'semantic'": ("verify", "fit"),
    "UPDATE plan SET value = replace(value, '0', '1') WHERE name = 'initial_digest'": ("verify", "dry run", "unlearn"),
    "DELETE FROM plan WHERE name = 'seed'": ("verify", "fit", "dry run", "unlearn"),
    "UPDATE events SET body = '{}' WHERE number = 1": ("verify",),
    "UPDATE releases SET constituents = replace(constituents, 'a', 'b')": ("verify",),
}
"""A change by hand, and the calls that must refuse a ledger with it."""


@pytest.mark.parametrize("statement", CHANGES)
def test_a_ledger_that_was_changed_by_hand_is_refused(statement, folder):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        assert connection.execute(statement).rowcount > 0
        connection.commit()
    read_without_harm(folder)
    refuse(folder, CHANGES[statement], CorruptRecordError)


def test_a_ledger_of_another_record_is_refused(folder, foreign, tmp_path):
    shutil.copyfile(foreign / "ledger.sqlite", folder / "ledger.sqlite")
    read_without_harm(folder)
    refuse(folder, ["fit", "unlearn", "dry run", "cancel"], PyBrushError)
    with closing(Record.open(folder, KEY)) as record:
        found = record.verify()
    assert len(found.missing) == len(found.unwanted) and found.stages == 0 and not found.is_clean
    with_another_key = made(tmp_path / "with-another-key", data(N), IDS, key=bytes(32))
    shutil.copyfile(with_another_key / "ledger.sqlite", folder / "ledger.sqlite")
    refuse(folder, READERS | WRITERS, SecretKeyError, "another record's")


@contextmanager
def key_beside(folder, content):
    """Let a key lie beside a record, whose calls are then given none."""
    path = folder.with_name("record.key")
    if content is not None:
        path.write_bytes(content)
    yield
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("key", [None, b"", KEY[:31], bytes(32)], ids=["lost", "empty", "cut", "another"])
def test_without_its_key_nothing_can_be_forgotten_nor_trained_and_none_is_made(key, folder):
    with key_beside(folder, key), untouched(folder.parent):
        with pytest.raises(SecretKeyError):
            fit(folder, data(N), IDS, key=None)
        if key is None:
            with closing(Record.open(folder)) as record:
                assert record.verify().is_clean and not record.info().has_key
                with pytest.raises(SecretKeyError, match="stay readable"):
                    record.names  # noqa: B018
        else:
            with pytest.raises(SecretKeyError):
                Record.open(folder)


def test_a_folder_without_a_record_is_named(tmp_path):
    with untouched(tmp_path), pytest.raises(RecordError, match="there is no record in"):
        Record.open(tmp_path / "nothing")


def test_the_rows_of_a_shard_that_is_not_trained_need_not_be_there(folder):
    far = [i for i in range(N) if shard_of(IDS[i]) == 2][:2]
    left = [i for i in range(N) if i not in far]
    assert unlearn(folder, keep(data(N), left), by_ids([first_in((0, 1))]), [IDS[i] for i in left]).forgotten == 1


@pytest.fixture
def encrypted(tmp_path):
    """A record whose stages are encrypted, and its key ring."""
    return made(tmp_path / "record", data(N), IDS, encrypt=True), tmp_path / "record.keys"


@pytest.mark.parametrize("where", [(0, 0), (1, 1)], ids=str)
def test_a_stage_whose_key_is_lost_is_refused_by_the_requests_that_need_it(where, encrypted):
    record, ring = encrypted
    names = {path.name for path in ring.iterdir()}
    manifest = json.loads((at(record, where) / MANIFEST).read_text())
    (lost,) = [name for name in names if name in json.dumps(manifest["encryption"]) or name == manifest["key"]]
    (ring / lost).unlink()
    refuse(record, [call for call in RELYING[where] if "unlearn" in call], (CorruptRecordError, SecretKeyError))


def test_without_its_key_ring_nothing_of_an_encrypted_record_is_touched(encrypted):
    record, ring = encrypted
    shutil.rmtree(ring)
    refuse(record, ["unlearn", "unlearn from a stage", "dry run"], PyBrushError)
