"""Encrypted stages: the same bits, no weights on the disk, and nothing to read once a key was destroyed.

What is on the disk is searched and decrypted by these tests themselves (AES-GCM in one call), not by the library.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pybrush import forget
from pybrush.errors import (
    ConfigurationError,
    CorruptRecordError,
    FingerprintError,
    MissingExtraError,
    RecordError,
    SecretKeyError,
    StorageError,
    UnsupportedError,
)
from pybrush.record import Record, cipher, files
from pybrush.record.keyring import KeyRing, make_ring, ring_path
from pybrush.record.store import Manifest
from tests.core import format_reader as reader
from tests.core.numpy_learner import NumpyLearner, roster_of, wish
from tests.core.test_fit_and_forget import KEY, assert_same_record, by_ids, data, fit, keep, unlearn

IDS = [f"person-{i:012d}" for i in range(20)]
FILES = ("tree.json", "state.safetensors")


def made(folder, encrypt=True, rows=None, ids=None, **plan):
    found, _ = fit(folder, data(20) if rows is None else rows, IDS if ids is None else ids, encrypt=encrypt, **plan)
    found.record.close()
    return folder


@pytest.fixture
def record(tmp_path):
    """The folder of an encrypted record of twenty ids."""
    return made(tmp_path / "a")


def ring_of(folder):
    return folder.with_name(folder.name + ".keys")


def keys_in(ring):
    return {path.name: path.read_bytes() for path in ring.iterdir() if path.name not in ("ring", "latest")}


def stage_folders(folder):
    return {path.name: path for path in (folder / "stages").iterdir()}


def note_of(stage):
    return json.loads((stage / "manifest.json").read_bytes())["encryption"]


def rewrite(stage, **members):
    path = stage / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **members}))


def everything(folder):
    """Return the content of every file below a folder but for locks, which are empty."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.endswith("lock")}


def forgotten(folder, *positions):
    return unlearn(folder, data(20), by_ids([IDS[i] for i in positions]), IDS)


# The same bits


def test_a_record_has_the_same_keys_bits_and_hashes_with_and_without_encryption(tmp_path):
    folders = [made(tmp_path / name, encrypt) for name, encrypt in (("a", True), ("b", None))]
    for positions in ([3, 17], [5]):
        assert_same_record(*folders)
        for folder in folders:
            forgotten(folder, *positions)
    left = [i for i in range(20) if i not in (3, 17, 5)]
    fresh = made(tmp_path / "c", True, keep(data(20), left), [IDS[i] for i in left])
    for folder in folders:
        assert_same_record(folder, fresh)
    with closing(Record.open(folders[0], KEY)) as a, closing(Record.open(folders[1], KEY)) as b:
        for stage in a.graph():
            one, other = a.store.manifest(stage.key), b.store.manifest(stage.key)
            for name in ("key", "parent", "sha256", "parent_sha256", "rows", "steps"):
                assert getattr(one, name) == getattr(other, name)
            assert other.encryption is None and one.encryption is not None
        assert a.plan.semantic_digest == b.plan.semantic_digest
        assert a.ledger.rows("SELECT constituents FROM releases") == b.ledger.rows("SELECT constituents FROM releases")


def test_a_stage_leans_on_the_initial_state_whether_it_is_encrypted_or_not(tmp_path):
    class Frozen(NumpyLearner):
        backbone = np.arange(300.0)

        def read_state(self):
            return {**super().read_state(), "backbone": self.backbone.copy()}

        def write_state(self, state):
            super().write_state(state)
            assert np.array_equal(state["backbone"], self.backbone)

    rows = data(20)
    for name, encrypt in (("a", True), ("b", False)):
        plan = wish(encrypt=encrypt)
        forget.fit(tmp_path / name, plan, Frozen([0.1, -0.2, 0.3]), rows, roster_of(rows, IDS)).record.close()
    assert_same_record(tmp_path / "a", tmp_path / "b")
    for stage in stage_folders(tmp_path / "a").values():
        assert sum(path.stat().st_size for path in stage.iterdir()) < Frozen.backbone.nbytes


# What lies on the disk


def disk_while(work, folder, monkeypatch):
    """Return every content that any file of a record had at any step of `work`."""
    seen = set()

    def look(_):
        for path in folder.rglob("*") if folder.is_dir() else ():
            if path.is_file():
                seen.add(path.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(files, "observer", look)
        work()
    return seen


class Telling(NumpyLearner):
    """Notes the weights and velocities that it hands out to be stored after a stage."""

    def __init__(self, weights):
        super().__init__(weights)
        self.told = set()

    def read_state(self):
        state = super().read_state()
        if state["velocity"] is not None and self.trained:
            self.told |= {state["weights"].tobytes(), state["velocity"].tobytes()}
            self.told |= {text.hex().encode() for text in list(self.told)}
        return state


@pytest.mark.parametrize("encrypt", [True, False])
def test_no_file_of_an_encrypted_record_ever_holds_the_weights_of_a_stage(encrypt, tmp_path, monkeypatch):
    folder, rows, learner = tmp_path / "a", data(20), Telling([0.1, -0.2, 0.3])

    def work():
        forget.fit(folder, wish(encrypt=encrypt), learner, rows, roster_of(rows, IDS)).record.close()
        unlearn(folder, rows, by_ids([IDS[3]]), IDS, learner=learner)

    seen = disk_while(work, folder, monkeypatch)
    assert len(seen) > 20 and len(learner.told) > 20
    found = {weights for weights in learner.told if any(weights in content for content in seen)}
    assert bool(found) == (not encrypt)  # the same search does find what is not encrypted
    assert any(b'"format":1,"tree"' in content for content in seen), "the initial state is not encrypted"


def test_every_file_of_a_stage_is_encrypted_as_the_page_says_under_a_key_and_a_nonce_of_its_own(record):
    keys, nonces = keys_in(ring_of(record)), []
    stages = stage_folders(record)
    assert len(set(keys.values())) == len(keys) == len(stages) > 3
    for key, stage in stages.items():
        note = note_of(stage)
        for name in FILES:
            nonce = bytes.fromhex(note["files"][name]["nonce"])
            nonces.append(nonce)
            plain = AESGCM(keys[note["key_id"]]).decrypt(nonce, (stage / name).read_bytes(), reader.bound_to(key, name))
            assert plain[:1] == b"{" if name == "tree.json" else b'"U8"' in plain
    assert len(set(nonces)) == 2 * len(stages)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_nobody_but_the_owner_may_enter_the_key_ring_or_read_its_keys_whatever_the_umask(mask, tmp_path):
    before = os.umask(mask)
    try:
        made(tmp_path / "a")
    finally:
        os.umask(before)
    ring = ring_of(tmp_path / "a")
    assert stat.S_IMODE(ring.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in ring.iterdir()} == {0o600}
    assert not set(everything(tmp_path / "a").values()) & set(keys_in(ring).values())


# Destroying keys


def test_a_copy_of_the_record_from_before_cannot_be_read_with_the_keys_of_after(record, tmp_path):
    shutil.copytree(record, tmp_path / "backup")
    before = keys_in(ring_of(record))
    audit = forgotten(record, 3).audit
    shutil.copytree(ring_of(record), tmp_path / "backup.keys")
    left = keys_in(tmp_path / "backup.keys")
    gone = stage_folders(tmp_path / "backup").keys() - stage_folders(record).keys()
    assert audit["keys_destroyed"] == audit["stages_unlinked"] == len(gone) > 0
    assert not set(left.values()) & {before[note_of(tmp_path / "backup" / "stages" / key)["key_id"]] for key in gone}
    with closing(Record.open(tmp_path / "backup", KEY)) as copy:
        for key in gone:
            with pytest.raises(SecretKeyError, match=f"{key}.*as if it had been erased"):
                copy.store.load(key)
            for name in FILES:
                sealed, nonce = (copy.store.path(key) / name).read_bytes(), note_of(copy.store.path(key))["files"][name]
                for secret in left.values():
                    with pytest.raises(InvalidTag):
                        AESGCM(secret).decrypt(bytes.fromhex(nonce["nonce"]), sealed, reader.bound_to(key, name))
        for key in stage_folders(tmp_path / "backup").keys() - gone:
            assert copy.store.load(key)[0]["weights"].shape == (3,)


def test_the_evidence_says_what_destroyed_keys_mean_and_where_that_ends(record, tmp_path):
    result = forgotten(record, 3)
    page = result.report(tmp_path / "page.html").read_text()
    for words in ("keys destroyed", "backups and snapshots included", "copies of the key ring", "not encrypted"):
        assert words in page
    assert "does not overwrite" not in page
    plain = made(tmp_path / "plain", False)
    result = forgotten(plain, 3)
    assert "keys_destroyed" not in result.audit
    assert "does not overwrite" in result.report(tmp_path / "page.html").read_text()


def test_a_key_is_overwritten_before_its_file_is_unlinked(tmp_path):
    ring = make_ring(tmp_path / "a")
    name = "ab" * 32 + ".00000000"
    key = ring.make(name)
    os.link(ring.folder / name, tmp_path / "second name of the same file")
    assert ring.names() == [name] and ring.key(name) == key
    ring.destroy(name)
    assert ring.names() == [] and ring.key(name) is None
    assert (tmp_path / "second name of the same file").read_bytes() == bytes(32) != key
    ring.destroy(name)


def test_what_somebody_else_put_into_the_ring_is_left_alone(record):
    others = ("README", ".hidden", "ab" * 32, "ab" * 32 + ".0000000g", "AB" * 32 + ".00000000")
    for name in others:
        (ring_of(record) / name).write_text("mine")
    orphan = ring_of(record) / ("ab" * 32 + ".00000000")
    orphan.write_bytes(bytes(range(32)))
    forgotten(record, 3)
    assert not orphan.exists() and all((ring_of(record) / name).read_text() == "mine" for name in others)


def leave_pending(folder):
    """Ask for a row of each shard, and let training fail at the last stage."""
    learner = NumpyLearner([9.0] * 3)
    with closing(Record.open(folder, KEY)) as opened:
        last = opened.graph()[-1]
    learner.fail_at = (last.shard, last.slice)
    shards = {reader.cell(reader.pseudonym(KEY, i), 3, 2)[0]: i for i in IDS}
    with pytest.raises(ArithmeticError):
        unlearn(folder, data(20), by_ids(shards.values()), IDS, learner=learner)


def cancel(folder):
    with closing(Record.open(folder, KEY)) as opened:
        opened.cancel(1)
        assert opened.verify().is_clean


def test_cancelling_destroys_the_keys_of_the_stages_that_were_built_for_the_request(record):
    before = keys_in(ring_of(record))
    leave_pending(record)
    assert keys_in(ring_of(record)).keys() > before.keys()
    cancel(record)
    assert keys_in(ring_of(record)) == before


# Keys that are not there


def test_without_the_key_ring_a_record_verifies_and_nothing_else_is_done_or_changed(record, tmp_path):
    ring_of(record).rename(tmp_path / "elsewhere")
    before = everything(record)
    with closing(Record.open(record, KEY)) as opened:
        for found in (opened.verify(), opened.verify("manifests")):
            assert found.is_clean and found.unopened == found.stages > 3
        assert opened.info().is_encrypted and not opened.info().has_key_ring
        with pytest.raises(SecretKeyError, match=r"key ring .*a\.keys is not there"):
            opened.store.load(opened.constituents()[0])
    for call in (lambda: forgotten(record, 3), lambda: made(record)):
        with pytest.raises(SecretKeyError, match=r"key ring .*a\.keys is not there"):
            call()
    assert everything(record) == before and not ring_of(record).exists()
    ring_of(record).symlink_to(tmp_path / "elsewhere")  # a ring may lie on another volume
    assert forgotten(record, 3).audit["keys_destroyed"] > 0
    with closing(Record.open(record, KEY)) as opened:
        assert opened.verify().unopened == 0 and opened.info().has_key_ring


@pytest.mark.parametrize("name", FILES)
def test_a_changed_ciphertext_is_a_defect_also_where_the_keys_are_elsewhere(name, record, tmp_path):
    ring_of(record).rename(tmp_path / "elsewhere")
    path = stage_folders(record)[sorted(stage_folders(record))[0]] / name
    content = path.read_bytes()
    path.write_bytes(content[:5] + bytes([content[5] ^ 1]) + content[6:])
    with closing(Record.open(record, KEY)) as opened, pytest.raises(CorruptRecordError, match=name):
        opened.verify()


def test_the_ring_of_another_record_is_refused_and_keeps_its_keys(record, tmp_path):
    other = made(tmp_path / "b")
    before = keys_in(ring_of(other))
    shutil.rmtree(ring_of(record))
    shutil.copytree(ring_of(other), ring_of(record))
    with pytest.raises(SecretKeyError, match="another record"):
        forgotten(record, 3)
    with closing(Record.open(record, KEY)) as opened, pytest.raises(SecretKeyError, match="another record"):
        opened.verify()
    assert keys_in(ring_of(record)) == before
    with closing(Record.open(record, KEY)) as opened:
        assert opened.requests == ()


def test_a_stage_whose_key_was_lost_is_named_and_fitting_again_trains_it_alone(record):
    key = sorted(stage_folders(record))[1]
    (ring_of(record) / note_of(stage_folders(record)[key])["key_id"]).unlink()
    with closing(Record.open(record, KEY)) as opened:
        for call in (opened.verify, lambda: opened.verify("manifests"), lambda: opened.store.load(key)):
            with pytest.raises(SecretKeyError, match=f"stages/{key}.*fit again"):
                call()
    shutil.rmtree(stage_folders(record)[key])
    rows = data(20)
    fitted = forget.fit(record, wish(), NumpyLearner([0.0] * 3), rows, roster_of(rows, IDS))
    fitted.record.close()
    assert [manifest.key for manifest in fitted.built] == [key]
    assert_same_record(record, made(record.with_name("b"), None))


def test_a_key_file_of_another_length_is_named(record):
    key = sorted(stage_folders(record))[0]
    path = ring_of(record) / note_of(stage_folders(record)[key])["key_id"]
    path.write_bytes(path.read_bytes()[:-1])
    with closing(Record.open(record, KEY)) as opened, pytest.raises(SecretKeyError, match=r"32 bytes; it holds 31"):
        opened.store.load(key)


def test_a_record_that_was_restored_from_a_backup_is_noticed_and_costs_no_key(record, tmp_path):
    forgotten(record, 7)
    shutil.copytree(record, tmp_path / "backup")
    forgotten(record, 3)
    record.rename(tmp_path / "later")
    shutil.copytree(tmp_path / "backup", record)
    before = everything(tmp_path)
    with closing(Record.open(record, KEY)) as opened:
        for call in (
            opened.verify,
            lambda: opened.verify("manifests"),
            lambda: forgotten(record, 5),
            lambda: made(record),
        ):
            with pytest.raises(RecordError, match=r"older than its key ring.*delete .*a\.keys/latest"):
                call()
    assert everything(tmp_path) == before
    shutil.rmtree(record)
    (tmp_path / "later").rename(record)
    forgotten(record, 5)
    left = [i for i in WITHOUT if i != 7]
    assert_same_record(record, made(tmp_path / "b", None, keep(data(20), left), [IDS[i] for i in left]))


WITHOUT = [i for i in range(20) if i not in (3, 5)]


def test_who_has_nothing_but_a_backup_serves_the_later_requests_again(record, tmp_path):
    shutil.copytree(record, tmp_path / "backup")
    forgotten(record, 3)
    shutil.rmtree(record)
    (tmp_path / "backup").rename(record)
    (ring_of(record) / "latest").unlink()
    with closing(Record.open(record, KEY)) as opened, pytest.raises(SecretKeyError, match="fit again"):
        opened.verify()
    doomed = [
        path for path in stage_folders(record).values() if note_of(path)["key_id"] not in keys_in(ring_of(record))
    ]
    for path in doomed:
        shutil.rmtree(path)
    forgotten(record, 3)
    forgotten(record, 5)
    assert_same_record(record, made(tmp_path / "b", None, keep(data(20), WITHOUT), [IDS[i] for i in WITHOUT]))


def test_a_cancelled_request_counts_as_progress_too(record, tmp_path):
    shutil.copytree(record, tmp_path / "backup")
    leave_pending(record)
    cancel(record)
    shutil.rmtree(record)
    (tmp_path / "backup").rename(record)
    with pytest.raises(RecordError, match="older than its key ring"):
        made(record)


# Files that are not what was encrypted


def flipped(at):
    def damage(stage, name):
        content = bytearray((stage / name).read_bytes())
        content[at] ^= 1
        (stage / name).write_bytes(content)

    return damage


DAMAGES = {
    "the first byte": flipped(0),
    "the last byte of the tag": flipped(-1),
    "the first byte of the tag": flipped(-16),
    "one byte less": lambda stage, name: (stage / name).write_bytes((stage / name).read_bytes()[:-1]),
    "one byte more": lambda stage, name: (stage / name).write_bytes((stage / name).read_bytes() + b"\0"),
    "nothing but a part of a tag": lambda stage, name: (stage / name).write_bytes(b"abc"),
    "empty": lambda stage, name: (stage / name).write_bytes(b""),
    "missing": lambda stage, name: (stage / name).unlink(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_changed_or_truncated_file_is_never_opened(damage, name, record):
    key, stage = sorted(stage_folders(record).items())[0]
    damage(stage, name)
    with closing(Record.open(record, KEY)) as opened:
        for call in (opened.verify, lambda: opened.store.load(key)):
            with pytest.raises(CorruptRecordError, match=name):
                call()


def two_stages(record):
    first, second = sorted(stage_folders(record).items())[:2]
    return first, second


def as_they_lie(stage):
    """Let a manifest name the files that lie there, so that only the keys can tell."""
    note = note_of(stage)
    for name, file in note["files"].items():
        content = (stage / name).read_bytes()
        file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(stage, encryption=note)


def test_a_file_of_another_stage_is_never_opened_though_its_key_and_nonce_come_with_it(record):
    (key, stage), (_, other) = two_stages(record)
    for name in FILES:
        shutil.copy(other / name, stage / name)
    rewrite(stage, encryption=note_of(other), sha256=json.loads((other / "manifest.json").read_bytes())["sha256"])
    with closing(Record.open(record, KEY)) as opened:
        with pytest.raises(CorruptRecordError, match="is not what was encrypted"):
            opened.store.load(key)
        with pytest.raises(CorruptRecordError, match="was not built from the state of its parent"):
            opened.verify()  # looks at what the manifests say of each other first


def test_the_two_files_of_a_stage_cannot_take_each_others_places(record):
    key, stage = sorted(stage_folders(record).items())[0]
    note = note_of(stage)
    tree, tensors = (stage / FILES[0]).read_bytes(), (stage / FILES[1]).read_bytes()
    (stage / FILES[0]).write_bytes(tensors)
    (stage / FILES[1]).write_bytes(tree)
    note["files"] = dict(zip(FILES, reversed([note["files"][name] for name in FILES]), strict=True))
    rewrite(stage, encryption=note)
    with closing(Record.open(record, KEY)) as opened, pytest.raises(CorruptRecordError, match="is not what was encryp"):
        opened.store.load(key)


def test_a_state_that_was_encrypted_by_who_has_the_key_is_still_not_the_one_of_the_manifest(record):
    key, stage = sorted(stage_folders(record).items())[0]
    note = note_of(stage)
    secret, nonce = (ring_of(record) / note["key_id"]).read_bytes(), bytes.fromhex(note["files"]["tree.json"]["nonce"])
    forged = AESGCM(secret).encrypt(nonce, b'{"format":1,"tree":null}', reader.bound_to(key, "tree.json"))
    (stage / "tree.json").write_bytes(forged)
    as_they_lie(stage)
    with closing(Record.open(record, KEY)) as opened:
        for call in (opened.verify, lambda: opened.store.load(key)):
            with pytest.raises(CorruptRecordError, match="not the one that its manifest names"):
                call()


NOTES = {
    "no object": lambda note: "AES-256-GCM",
    "another algorithm": lambda note: {**note, "algorithm": "AES-128-GCM"},
    "a member more": lambda note: {**note, "salt": ""},
    "a member less": lambda note: {"algorithm": note["algorithm"], "files": note["files"]},
    "a key elsewhere": lambda note: {**note, "key_id": "../a.key"},
    "a hidden key": lambda note: {**note, "key_id": ".x"},
    "no files": lambda note: {**note, "files": []},
    "a file less": lambda note: {**note, "files": {"tree.json": note["files"]["tree.json"]}},
    "a file elsewhere": lambda note: {**note, "files": {**note["files"], "../tree.json": note["files"]["tree.json"]}},
    "a short nonce": lambda note: changed_file(note, nonce="00"),
    "a nonce that is none": lambda note: changed_file(note, nonce=7),
    "a hash that is none": lambda note: changed_file(note, sha256="x"),
    "a length that is none": lambda note: changed_file(note, bytes="7"),
    "a member of a file more": lambda note: changed_file(note, tag=""),
}


def changed_file(note, **members):
    return {**note, "files": {**note["files"], "tree.json": {**note["files"]["tree.json"], **members}}}


@pytest.mark.parametrize("change", NOTES.values(), ids=NOTES.keys())
def test_an_encryption_that_is_not_of_the_known_form_is_refused(change, record):
    key, stage = sorted(stage_folders(record).items())[0]
    rewrite(stage, encryption=change(note_of(stage)))
    with closing(Record.open(record, KEY)) as opened, pytest.raises(CorruptRecordError, match="expected algorithm AES"):
        opened.store.load(key)


def test_a_plain_stage_in_an_encrypted_record_is_refused_and_an_encrypted_one_in_a_plain_record(record, tmp_path):
    plain = made(tmp_path / "plain", False)
    key = sorted(stage_folders(record))[0]
    one, other = record / "stages" / key, plain / "stages" / key
    for source, target in ((one, tmp_path / "kept"), (other, one), (tmp_path / "kept", other)):
        source.rename(target)
    for folder in (record, plain):
        with closing(Record.open(folder, KEY)) as opened:
            with pytest.raises(CorruptRecordError, match="unlike this record"):
                opened.verify()
            with pytest.raises(CorruptRecordError, match="unlike this record"):
                opened.store.load(key)


def test_the_initial_state_is_never_encrypted_whoever_writes_it(record):
    with closing(Record.open(record, KEY)) as opened:
        before = keys_in(ring_of(record))
        aside = opened.store.write_aside({"a": np.ones(2)}, Manifest("initial"))
        assert note_of(aside) is None and keys_in(ring_of(record)) == before
        opened.store.drop(aside)
        assert opened.store.manifest("initial").encryption is None


# Settings


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True), (None, True)])
def test_the_first_fit_fixes_whether_stages_are_encrypted(first, then, tmp_path):
    folder = made(tmp_path / "a", first)
    before = everything(tmp_path)
    with pytest.raises(FingerprintError, match="encrypted, which its first fit fixed"):
        made(folder, then)
    assert {path: data for path, data in everything(tmp_path).items() if path.suffix != ".keys"} == before
    made(folder, None)
    made(folder, first)
    assert ring_of(folder).exists() == (first is True)


@pytest.mark.parametrize("encrypt", [1, "yes", 0])
def test_encrypt_is_a_truth_value_or_none(encrypt):
    with pytest.raises(ConfigurationError, match="encrypt must be True, False or None"):
        wish(encrypt=encrypt)


def test_keys_that_lie_where_a_new_record_would_keep_its_own_are_left_alone(record):
    shutil.rmtree(record)
    before = everything(ring_of(record))
    with pytest.raises(RecordError, match="keys of another record"):
        made(record)
    assert everything(ring_of(record)) == before
    shutil.rmtree(ring_of(record))
    made(record)


def without_cryptography(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)


def test_where_what_encrypts_is_not_installed_the_error_names_the_extra_before_anything_is_done(
    record, tmp_path, monkeypatch
):
    before = everything(tmp_path)
    without_cryptography(monkeypatch)
    for call in (lambda: made(tmp_path / "b"), lambda: forgotten(record, 3), lambda: made(record, None)):
        with pytest.raises(MissingExtraError, match=r"pip install 'pybrush\[encrypt\]'"):
            call()
    with closing(Record.open(record, KEY)) as opened, pytest.raises(MissingExtraError, match="encrypt"):
        opened.store.load(opened.constituents()[0])
    assert everything(tmp_path) == before


def test_where_what_encrypts_is_not_installed_no_stage_is_trained_that_could_not_be_stored(record, monkeypatch):
    shutil.rmtree(record / "stages")
    without_cryptography(monkeypatch)
    learner, rows = NumpyLearner([0.0] * 3), data(20)
    with pytest.raises(MissingExtraError, match="encrypt"):
        forget.fit(record, wish(), learner, rows, roster_of(rows, IDS))
    assert learner.trained == []


# Pieces


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 63, 64, 65, 1000])
def test_a_file_worked_through_in_pieces_has_the_bytes_of_one_call(size, tmp_path, monkeypatch):
    monkeypatch.setattr(cipher, "_PIECE", 64)
    key, nonce, plain = os.urandom(32), os.urandom(12), os.urandom(size)
    pieces = list(cipher.encrypted(key, nonce, b"bound", plain))
    assert b"".join(pieces) == AESGCM(key).encrypt(nonce, plain, b"bound")
    assert all(len(piece) <= 64 for piece in pieces)
    (tmp_path / "file").write_bytes(b"".join(pieces))
    assert cipher.decrypted(key, nonce, b"bound", tmp_path / "file") == plain
    for other in ((os.urandom(32), nonce, b"bound"), (key, os.urandom(12), b"bound"), (key, nonce, b"round")):
        with pytest.raises(CorruptRecordError):
            cipher.decrypted(*other, tmp_path / "file")


def test_more_than_gcm_can_encrypt_under_one_nonce_is_refused(monkeypatch):
    monkeypatch.setattr(cipher, "_MOST", 10)
    with pytest.raises(UnsupportedError, match="11 bytes is too large"):
        list(cipher.encrypted(bytes(32), bytes(12), b"", bytes(11)))


def test_a_state_that_cannot_be_read_back_is_noticed_before_it_is_published(record, monkeypatch):
    real = cipher.encrypted

    def wrong(key, nonce, bound, plain):
        yield from real(key, nonce, bound, plain[:-1] + b"!")

    monkeypatch.setattr("pybrush.record.sealed.encrypted", wrong)
    before = set(stage_folders(record))
    with pytest.raises(CorruptRecordError, match="not what was written"):
        forgotten(record, 3)
    assert set(stage_folders(record)) == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are read from /proc")
def test_a_key_that_cannot_be_destroyed_leaves_the_request_committed_and_the_rerun_seals_it(record, monkeypatch):
    before, real = keys_in(ring_of(record)), os.fsync

    def failing(handle):
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.is_file() and path.read_bytes() == bytes(32):
            raise OSError(errno.EIO, "Input/output error")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StorageError, match=r"a\.keys/.*Input/output error"):
            forgotten(record, 3)
    with closing(Record.open(record, KEY)) as opened:
        assert [request.state for request in opened.requests] == ["committed"]
    assert forgotten(record, 3).audit["keys_destroyed"] > 0
    assert set(before.values()) - set(keys_in(ring_of(record)).values())


def test_the_ring_lies_beside_the_record(tmp_path):
    assert ring_path(tmp_path / "faces") == tmp_path / "faces.keys"
    with pytest.raises(SecretKeyError, match="is not there"):
        KeyRing(tmp_path / "faces.keys", "00" * 16).names()
