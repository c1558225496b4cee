"""What verify finds wrong with releases, and what info, verify and the command tell of them."""

import json
import logging
import shutil

import numpy as np
import pytest

from pybrush import tables
from pybrush.errors import (
    CorruptRecordError,
)
from pybrush.guarantee import Certified, Exact, as_plain
from pybrush.record import states
from tests.core.forty_rows import (
    FIRST,
    IDS,
    NAMES,
    SECOND,
    assert_as_never_held,
    fit_forty,
    ids_of,
    opened,
    pending,
)
from tests.core.numpy_methods import Ascent, Shrink, by, exactly
from tests.core.test_fit_and_forget import unlearn


@pytest.fixture
def fitted(tmp_path):
    return fit_forty(tmp_path / "a")


def flip(folder):
    (path,) = folder.glob("releases/*/state.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def cut(folder):
    (path,) = folder.glob("releases/*/state.safetensors")
    path.write_bytes(path.read_bytes()[:-1])


def exchange(folder):
    """Another state with a manifest that fits it."""
    with opened(folder) as record:
        (key,) = record.stand_ins().values()
        manifest = record.store.manifest(key)
        aside = record.store.write_aside({"weights": np.ones(3), "velocity": None}, manifest)
        shutil.rmtree(record.store.path(key))
        record.store.publish_release(aside, key)


def change_manifest(name, value):
    def damage(folder):
        (path,) = folder.glob("releases/*/manifest.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return damage


def weaken_nothing(folder):
    """A chain that claims more than what was proved."""
    (path,) = folder.glob("releases/*/manifest.json")
    values = json.loads(path.read_text())
    values["links"][-1]["method"] = "another"
    path.write_text(json.dumps(values))


def strengthen(folder):
    """A chain that claims to prove what was only found."""
    (path,) = folder.glob("releases/*/manifest.json")
    values = json.loads(path.read_text())
    values["links"][-1]["guarantee"] = as_plain(Certified(0.1, 1e-9, "training without", "one request"))
    path.write_text(json.dumps(values))


def remove(folder):
    (path,) = folder.glob("releases/*")
    shutil.rmtree(path)


def copy_of_stage(folder):
    stage = sorted((folder / "stages").iterdir())[0]
    shutil.copytree(stage, folder / "releases" / stage.name)


def change_row(statement):
    def damage(folder):
        with opened(folder) as record, record.ledger.writing("damage"):
            record.ledger.change(statement)

    return damage


DAMAGES = {
    "changed": (flip, "manifest names"),
    "cut": (cut, "manifest names"),
    "exchanged with its manifest": (exchange, "released"),
    "missing": (remove, "missing"),
    "of another release": (change_manifest("release", "00" * 32), "release that its manifest"),
    "of another parent": (change_manifest("parent", "00" * 32), "release that its manifest"),
    "of another method": (change_manifest("method", "better"), "release that its manifest"),
    "of another shard": (change_manifest("shard", 1), "last stage"),
    "of another slice": (change_manifest("slice", 0), "last stage"),
    "of other rows": (change_manifest("rows", 3), "last stage"),
    "of another chain": (weaken_nothing, "chain"),
    "of a stronger chain": (strengthen, "guarantees other"),
    "a stronger guarantee in the ledger": (
        change_row("UPDATE releases SET guarantee = replace(guarantee, '2 rows climbed', '3 rows climbed')"),
        "guarantees other",
    ),
    "without a chain": (change_manifest("links", []), "chain"),
    "a stage among the releases": (copy_of_stage, "holds stages"),
    "another method in the ledger": (change_row("UPDATE releases SET method = 'rebuild'"), "key of the release"),
    "another key": (change_row("UPDATE releases SET key = parent"), "key of the release"),
    "not wanted": (change_row("DELETE FROM wanted WHERE key NOT IN (SELECT key FROM wanted LIMIT 3)"), "wants"),
}


@pytest.mark.parametrize(("damage", "finding"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_wrong_with_a_release_is_found(fitted, damage, finding):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    damage(folder)
    with opened(folder) as record, pytest.raises(CorruptRecordError, match=finding):
        record.verify()


def test_two_states_of_releases_that_changed_places_are_found(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of([*FIRST, *SECOND]), IDS, terms=by(Ascent()))
    one, other = sorted((folder / "releases").iterdir())
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)
    with opened(folder) as record, pytest.raises(CorruptRecordError, match="belongs to"):
        record.verify()


def open_to_others(secret):
    (secret / "state.safetensors").chmod(0o640)


def swap_secret(secret):
    shutil.rmtree(secret)
    secret.mkdir(0o700)
    states.save(secret, {"weights": np.ones(3)})


@pytest.mark.parametrize(
    ("damage", "finding"), [(open_to_others, "others"), (swap_secret, "secret"), (shutil.rmtree, "missing")]
)
def test_what_is_wrong_with_a_secret_state_is_found(fitted, damage, finding):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Shrink()))
    (secret,) = folder.glob("releases/*/secret")
    damage(secret)
    with opened(folder) as record, pytest.raises(CorruptRecordError, match=finding):
        record.verify()


def test_a_secret_state_of_which_nothing_is_said_is_found(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    (place,) = (folder / "releases").iterdir()
    (place / "secret").mkdir()
    with opened(folder) as record, pytest.raises(CorruptRecordError, match="says nothing"):
        record.verify()


def test_a_release_whose_state_is_lost_is_mended_by_an_exact_guarantee(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    remove(folder)
    assert isinstance(unlearn(folder, rows, lambda _: None, IDS, terms=exactly()).guarantee, Exact)
    assert_as_never_held(folder, FIRST)


def test_verify_names_the_stages_that_a_release_replaces_and_none_as_missing(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    with opened(folder) as record:
        found, (last,) = (
            record.verify(),
            [stage.key for stage in record.graph() if (stage.shard, stage.slice) == (0, 1)],
        )
    assert found.is_clean and found.missing == () and found.replaced == (last,)
    assert (found.stages, found.releases, found.secrets) == (5, 1, ())


def test_both_depths_of_verify_look_at_the_states_of_releases(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Shrink()))
    with opened(folder) as record:
        assert record.verify("manifests").releases == record.verify("digests").releases == 1
        for where in ("releases/*/state.safetensors", "releases/*/secret/state.safetensors"):
            (path,) = folder.glob(where)
            whole = path.read_bytes()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            record.verify("manifests")
            with pytest.raises(CorruptRecordError, match="manifest names"):
                record.verify("digests")
            path.write_bytes(whole[:-1])
            with pytest.raises(CorruptRecordError):
                record.verify("manifests")
            path.write_bytes(whole)


def test_info_tells_of_releases_and_counts_what_they_replace_apart(fitted):
    folder, rows = fitted
    with opened(folder) as record:
        assert (record.info().guarantee, record.info().releases, record.info().stages_replaced) == ("Exact", (), 0)
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Shrink()))
    unlearn(folder, rows, ids_of(SECOND), IDS, terms=by(Ascent()))
    with opened(folder) as record:
        found, held = record.info(), record.stand_ins()
    assert (found.stages_built, found.stages_wanted, found.stages_replaced) == (3, 6, 3)
    told = [
        (each.shard, each.key, each.request, each.method, each.guarantee, each.has_secret) for each in found.releases
    ]
    assert told == [
        (0, held[0], 1, 'shrink {"delta":1e-06,"epsilon":0.5}', "Certified", True),
        (1, held[1], 2, 'ascent {"rate":0.2,"steps":3}', "Empirical", False),
    ]
    assert found.guarantee == "Empirical" and set(found.constituents) == {0, 1, 2}
    assert found.disk.releases == sum(
        path.stat().st_size for path in (folder / "releases").rglob("*") if path.is_file()
    )
    assert [request.method.split()[0] for request in found.requests] == ["shrink", "ascent"]


def test_info_counts_only_stages_while_an_approximate_request_is_pending(fitted):
    folder, rows = fitted
    pending(folder, rows, Ascent())
    with opened(folder) as record:
        found = record.info()
    assert (found.stages_built, found.stages_wanted, found.stages_replaced) == (6, 9, 0)


def test_the_command_shows_what_a_release_guarantees(fitted, capsys):
    folder, rows = fitted
    results = [unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Shrink()))]
    results.append(unlearn(folder, rows, ids_of(SECOND), IDS, terms=by(Ascent())))
    with opened(folder) as record:
        tables.show_info(record.info())
        tables.show_verification(record, record.verify())
    for result in results:
        tables.show_result(result)
        assert type(result.guarantee).__name__ in result.report(folder.with_name("page.html")).read_text()
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "Certified, by request 1: shrink", "2, in place of 3 stages", "1; nobody but the owner",
        "0.5 nats, 1e-06; request 1 on shards 0: one request", "convex", "rows climbed", "a few steps show little",
    ):  # fmt: skip
        assert part.split()[0] in shown and all(word in shown for word in part.split()), part


def test_a_state_of_a_release_that_nobody_wants_is_told_of_and_collected(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    (place,) = (folder / "releases").iterdir()
    shutil.copytree(place, folder / "releases" / ("0" * 64))
    with opened(folder) as record:
        assert record.verify().unwanted == ("0" * 64,)
    unlearn(folder, rows, ids_of(SECOND), IDS)
    assert (folder / "releases").exists() and list((folder / "releases").iterdir()) == [place]


def test_a_method_is_logged_without_names(fitted, caplog):
    folder, rows = fitted
    caplog.set_level(logging.DEBUG)
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    assert "ascent changed shard 0" in caplog.text
    assert not any(name.hex() in caplog.text for name in NAMES) and "person" not in caplog.text
