"""A stage that leans on the initial state: what comes back is what was packed, and only changes take space."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybrush.errors import CorruptRecordError
from pybrush.record import states
from pybrush.record.layers import fill, references, thin
from pybrush.record.trees import pack

TENSORS = [np.arange(4.0), np.arange(4.0), np.arange(4.0).reshape(2, 2), np.zeros(4), np.arange(4, dtype="<f4")]
VALUES = st.recursive(
    st.sampled_from(TENSORS) | st.integers(-2, 2) | st.sampled_from(["a", "", None, b"x", 0.5]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["w", "b", 0, 1, (0, "w")]), inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=12,
)


def saved(folder, tree, initial=None):
    folder.mkdir(parents=True)
    states.save(folder, tree, initial=initial)
    return folder


@settings(max_examples=400, deadline=None)
@given(VALUES, VALUES)
def test_filling_gives_back_every_byte_that_was_packed(tree, base):
    packed, (base_json, held) = pack(tree), pack(base)
    stored = thin(*packed, base_json, held.__getitem__)
    assert set(stored[1]) == {f"{number:06d}" for number in range(len(stored[1]))}
    tree_json, arrays = fill(*stored, held.__getitem__)
    assert tree_json == packed[0]
    assert list(arrays) == list(packed[1]) and all(np.array_equal(arrays[n], packed[1][n]) for n in arrays)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_a_tree_stores_nothing_beside_itself(tree):
    tree_json, arrays = pack(tree)
    thinned, stored = thin(tree_json, arrays, tree_json, arrays.__getitem__)
    assert not stored and len(references(thinned)) == len(arrays)


def test_only_what_changed_is_stored(tmp_path):
    frozen, head = np.random.default_rng(0).normal(size=(400, 400)), np.zeros(3)
    initial = saved(tmp_path / "initial", {"frozen": frozen, "head": head})
    stage = saved(tmp_path / "stage", {"frozen": frozen, "head": head + 1, "velocity": head}, initial)
    loaded = states.load(stage, initial)
    assert np.array_equal(loaded["frozen"], frozen)
    assert loaded["head"].tolist() == [1, 1, 1] and loaded["velocity"].tolist() == [0, 0, 0]
    assert (stage / "state.safetensors").stat().st_size < 1000 < frozen.nbytes


@pytest.mark.parametrize(
    "other",
    [np.arange(1.0, 5.0), np.arange(4.0).astype("<f4"), np.arange(4.0).reshape(2, 2), np.array([-0.0, 1, 2, 3])],
    ids=["values", "type", "shape", "sign of zero"],
)
def test_a_tensor_that_differs_in_any_way_is_stored(other):
    base_json, held = pack({"w": np.arange(4.0)})
    _, stored = thin(*pack({"w": other}), base_json, held.__getitem__)
    assert list(stored) == ["000000"]


def test_a_tensor_that_lies_in_memory_another_way_is_stored():
    square = np.arange(4.0).reshape(2, 2)
    base_json, held = pack({"w": square})
    _, stored = thin(*pack({"w": np.asfortranarray(square)}), base_json, held.__getitem__)
    assert list(stored) == ["000000"]


def test_tied_tensors_stay_tied_and_others_apart(tmp_path):
    one = np.ones(3)
    initial = saved(tmp_path / "initial", {"a": one, "b": one, "c": np.ones(3)})
    tied = states.load(saved(tmp_path / "tied", {"a": one, "b": one, "c": np.ones(3)}, initial), initial)
    assert tied["a"] is tied["b"] and tied["c"] is not tied["a"]
    apart = states.load(saved(tmp_path / "apart", {"a": one, "b": np.ones(3), "c": one}, initial), initial)
    assert apart["a"] is apart["c"] and apart["b"] is not apart["a"]


def test_a_reference_to_nothing_is_a_corrupt_record(tmp_path):
    initial = saved(tmp_path / "initial", {"w": np.ones(2)})
    stage = saved(tmp_path / "stage", {"w": np.ones(2)}, initial)
    text = json.loads((stage / "tree.json").read_bytes())
    text["tree"][1][0][1][5] = "initial/000007"
    (stage / "tree.json").write_text(json.dumps(text, sort_keys=True, separators=(",", ":")))
    with pytest.raises(CorruptRecordError, match="000007"):
        states.load(stage, initial)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_initial_state_is_named(tmp_path, damage):
    initial = saved(tmp_path / "initial", {"w": np.ones(2)})
    stage = saved(tmp_path / "stage", {"w": np.ones(2)}, initial)
    file = initial / "state.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptRecordError, match=r"initial/state\.safetensors"):
        states.load(stage, initial)
