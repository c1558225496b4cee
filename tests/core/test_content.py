"""The content encoding against literal bytes and against a slow twin written from its document."""

import struct
import subprocess
import sys
from collections import OrderedDict, UserDict, namedtuple
from decimal import Decimal
from enum import IntEnum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pybrush import content
from pybrush.content import ArrayBytes, encode, register_tensor
from pybrush.errors import ContentError
from pybrush.names import Namer

KEY = bytes(range(32))


def palette_image():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    return image


VECTORS = [
    (
        np.array([[1, 2], [3, -0.5]], "float32"),
        "61 4600000000000000"
        "73 0700000000000000 666c6f61743332"
        "74 1400000000000000 69 0100000000000000 32 69 0100000000000000 32"
        "79 1000000000000000 0000803f 00000040 00004040 000000bf",
        "f32d43eeea5bd11b90ecec97915502f5",
    ),
    (
        (np.arange(6, dtype="uint8").reshape(2, 3), 7),
        "74 4d00000000000000"
        "61 3a00000000000000"
        "73 0500000000000000 75696e7438"
        "74 1400000000000000 69 0100000000000000 32 69 0100000000000000 33"
        "79 0600000000000000 000102030405"
        "69 0100000000000000 37",
        "55bcfaa76640a39c532025948237f163",
    ),
    (
        {"text": "é", "label": True, "b": 0.5},
        "6d 4b00000000000000"
        "73 0100000000000000 62 66 0800000000000000 000000000000e03f"
        "73 0400000000000000 74657874 73 0200000000000000 c3a9"
        "73 0500000000000000 6c6162656c 6f 0100000000000000 01",
        "8fd6eb925a65074402bb7dd21e02b69f",
    ),
    (
        [None, -1, b"\x00\xff", np.int64(3), False, ()],
        "6c 6300000000000000"
        "6e 0000000000000000"
        "69 0200000000000000 2d31"
        "79 0200000000000000 00ff"
        "61 2800000000000000 73 0500000000000000 696e743634 74 0000000000000000"
        "79 0800000000000000 0300000000000000"
        "6f 0100000000000000 00"
        "74 0000000000000000",
        "0da947181775507b1d4d462b86d477fb",
    ),
    (
        palette_image(),
        "70 4300000000000000"
        "73 0100000000000000 50"
        "74 1400000000000000 69 0100000000000000 32 69 0100000000000000 31"
        "79 0200000000000000 0001"
        "79 0800000000000000 ff0000ff 0000ffff",
        "88a636ba4b3ec82973ef5f5fd8a538aa",
    ),
]


@pytest.mark.parametrize(("sample", "encoded", "digest"), VECTORS)
def test_the_five_documented_vectors_hold_byte_for_byte(sample, encoded, digest):
    assert encode(sample) == bytes.fromhex(encoded)
    assert Namer(KEY).contents([encode(sample)])[0].tobytes().hex() == digest


# The twin: one element at a time, and nothing of pybrush.

ELEMENTS = {
    "bool": "?",
    **{"int8": "b", "int16": "h", "int32": "i", "int64": "q"},
    **{"uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q"},
    **{"float16": "e", "float32": "f", "float64": "d", "complex64": "f", "complex128": "d"},
}


def item(tag, payload):
    return tag.encode() + struct.pack("<Q", len(payload)) + payload


def twin_of_array(array):
    name = array.dtype.name
    data = b""
    for element in array.flatten(order="C").tolist():
        numbers = (element.real, element.imag) if isinstance(element, complex) else (element,)
        data += b"".join(struct.pack("<" + ELEMENTS[name], number) for number in numbers)
    shape = b"".join(item("i", str(length).encode()) for length in array.shape)
    return item("a", item("s", name.encode()) + item("t", shape) + item("y", data))


def twin(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return twin_of_array(np.array(value))
    if isinstance(value, dict):
        pairs = [(twin(key), twin(entry)) for key, entry in value.items()]
        return item("m", b"".join(key + entry for key, entry in sorted(pairs)))
    if isinstance(value, (list, tuple)):
        return item("l" if isinstance(value, list) else "t", b"".join(twin(entry) for entry in value))
    if value is None:
        return item("n", b"")
    if isinstance(value, bool):
        return item("o", bytes([value]))
    if isinstance(value, int):
        return item("i", str(value).encode())
    if isinstance(value, float):
        return item("f", struct.pack("<d", value))
    return item("s", value.encode()) if isinstance(value, str) else item("y", value)


keys = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4), st.binary(max_size=4))
# NaN payloads do not survive a Python float, through which the twin goes.
some_arrays = arrays.arrays(
    dtype=st.one_of(
        arrays.boolean_dtypes(),
        arrays.integer_dtypes(),
        arrays.unsigned_integer_dtypes(),
        arrays.floating_dtypes(sizes=(16, 32, 64)),
        arrays.complex_number_dtypes(sizes=(64, 128)),
    ),
    shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    elements={"allow_nan": False},
)
samples = st.recursive(
    keys | st.floats() | some_arrays | some_arrays.map(lambda array: array.T),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=250, deadline=None)
@given(samples)
def test_every_sample_is_encoded_as_the_slow_twin_encodes_it(sample):
    assert encode(sample) == twin(sample)


@settings(max_examples=150, deadline=None)
@given(some_arrays)
def test_layout_and_byte_order_of_an_array_are_not_content(array):
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    views = [array.astype(array.dtype.newbyteorder(order)) for order in "<>"]
    views += [np.asfortranarray(array).reshape(array.shape), wide[..., 0]]
    assert {encode(view) for view in views} == {encode(array)}


def test_the_bits_of_a_nan_are_kept_and_signs_of_zero_differ():
    bits = bytes.fromhex("010000000000f87f")
    (odd,) = struct.unpack("<d", bits)
    assert encode(odd) == item("f", bits) != encode(float("nan"))
    assert encode(0.0) != encode(-0.0)


def test_values_that_python_calls_equal_are_different_content():
    scalars = [np.int64(1), np.float64(1), np.float32(1), np.bool_(True)]
    alike = [1, 1.0, True, "1", [1], (1,), np.array([1]), *scalars]
    assert len({encode(value) for value in alike}) == len(alike)


def test_a_numpy_scalar_is_a_zero_dimensional_array():
    assert encode(np.float64(0.5)) == encode(np.array(0.5)) != encode(np.array([0.5]))


def test_the_order_of_a_mapping_is_not_content_whatever_its_keys():
    forward = {"b": 1, 2: "two", None: [3], (1, "x"): 4, b"b": 5}
    backward = dict(reversed(forward.items()))
    assert encode(forward) == encode(backward) == encode(OrderedDict(forward)) == encode(UserDict(forward))


def test_a_namedtuple_is_the_tuple_of_its_items():
    assert encode(namedtuple("Pair", "left right")(1, "a")) == encode((1, "a"))


def test_a_row_of_a_memory_mapped_file_is_an_array(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(6.0).reshape(2, 3))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert type(rows[1]) is np.memmap
    assert encode(rows[1]) == encode(np.array([3.0, 4.0, 5.0]))


def test_an_image_is_its_pixels_whatever_file_they_came_from(tmp_path):
    image = Image.effect_noise((5, 4), 40).convert("RGB")
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    expected = item("s", b"RGB") + item("t", item("i", b"5") + item("i", b"4"))
    expected = item("p", expected + item("y", np.asarray(image).tobytes()) + item("n", b""))
    with Image.open(tmp_path / "a.png") as png, Image.open(tmp_path / "b.bmp") as bmp:
        assert encode(image) == encode(png) == encode(bmp) == expected


class Late(Image.Image):
    """A format that knows mode and size only once it is read, as Pillow's EPS and WMF."""

    def load(self):
        self.__dict__.update(Image.new("RGB", (2, 1)).__dict__)
        return super().load()


def test_an_image_is_read_before_it_is_asked_for_its_mode():
    assert encode(Late()) == encode(Image.new("RGB", (2, 1)))


def test_two_images_that_differ_only_in_their_palette_differ():
    other = palette_image()
    other.putpalette([255, 0, 0, 0, 255, 0])
    assert encode(other) != encode(palette_image())


class Celsius(float):
    """A float that means more than its value."""


class Span(tuple):
    """A tuple that is no namedtuple."""


class Level(IntEnum):
    LOW = 1


REFUSED = {
    "a set": {1, 2},
    "a complex number": 1j,
    "a bytearray": bytearray(b"x"),
    "a float subclass": Celsius(1),
    "an integer enum": Level.LOW,
    "an object": object(),
    "a class": dict,
    "a tuple subclass": Span((1, 2)),
    "an array of objects": np.array([None]),
    "an array of text": np.array(["a"]),
    "a text scalar": np.str_("a"),
    "a date": np.datetime64("2020-01-01"),
    "a record": np.zeros(2, "i4,f4"),
    "a long double": np.longdouble(1),
    "a masked array": np.ma.masked_array([1, 2], mask=[False, True]),
    "a lone surrogate": "\ud800",
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [{"x": value}]], ids=["bare", "nested"])
def test_anything_else_is_refused_and_the_message_names_the_way_out(value, wrap):
    with pytest.raises(ContentError, match="content_of="):
        encode(wrap(value))


def test_the_message_names_the_type_that_came():
    with pytest.raises(ContentError, match=r"got a decimal\.Decimal"):
        encode([Decimal(1)])


def test_a_sample_that_contains_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(ContentError, match="contain itself"):
        encode(endless)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(content, "_tensor_types", {})


class Tensor:
    """A stranger's tensor: bfloat16 1.0 and -2.0."""


class Image16(Tensor):
    """A subclass, as image tensors are."""


def test_a_registered_tensor_equals_the_array_of_its_bytes(registry):
    register_tensor(Tensor, lambda tensor: ArrayBytes("int16", (2, 1), b"\x01\x00\x02\x00"))
    assert encode(Tensor()) == encode(Image16()) == encode(np.array([[1], [2]], "int16"))


def test_the_closest_ancestor_converts(registry):
    register_tensor(Image16, lambda tensor: ArrayBytes("uint8", (1,), b"\x07"))
    register_tensor(Tensor, lambda tensor: ArrayBytes("bfloat16", (2,), bytes.fromhex("803f00c0")))
    assert encode(Image16()) == encode(np.array([7], "uint8"))
    assert encode(Tensor()).endswith(item("y", bytes.fromhex("803f00c0")))


@pytest.mark.parametrize("parts", [("int16", (2,), b"\x01"), ("qint8", (1,), b"\x01"), ("str", (), b"")])
def test_a_converter_cannot_give_what_no_array_could_be(registry, parts):
    register_tensor(Tensor, lambda tensor: ArrayBytes(*parts))
    with pytest.raises(ContentError):
        encode(Tensor())


def test_bfloat16_arrays_of_numpy_are_taken_where_their_type_is_installed():
    extension = pytest.importorskip("ml_dtypes")
    array = np.array([1, -2], extension.bfloat16)
    parts = item("s", b"bfloat16") + item("t", item("i", b"2")) + item("y", bytes.fromhex("803f00c0"))
    assert encode(array) == item("a", parts)


def test_only_an_image_of_pillow_is_an_image():
    class Image:
        """The right name in the wrong module."""

    with pytest.raises(ContentError):
        encode(Image())


def test_encoding_needs_neither_pillow_nor_a_framework():
    code = "import sys, pybrush.content; print(sorted({'PIL', 'torch', 'tensorflow'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
