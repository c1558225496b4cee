"""Verification in depths: what each of them notices, and what it says it did not look at."""

import json
from contextlib import closing

import pytest

from pybrush.errors import ConfigurationError, CorruptRecordError
from pybrush.record import Record
from tests.core.test_fit_and_forget import KEY, data, fit


@pytest.fixture
def folder(tmp_path):
    fitted, _ = fit(tmp_path / "a", data(), list(range(40)))
    fitted.record.close()
    return tmp_path / "a"


def verify(folder, **depth):
    with closing(Record.open(folder, KEY)) as record:
        return record.verify(**depth)


def a_state(folder):
    return sorted((folder / "stages").iterdir())[0]


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_both_depths_find_a_sound_record_clean_and_say_what_they_did_not_look_at(folder):
    fast, whole = verify(folder, depth="manifests"), verify(folder)
    assert (fast.depth, whole.depth) == ("manifests", "digests") and fast.is_clean and whole.is_clean
    assert (fast.stages, fast.rows, fast.events) == (whole.stages, whole.rows, whole.events)
    assert set(whole.not_looked_at) < set(fast.not_looked_at)
    assert any("bytes" in what for what in fast.not_looked_at)
    assert whole.not_looked_at == ("whether training leads to these states",)


@pytest.mark.parametrize("file", ["state.safetensors", "tree.json"])
@pytest.mark.parametrize("place", ["initial", "stage"])
def test_a_changed_byte_of_a_state_is_seen_by_digests_and_not_by_manifests(folder, place, file):
    flip((folder / "initial" if place == "initial" else a_state(folder)) / file)
    assert verify(folder, depth="manifests").is_clean
    with pytest.raises(CorruptRecordError):
        verify(folder, depth="digests")


@pytest.mark.parametrize("file", ["state.safetensors", "tree.json"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_state_that_is_missing_or_cut_short_is_seen_by_manifests(folder, file, damage):
    path = a_state(folder) / file
    content = path.read_bytes()
    path.unlink()
    if damage == "cut short":
        path.write_bytes(content[: 0 if file == "tree.json" else -1])
    with pytest.raises(CorruptRecordError, match=file):
        verify(folder, depth="manifests")


@pytest.mark.parametrize("member", ["parent", "parent_sha256", "rows", "sha256", "shard"])
def test_a_manifest_that_does_not_fit_the_graph_is_seen_by_manifests(folder, member):
    with closing(Record.open(folder, KEY)) as record:
        last = max(record.constituents().values())
    path = folder / "stages" / last / "manifest.json"
    values = json.loads(path.read_text())
    values[member] = "0" * 64 if isinstance(values[member], str) else values[member] + 1
    path.write_text(json.dumps(values))
    with pytest.raises(CorruptRecordError):
        verify(folder, depth="manifests")


@pytest.mark.parametrize("depth", ["replay", "all", "", None])
def test_another_depth_is_refused_with_what_to_call_for_replay(folder, depth):
    with pytest.raises(ConfigurationError, match=r"'manifests' or 'digests'.*replay\(trainer"):
        verify(folder, depth=depth)
