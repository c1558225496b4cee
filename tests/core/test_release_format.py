"""Records with approximate releases, read by a program that knows only docs/record_format.md."""

import json
import shutil
from contextlib import closing
from dataclasses import fields

import numpy as np
import pytest

from pybrush.errors import CorruptRecordError
from pybrush.record import Record
from pybrush.record.store import Manifest, ReleaseManifest
from tests.core import format_reader as reader
from tests.core.forty_rows import FIRST, IDS, SECOND, fit_forty, ids_of, opened, rows_of
from tests.core.numpy_methods import Ascent, Shrink, by
from tests.core.test_fit_and_forget import KEY, unlearn
from tests.core.test_record_format import PAGE, change, flip_last_byte, table_rows


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A record with a secret state on one shard, a chain of two requests on another, and a rebuild of the third."""
    folder, rows = fit_forty(tmp_path_factory.mktemp("released") / "a")
    unlearn(folder, rows, ids_of([*FIRST, *SECOND]), IDS, terms=by(Ascent()))
    unlearn(folder, rows, ids_of(rows_of(0)[:1]), IDS, terms=by(Shrink()))
    unlearn(folder, rows, ids_of(rows_of(2)[:1]), IDS)
    return folder


def test_the_reader_finds_nothing_wrong_and_the_same_states(served):
    record = reader.read_record(served)
    assert reader.defects(record) == [] and set(reader.served(record)) == {0, 1}
    with opened(served) as real:
        assert reader.constituents(record) == real.constituents() and reader.served(record) == real.stand_ins()
        for key in reader.constituents(record).values():
            tree, _, _ = reader.read_state(record["states"][key])
            assert np.array_equal(tree["weights"], real.store.load(key)[0]["weights"])
        key = reader.served(record)[0]
        secret, _, _ = reader.read_state(record["states"][key] / "secret")
        assert np.array_equal(secret["weights"], real.store.load_secret(key)["weights"])


def test_a_record_is_read_while_an_approximate_request_is_pending(tmp_path):
    folder, rows = fit_forty(tmp_path / "a")
    with pytest.raises(ArithmeticError):
        unlearn(folder, rows, ids_of([*FIRST, *SECOND]), IDS, terms=by(Ascent(fail_at=1)))
    record = reader.read_record(folder)
    assert reader.defects(record) == [] and reader.served(record) == {}
    (asked,), (release,) = record["tables"]["requests"], record["tables"]["releases"]
    coming = reader.release_key(release["key"], asked["method"], asked["commitment"])
    wanted = {row["key"] for row in record["tables"]["wanted"]}
    assert {reader.state_key(coming, shard) for shard in (0, 1)} < wanted
    assert [path.name for path in (folder / "releases").iterdir()] == [reader.state_key(coming, 0)]


def test_the_page_has_every_member_of_a_release_s_manifest(served):
    record = reader.read_record(served)
    own = {field.name for field in fields(ReleaseManifest)} - {field.name for field in fields(Manifest)}
    assert set(table_rows("**A release's state** has these members")) == own
    for key in reader.served(record).values():
        manifest = record["manifests"][key]
        assert manifest.keys() == {field.name for field in fields(ReleaseManifest)}
        assert all(f"`{name}`" in PAGE for link in manifest["links"] for name in link)


def change_manifest(name, value):
    def damage(folder):
        for path in folder.glob("releases/*/manifest.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return damage


def drop_states(folder):
    shutil.rmtree(folder / "releases")
    (folder / "releases").mkdir()


DAMAGES = {
    "a state": (flip_last_byte("releases/*/state.safetensors"), "state "),
    "a secret state": (flip_last_byte("releases/*/secret/state.safetensors"), "secret state"),
    "states that are gone": (drop_states, "no state"),
    "a request": (change_manifest("request", 3), "release's state"),
    "a method": (change_manifest("method", "shrink"), "release's state"),
    "a release": (change_manifest("release", "00" * 32), "release's state"),
    "a guarantee": (change("UPDATE releases SET guarantee = replace(guarantee, 'Empirical', 'Exact')"), "kind of"),
    "a count of rows": (change_manifest("rows", 1), "release's state"),
    "the folder of a constituent": (
        change("UPDATE releases SET constituents = replace(constituents, 'releases', 'stages')"),
        "constituents of the release",
    ),
    "the key of a release": (change("UPDATE releases SET key = parent"), "key of the release"),
}


@pytest.mark.parametrize(("damage", "finding"), DAMAGES.values(), ids=DAMAGES.keys())
def test_the_reader_finds_what_is_damaged(served, tmp_path, damage, finding):
    folder = tmp_path / "copy"
    shutil.copytree(served, folder)
    damage(folder)
    assert any(sentence.startswith(finding) for sentence in reader.defects(reader.read_record(folder)))
    with closing(Record.open(folder, KEY)) as record, pytest.raises(CorruptRecordError):
        record.verify()
