"""Typed states: what comes back is what went in, ties included, and a damaged file says so."""

import enum
import hashlib
import json
import os
import struct
import subprocess
import sys
import types
from collections import Counter, OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pybrush.errors import CorruptRecordError, PyBrushError, UnsupportedError
from pybrush.record import states
from pybrush.record import trees as typed


class Phase(enum.Enum):
    WARM = 1
    TRAIN = 2
    FIT = TRAIN


class Color(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


def same(left, right):
    """Compare exactly: types, bits and order, which == does not."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (np.ndarray, np.generic)):
        return (left.dtype.str, left.shape, left.tobytes()) == (right.dtype.str, right.shape, right.tobytes())
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return left.hex() == right.hex()
    return left == right


def canonical(document):
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


TREES = {
    "plain": [None, True, False, 0, -(2**70), "é\x00\U0001f600", b"", b"\x00\xff"],
    "floats": [0.1, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), -float("inf"), float("nan")],
    "containers": {"a": [], "b": (), "c": {}, "d": ((1, [2]),)},
    "keys of every type": {0: "int", "0": "str", b"0": "bytes", (0, None): "tuple", 0.5: "float", None: 1},
    "boolean key": {True: 1},
    "ordered": OrderedDict([("z", 1), ("a", 2)]),
    "counter": Counter({30: 1, 10: 2}),
    "enums": [Phase.WARM, Phase.FIT, Color.RED, Level.LOW, Access.READ, {Phase.WARM: 1}],
    "scalars": [
        np.float32(0.1),
        np.int64(-1),
        np.bool_(True),
        np.complex64(1 - 2j),
        np.str_("é"),
        np.bytes_(b"x"),
    ],
    "dates": [np.datetime64("2020-01-01", "D"), np.timedelta64(3, "25s"), np.array(["NaT"], "M8[ns]")],
    "types": [np.arange(3).astype(kind) for kind in ("?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16")],
    "big-endian": np.array([[1, 2], [3, 4]], ">f8"),
    "text": np.array([["a", "bcé"]]),
    "0-d": np.array(3.0),
    "empty": [np.zeros(0), np.zeros((3, 0, 2), "i4")],
    "strided": np.arange(12.0)[::-3],
    "broadcast": np.broadcast_to(np.arange(3.0), (2, 3)),
    "transposed": np.arange(24, dtype=">i4").reshape(2, 3, 4).transpose(2, 0, 1),
    "nan bits": np.array([0x7FC00001, 0xFFC00000], "u4").view("f4"),
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_a_tree_comes_back_from_disk_with_types_bits_and_order(tree, tmp_path):
    digest = states.save(tmp_path, tree)
    loaded = states.load(tmp_path)
    assert same(loaded, tree)
    assert typed.pack(loaded)[0] == typed.pack(tree)[0]
    assert states.state_sha256(tmp_path) == digest


some_arrays = arrays.arrays(
    dtype=arrays.scalar_dtypes().filter(lambda dtype: dtype.itemsize > 0),
    shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
keys = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.tuples(st.integers()))
trees = st.recursive(
    keys | st.floats() | st.binary(max_size=4) | some_arrays | some_arrays.map(lambda array: array.T),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=6,
)


@settings(max_examples=250, deadline=None)
@given(trees)
def test_unpacking_undoes_packing_for_every_tree(tree):
    tree_json, tensors = typed.pack(tree)
    assert same(typed.unpack(tree_json, tensors), tree)
    assert tree_json == canonical(json.loads(tree_json))


def test_the_documented_state_is_written_byte_for_byte(tmp_path):
    weight = np.array([[1.5, -2.0]], "<f4")
    states.save(tmp_path, {"weight": weight, "tied": weight, 0: ("adam", 0.5, None)})
    tree = (
        b'{"format":1,"tree":["dict",['
        b'["weight",["tensor","numpy","<f4",[1,2],null,"000000"]],'
        b'["tied",["tensor","numpy","<f4",[1,2],null,"000000"]],'
        b'[["int","0"],["tuple",["adam",["float","0x1.0000000000000p-1"],null]]]]]}'
    )
    assert (tmp_path / "tree.json").read_bytes() == tree
    tensors = (tmp_path / "state.safetensors").read_bytes()
    assert tensors.endswith(bytes.fromhex("0000c03f000000c0"))
    assert states.state_sha256(tmp_path) == hashlib.sha256(tree + tensors).hexdigest()
    parts = struct.pack("<Q", len(tree)) + tree + struct.pack("<Q", 8) + bytes.fromhex("0000c03f000000c0")
    digest = "d7938947cd72515a80da442add5987d9416a12de07f3e78f84e7d683631d2208"
    assert states.digest_of(*states.read(tmp_path)) == hashlib.sha256(parts).hexdigest() == digest


def test_the_memory_order_of_an_array_survives():
    matrix = np.arange(24.0).reshape(2, 3, 4)
    for axes in [(0, 1, 2), (1, 2, 0), (2, 1, 0), (0, 2, 1)]:
        view = matrix.transpose(axes)
        assert typed.unpack(*typed.pack(view)).strides == view.strides


def test_an_axis_of_one_element_says_nothing_about_memory_order():
    assert typed.memory_order((4, 1, 2), (16, 999, 8)) is None
    assert typed.memory_order((2, 1, 4), (8, 1, 16)) == (1, 2, 0)


def test_a_reversed_axis_keeps_its_place_and_an_empty_array_has_none():
    assert typed.memory_order((2, 3), (-24, 8)) is None
    assert typed.memory_order((2, 3, 0), (8, 16, 48)) is None


# Ties


def test_tied_arrays_share_one_storage_and_come_back_as_one_object(tmp_path):
    weight = np.ones((2, 3))
    states.save(tmp_path, {"head": weight, "embedding": [weight[:]], "turned": weight.T, "again": weight.T})
    assert list(states.read(tmp_path)[1]) == ["000000", "000001"]
    loaded = states.load(tmp_path)
    assert loaded["head"] is loaded["embedding"][0]
    assert loaded["turned"] is loaded["again"]


def test_views_that_merely_overlap_are_stored_apart():
    base = np.arange(6.0)
    views = [base, base[:3], base[1:4], base[::2], base.reshape(2, 3), base.view("i8"), base.copy()]
    loaded = typed.unpack(*typed.pack(views))
    assert same(loaded, views)
    assert len({id(view) for view in loaded}) == len(views)


def test_empty_arrays_are_never_tied():
    base = np.zeros((0, 3))
    loaded = typed.unpack(*typed.pack([base, base[:]]))
    assert loaded[0] is not loaded[1]


def test_a_loaded_tree_shares_no_memory_with_what_was_packed():
    weight = np.zeros(3)
    tree_json, tensors = typed.pack([weight])
    weight += 1
    loaded = typed.unpack(tree_json, tensors)[0]
    loaded += 5
    assert typed.unpack(tree_json, tensors)[0].tolist() == [0, 0, 0]


class Grid:
    """A stranger's tensor over an array's memory."""

    def __init__(self, array):
        self.array = array


class GridCodec:
    """What an adapter registers, over NumPy's own codec; one small value, an Ellipsis."""

    name = "grid"
    numpy = typed._codecs["numpy"]

    def is_tensor(self, value):
        return isinstance(value, Grid)

    def flatten(self, value):
        return self.numpy.flatten(value.array)

    def restore(self, dtype, shape, order, data):
        return Grid(self.numpy.restore(dtype, shape, order, data))

    def describe(self, value):
        return ("dots", "3") if value is ... else None

    def build(self, kind, text):
        if (kind, text) != ("dots", "3"):
            raise ValueError(text)
        return ...


@pytest.fixture
def grid(monkeypatch):
    monkeypatch.setattr(typed, "_codecs", dict(typed._codecs))
    typed.register_codec(GridCodec())


@pytest.mark.usefixtures("grid")
def test_values_of_a_registered_codec_are_stored_and_not_tied_to_others():
    array = np.arange(3.0)
    tree = [array, Grid(array), Grid(array), ...]
    loaded = typed.unpack(*typed.pack(tree))
    assert same(loaded[0], array) and same(loaded[1].array, array)
    assert loaded[1] is loaded[2] and loaded[3] is ...
    assert loaded[1].array is not loaded[0]


@pytest.mark.usefixtures("grid")
@pytest.mark.parametrize("length", ["1", 1.0, True, None])
def test_a_codec_is_never_given_a_length_that_is_no_whole_number(length, monkeypatch):
    monkeypatch.setattr(GridCodec, "restore", lambda *_: pytest.fail("the codec was asked"))
    tree_json = canonical({"format": 1, "tree": ["tensor", "grid", "<f8", [length], None, "000000"]})
    with pytest.raises(CorruptRecordError, match="whole numbers"):
        typed.unpack(tree_json, {"000000": np.zeros(8, np.uint8)})


# Digests


def test_equal_trees_have_one_digest_and_any_difference_another():
    trees = [
        {"w": np.ones(2)},
        {"w": np.ones(2, "f4")},
        {"w": np.ones((2, 1))},
        {"w": np.array([1, 1 + 1e-15])},
        {"v": np.ones(2)},
        OrderedDict(w=np.ones(2)),
        {"w": [1.0, 1.0]},
        {},
    ]
    assert states.init_digest({"w": np.ones(2)}) == states.init_digest(trees[0])
    assert len({states.init_digest(tree) for tree in trees}) == len(trees)


def test_the_digest_of_the_first_state_is_the_same_in_a_fresh_process():
    code = (
        "import numpy as np; from pybrush.record import states;"
        "print(states.init_digest({'w': np.arange(4.0), 3: {'x': (1, 2.5)}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == states.init_digest({"w": np.arange(4.0), 3: {"x": (1, 2.5)}})


@pytest.mark.parametrize("other", [{"w": np.array([1.0, 3.0])}, {"v": np.array([1.0, 2.0])}, {"w": 1.0}])
def test_same_bits_sees_values_and_structure(tmp_path, other):
    for name, tree in (("a", {"w": np.array([1.0, 2.0])}), ("b", {"w": np.array([1.0, 2.0])}), ("c", other)):
        (tmp_path / name).mkdir()
        states.save(tmp_path / name, tree)
    assert states.same_bits(tmp_path / "a", tmp_path / "b")
    assert not states.same_bits(tmp_path / "a", tmp_path / "c")


def test_a_digest_takes_tensors_by_name_and_not_as_they_come():
    tree_json, tensors = typed.pack([np.ones(2), np.zeros(3)])
    backward = dict(reversed(tensors.items()))
    assert states.digest_of(tree_json, backward) == states.digest_of(tree_json, tensors)


# Files


def test_both_files_are_on_the_disk_before_save_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    states.save(tmp_path, [np.ones(2)])
    assert synced == [(tmp_path / name).stat().st_size for name in ("tree.json", "state.safetensors")]


def test_files_are_private_and_an_existing_one_is_not_overwritten(tmp_path):
    states.save(tmp_path, [np.ones(2)])
    assert {path.name for path in tmp_path.iterdir()} == {"tree.json", "state.safetensors"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    with pytest.raises(FileExistsError):
        states.save(tmp_path, [])
    assert same(states.load(tmp_path), [np.ones(2)])


def test_every_byte_goes_through_the_writer_that_was_passed(tmp_path):
    written = {}
    digest = states.save(tmp_path, [np.ones(2)], lambda path, data: written.update({path.name: data}))
    assert not list(tmp_path.iterdir())
    assert digest == hashlib.sha256(written["tree.json"] + written["state.safetensors"]).hexdigest()


# Refusals


def local_enum():
    return enum.Enum("Local", "ONE").ONE


def endless():
    tree = []
    tree.append(tree)
    return tree


REFUSED = {
    "a set": ({1}, "type builtins.set"),
    "a default dict": (defaultdict(int), r"collections\.defaultdict"),
    "a namedtuple": (namedtuple("Pair", "x")(1), "Pair"),
    "a complex number": (1j, "complex"),
    "an object array": (np.array([None]), "element type object"),
    "a record array": (np.zeros(1, "i4,f4"), "element type"),
    "a long double": (np.zeros(1, np.longdouble), "element type"),
    "a long double scalar": (np.longdouble(1), "numpy.longdouble"),
    "an array subclass": (np.ma.masked_array([1]), "MaskedArray"),
    "a function": (len, "builtin_function"),
    "a lone surrogate": ("\ud83d\ude00", "Unicode"),
    "an enum that has no address": (local_enum(), "ONE"),
    "a union of flags": (Access.READ | Access.WRITE, "READ"),
    "the flag of nothing": (Access(0), "Access"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_any_other_type_is_refused_with_its_place_and_type(value, message):
    with pytest.raises(UnsupportedError, match=r"^state\['a'\]\[1\]") as caught:
        typed.pack({"a": [0, value]})
    assert caught.match(message)


def test_a_key_of_another_type_is_refused_too():
    with pytest.raises(UnsupportedError, match="frozenset"):
        typed.pack({frozenset(): 1})


def test_a_tree_that_contains_itself_is_refused():
    with pytest.raises(UnsupportedError, match="contain itself"):
        typed.pack(endless())


# Damage


@pytest.fixture
def folder(tmp_path):
    states.save(tmp_path, {"w": np.arange(3.0), 1: (2, 0.5, b"x", Phase.WARM), "o": OrderedDict(a=True)})
    return tmp_path


@pytest.mark.parametrize("name", ["tree.json", "state.safetensors"])
def test_a_truncated_longer_or_missing_file_is_named(folder, name):
    whole = (folder / name).read_bytes()
    for damaged in [whole[:keep] for keep in range(0, len(whole), 7)] + [whole[:-1], whole + b"\n"]:
        (folder / name).write_bytes(damaged)
        with pytest.raises(CorruptRecordError, match=name):
            states.load(folder)
    (folder / name).unlink()
    for call in (states.load, states.read, states.state_sha256):
        with pytest.raises(CorruptRecordError, match=f"{name} is missing"):
            call(folder)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_single_changed_byte_of_the_tree_raises_anything_but_our_errors(data):
    tree = {"w": np.arange(3.0).reshape(3, 1), 1: (2, 0.5, b"x", Phase.WARM, np.int8(3))}
    tree_json, tensors = typed.pack(tree)
    place = data.draw(st.integers(0, len(tree_json) - 1))
    damaged = bytearray(tree_json)
    damaged[place] = data.draw(st.sampled_from(b'0123456789abcxepi{}[]",:.-<|\\ \xff'))
    try:
        loaded = typed.unpack(bytes(damaged), tensors)
    except PyBrushError:
        return
    # What can be read was written in the one form in which such a tree is written.
    assert typed.pack(loaded)[0] == bytes(damaged)


DAMAGED = {
    "unknown tag": ["complex", "1"],
    "no list": {"list": []},
    "mapping for a node": {"bytes": None, "ff": None},
    "bare number": 5,
    "bare float": 0.5,
    "empty node": [],
    "tag of another type": [["list"], []],
    "missing part": ["int"],
    "one part too many": ["int", "1", "2"],
    "number for text": ["int", 1],
    "int not in lowest form": ["int", "+01"],
    "float not in lowest form": ["float", "0.5"],
    "float out of range": ["float", "0x1p99999"],
    "bytes not in lowest form": ["bytes", "AB"],
    "text for a list": ["list", "ab"],
    "mapping for a list": ["tuple", {}],
    "pair of three": ["dict", [["a", "b", "c"]]],
    "unhashable key": ["dict", [[["list", []], None]]],
    "repeated key": ["dict", [["a", None], ["a", None]]],
    "lone surrogate": "\ud800",
    "scalar of the wrong length": ["value", "numpy", "scalar", "<f4 00"],
    "scalar of two elements": ["value", "numpy", "scalar", "<f4 0000000000000000"],
    "scalar in capitals": ["value", "numpy", "scalar", "<f4 0000003F"],
    "scalar that is no text": ["value", "numpy", "scalar", 5],
    "unknown value": ["value", "numpy", "pickle", "<f4 00000000"],
    "unknown member": ["enum", __name__, "Phase", "COLD"],
}


@pytest.mark.parametrize("node", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_tree_that_is_not_written_so_is_refused(node):
    with pytest.raises(CorruptRecordError, match=r"tree\.json"):
        typed.unpack(canonical({"format": 1, "tree": node}), {})


EIGHT = np.zeros(8, np.uint8)

WRONG_TENSORS = {
    "object type": (["|O", [1], None, "000000"], {"000000": EIGHT}),
    "raw type": (["|V8", [1], None, "000000"], {"000000": EIGHT}),
    "record type": (["i4,f4", [1], None, "000000"], {"000000": EIGHT}),
    "other spelling of a type": (["float64", [1], None, "000000"], {"000000": EIGHT}),
    "byte order of a byte": (["<i1", [8], None, "000000"], {"000000": EIGHT}),
    "shape too large": (["<f8", [2], None, "000000"], {"000000": EIGHT}),
    "negative length": (["<f8", [-1], None, "000000"], {"000000": EIGHT}),
    "boolean length": (["<f8", [True], None, "000000"], {"000000": EIGHT}),
    "shape beyond all memory": (["<f8", [0, 2**70], None, "000000"], {"000000": EIGHT[:0]}),
    "order of other axes": (["<f4", [2, 1], [0, 2], "000000"], {"000000": EIGHT}),
    "order with an axis twice": (["<f4", [2, 1], [0, 0], "000000"], {"000000": EIGHT}),
    "no such tensor": (["<f8", [1], None, "000001"], {"000000": EIGHT}),
    "tensor that no node names": (["<f8", [1], None, "000000"], {"000000": EIGHT, "000001": EIGHT}),
    "name out of order": (["<f8", [1], None, "000001"], {"000001": EIGHT}),
    "tensor that is not bytes": (["<f8", [1], None, "000000"], {"000000": np.zeros(8, np.int8)}),
    "tensor that is not flat": (["<f8", [1], None, "000000"], {"000000": np.zeros((8, 1), np.uint8)}),
}


@pytest.mark.parametrize(("parts", "tensors"), WRONG_TENSORS.values(), ids=WRONG_TENSORS.keys())
def test_a_tensor_that_does_not_fit_its_description_is_refused(parts, tensors):
    tree_json = canonical({"format": 1, "tree": ["tensor", "numpy", *parts]})
    with pytest.raises(CorruptRecordError):
        typed.unpack(tree_json, tensors)


def test_one_storage_cannot_be_two_tensors():
    nodes = [["tensor", "numpy", kind, [1], None, "000000"] for kind in ("<f8", "<i8")]
    with pytest.raises(CorruptRecordError, match="two ways"):
        typed.unpack(canonical({"format": 1, "tree": ["list", nodes]}), {"000000": EIGHT})


@pytest.mark.parametrize(
    "text",
    [
        b'{"format":1}',
        b'{"format":1,"tree":null,"more":1}',
        b'{"tree":null}',
        b'{"format": 1,"tree":null}',
        b'{"tree":null,"format":1}',
        b'{"format":1,"format":1,"tree":null}',
        b'{"format":true,"tree":null}',
        b'{"format":1,"tree":"\xc3\xa9"}',
        b"null",
        b"[1]",
        '{"format":1,"tree":null}'.encode("utf-16"),
        b'{"format":1,"tree":' + b'["list",[' * 3000 + b"]]" * 3000 + b"}",
    ],
)
def test_a_tree_file_has_exactly_one_spelling(text):
    with pytest.raises(CorruptRecordError):
        typed.unpack(text, {})


def test_another_format_is_not_called_damaged():
    with pytest.raises(UnsupportedError, match="format 2"):
        typed.unpack(b'{"format":2,"tree":null,"new":0}', {})


def test_tensors_are_read_in_the_order_of_their_names(tmp_path):
    states.save(tmp_path, [np.full(2, number) for number in range(30)])
    assert list(states.read(tmp_path)[1]) == [f"{number:06d}" for number in range(30)]


def test_an_exchanged_tensor_file_is_refused(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    states.save(other, [np.zeros(5)])
    (other / "state.safetensors").replace(folder / "state.safetensors")
    with pytest.raises(CorruptRecordError, match=r"another state\.safetensors"):
        states.load(folder)


# What a file may not do


def test_loading_imports_no_module_that_a_file_names(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnsupportedError, match="trap"):
        typed.unpack(canonical({"format": 1, "tree": ["enum", "trap", "Phase", "WARM"]}), {})


@pytest.mark.parametrize(
    "address", [("os", "environ", "HOME"), ("os", "path", "join"), (__name__, "same", "x"), ("", "", "")]
)
def test_only_classes_of_enum_are_found_by_name(address):
    with pytest.raises(UnsupportedError, match="Enum"):
        typed.unpack(canonical({"format": 1, "tree": ["enum", *address]}), {})


def test_a_lazy_module_is_not_woken_by_a_name_in_a_file(monkeypatch):
    lazy = types.ModuleType("lazy")
    lazy.__getattr__ = lambda name: pytest.fail("the module was asked to run code")
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    with pytest.raises(UnsupportedError, match="lazy"):
        typed.unpack(canonical({"format": 1, "tree": ["enum", "lazy", "Phase", "WARM"]}), {})


@pytest.mark.parametrize("node", [["tensor", "jax", "f4", [1], None, "000000"], ["value", "jax", "size", "1"]])
def test_a_framework_whose_adapter_is_missing_is_named(node):
    with pytest.raises(UnsupportedError, match="'jax'"):
        typed.unpack(canonical({"format": 1, "tree": node}), {"000000": EIGHT[:4]})
