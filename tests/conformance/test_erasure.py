"""After a request no file below the user's folder holds what was forgotten, or a state that saw it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pybrush.errors import ErasureError, SecretKeyError
from pybrush.record import files
from tests import reference
from tests.conformance.harness import KEY, SWITCH, Setup, TroubleError, assert_same_record, in_cell, opened, table
from tests.core import format_reader
from tests.untouched import untouched

SETUP, ROWS = Setup(saves="every epoch"), table()
ROW = in_cell(1, 0)[0]
"""A row that every stage of the last shard has seen."""

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def stages_of(record, shard):
    return {stage.key for stage in record.graph() if stage.shard == shard}


def tensors_of(record, keys):
    """Return the bytes of every tensor of some stages that training changed.

    From 32 bytes on: shorter ones may be equal by chance, and states of generators do not depend on rows.
    """
    packed = [record.store.packed(key)[1].values() for key in keys]
    initial = {data.tobytes() for data in record.store.packed("initial")[1].values()}
    return {data.tobytes() for tensors in packed for data in tensors if data.size >= 32} - initial


def holding(folder, needles):
    """Return the files below a folder that hold any of some bytes."""
    found = {path: path.read_bytes() for path in files_below(folder)}
    return {path for path, data in found.items() if any(needle in data for needle in needles)}


def secrets_of(row):
    """Return everything that names a row: its id, its pseudonym, its content digest, its values."""
    name = reference.pseudonym(KEY, b"s:" + ROWS.ids[row].encode())
    content = format_reader.content_digest(KEY, format_reader.encode((ROWS.x[row], ROWS.y[row])))
    return [ROWS.ids[row].encode(), name, content, ROWS.x[row].tobytes()]


@pytest.mark.parametrize("setup", [SETUP, replace(SETUP, saves="the last")], ids=["every epoch", "the last"])
def test_no_file_that_saw_the_row_is_left_and_no_file_names_it(setup, framework, shelf, tmp_path):
    training = framework.training(tmp_path, setup, ROWS)
    training.fit()
    with opened(tmp_path) as record:
        doomed = stages_of(record, 1)
        learned = tensors_of(record, doomed) - tensors_of(record, stages_of(record, 0))
        saved = {Path(path) for path, stage in record.artefacts().items() if stage in doomed}
    assert holding(tmp_path / "saved", learned) and holding(tmp_path / "record", learned)
    before = {path.read_bytes() for path in files_below(tmp_path / "saved") if within(path, saved)}
    assert len(before) >= (4 if setup.saves == "every epoch" else 2)
    assert all(within(path, saved) for path in holding(tmp_path / "saved", learned))
    result = training.unlearn(rows=[ROW])
    assert result.is_complete and result.audit["artefacts_unlinked"]
    assert holding(tmp_path, learned) == set()
    assert not [path for path in files_below(tmp_path) if path.read_bytes() in before]
    assert holding(tmp_path / "saved", tensors_now(tmp_path))
    assert reference.files_holding(tmp_path, secrets_of(ROW)) == []
    assert result.audit["raw_ids_found_in"] == []
    with opened(tmp_path) as record:
        assert not doomed & record.store.keys()
        assert record.verify().is_clean


def files_below(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def within(path, places):
    return any(path.is_relative_to(place) for place in places)


def tensors_now(folder):
    with opened(folder) as record:
        return tensors_of(record, stages_of(record, 1))


def test_the_record_never_holds_an_id_or_a_persons_name(framework, shelf):
    setup = Setup(has_subjects=True, has_days=True)
    needles = [name.encode() for name in {*ROWS.ids, *ROWS.subjects}] + [row.tobytes() for row in ROWS.x]
    assert holding(shelf.fitted(setup), needles) == set()


def test_people_asked_for_are_searched_for_by_name_and_what_is_found_is_told(framework, shelf, tmp_path):
    setup = Setup(network="dense", has_subjects=True)
    shelf.copy(tmp_path, setup)
    planted = tmp_path / "record" / "evidence" / "note.txt"
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(f"asked for by {ROWS.subjects[3]}")
    result = framework.training(tmp_path, setup.later(), ROWS).unlearn(subjects=[ROWS.subjects[3]])
    assert result.forgotten == 4 and result.audit["raw_ids_found_in"] == [str(planted)]


def test_what_the_user_saves_by_hand_goes_with_its_stage(framework, tmp_path):
    setup = replace(SETUP, saves="")
    training = framework.training(tmp_path, setup, ROWS)
    training.fit()
    path = training.save(tmp_path / "by-hand" / "final")
    with opened(tmp_path) as record:
        constituent = record.constituents()[1]
        learned = tensors_of(record, [constituent])
        assert record.artefacts() == {str(path): constituent}
    assert holding(tmp_path / "by-hand", learned)
    training.unlearn(rows=[in_cell(0, 0)[0]])
    assert path.exists()
    training.unlearn(rows=[ROW])
    assert not path.exists() and holding(tmp_path, learned) == set()


def test_files_that_a_request_lists_stay_until_they_are_settled_and_the_bits_do_not_depend_on_it(
    framework, shelf, tmp_path
):
    training = framework.training(tmp_path, SETUP, ROWS)
    training.fit()
    with opened(tmp_path) as record:
        learned = tensors_of(record, stages_of(record, 1))
    before = holding(tmp_path / "saved", learned)
    foretold = training.unlearn(rows=[ROW], purge="list", dry_run=True)
    result = training.unlearn(rows=[ROW], purge="list")
    assert not result.is_complete and foretold.audit["artefacts_left"] == result.audit["artefacts_left"]
    assert holding(tmp_path, learned) == before
    with opened(tmp_path) as record:
        with pytest.raises(ErasureError, match="purge='list'"):
            record.verify()
        assert record.settle()
    assert holding(tmp_path, learned) == set()
    assert_same_record(tmp_path, shelf.fitted(SETUP, ROWS.without([ROW])))


def test_a_request_that_failed_leaves_no_file_that_a_later_one_does_not_know(framework, shelf, tmp_path):
    training = framework.training(tmp_path, SETUP, ROWS)
    training.fit()
    with opened(tmp_path) as record:
        learned = tensors_of(record, stages_of(record, 1))
    SWITCH.set("epoch", 3)
    with pytest.raises(TroubleError):
        training.unlearn(rows=[ROW])
    training.unlearn(rows=[ROW])
    assert holding(tmp_path, learned) == set()
    with opened(tmp_path) as record:
        held = record.store.keys()
        wanted = [Path(path) for path, stage in record.artefacts().items() if stage in held]
    left = files_below(tmp_path / "saved")
    assert left and all(within(path, wanted) for path in left)


def shard_tensors(folder, shard):
    with opened(folder) as record:
        return tensors_of(record, stages_of(record, shard))


# Encryption


ENCRYPTED = Setup(encrypt=True)


def test_encryption_changes_no_bit_and_a_later_process_is_told_nothing_of_it(framework, shelf, tmp_path):
    plain = replace(ENCRYPTED, encrypt=None)
    assert_same_record(shelf.fitted(ENCRYPTED), shelf.fitted(plain))
    shelf.copy(tmp_path, ENCRYPTED)
    framework.training(tmp_path, ENCRYPTED.later(), ROWS).unlearn(rows=[ROW])
    assert_same_record(tmp_path, shelf.fitted(plain, ROWS.without([ROW])))


@pytest.mark.parametrize("encrypt", [True, False])
def test_no_file_ever_holds_what_an_encrypted_stage_learned(encrypt, framework, tmp_path, monkeypatch):
    seen = set()

    def look(_):
        seen.update(path.read_bytes() for path in (tmp_path / "record").rglob("*") if path.is_file())

    monkeypatch.setattr(files, "observer", look)
    training = framework.training(tmp_path, replace(ENCRYPTED, encrypt=encrypt), ROWS)
    training.fit()
    learned = tensors_now(tmp_path) | shard_tensors(tmp_path, 0)
    training.unlearn(rows=[ROW])
    learned |= tensors_now(tmp_path)
    monkeypatch.undo()
    assert len(learned) > 20
    assert any(tensor in content for tensor in learned for content in seen) == (not encrypt)


def test_a_request_destroys_the_keys_of_the_stages_that_it_takes(framework, shelf, tmp_path):
    shelf.copy(tmp_path, ENCRYPTED)
    with opened(tmp_path) as record:
        doomed = stages_of(record, 1)
    ring = tmp_path / "record.keys"
    keys = {path.name: path.read_bytes() for path in ring.iterdir() if path.name.partition(".")[0] in doomed}
    shutil.copytree(tmp_path / "record", tmp_path / "backup")
    result = framework.training(tmp_path, ENCRYPTED.later(), ROWS).unlearn(rows=[ROW])
    assert result.audit["keys_destroyed"] == result.audit["stages_unlinked"] == len(doomed) == len(keys)
    assert holding(ring, keys.values()) == set() and not [name for name in keys if (ring / name).exists()]
    assert holding(tmp_path / "record", keys.values()) == holding(tmp_path / "backup", keys.values()) == set()


def test_without_its_key_ring_a_record_is_not_asked(framework, shelf, tmp_path):
    shelf.copy(tmp_path, ENCRYPTED)
    training = framework.training(tmp_path, replace(ENCRYPTED, encrypt=None), ROWS)
    (tmp_path / "record.keys").rename(tmp_path / "elsewhere")
    for call in (lambda: training.unlearn(rows=[ROW]), training.fit):
        with (
            untouched(tmp_path, read=training.snapshot),
            pytest.raises(SecretKeyError, match=r"record\.keys is not there"),
        ):
            call()
    with opened(tmp_path) as record:
        assert record.requests == ()
