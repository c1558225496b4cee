"""The canonical bytes of a raw sample: what a sample is, whatever framework holds it.

A record whose samples have no ids names each by the keyed digest of these bytes, and compares contents
with them where ids are given. So they must be the same on every machine, for ever: a NumPy array and a
framework's tensor of equal type, shape and values are one content, 1 and 1.0 and True are three.

Every item is a tag of one byte, the length of its payload as eight little-endian bytes, and the payload:

    n None          (nothing)
    o bool          00 or 01
    i int           decimal ASCII
    f float         IEEE 754 double, little-endian, the bits of a NaN kept
    s str           UTF-8
    y bytes         themselves
    a array         items: s type name, t shape, y elements in C order, little-endian
    l list          its items in order
    t tuple         its items in order
    m mapping       key item, value item, and so on, pairs in ascending byte order
    p PIL image     items: s mode, t (width, height), y Image.tobytes(), palette (y of R G B A, else n)

Guide with test vectors: docs/record_format.md, "Content encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import NoneType
from typing import Any

import numpy as np

from pybrush.errors import ContentError
from pybrush.hashing import u64

# An allow-list by name: kinds alone would let in long doubles, whose padding bytes are not defined.
_ITEM_BYTES = {
    "bool": 1,
    **{f"{kind}{bits}": bits // 8 for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": bits // 8 for bits in (16, 32, 64)},
    "bfloat16": 2,
    "complex64": 8,
    "complex128": 16,
}

_REMEDY = "Pass content_of=, a function of the sample that returns a value of these types."


@dataclass(frozen=True)
class ArrayBytes:
    """An array or tensor as the encoding sees it.

    Attributes:
        dtype: NumPy's name of the element type, or "bfloat16".
        shape: lengths of the axes; () for a single element.
        data: the elements in C order, little-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


_tensor_types: dict[type, Callable[[Any], ArrayBytes]] = {}


def register_tensor(kind: type, convert: Callable[[Any], ArrayBytes]) -> None:
    """Make the tensors of a framework known; its adapter calls this when it is imported.

    Args:
        kind: the tensor class. Subclasses count too, the closest registered ancestor converts them.
        convert: returns the bytes of one tensor; raises ContentError for one that has none.
    """
    _tensor_types[kind] = convert


def encode(sample: Any) -> bytes:
    """Return the canonical bytes of one sample.

    Scalars, lists and arrays are told apart by their exact type: a subclass may hold more than its
    value (a unit, a mask), and that would be lost without a word. Three kinds of subclass are taken
    all the same: namedtuples (as tuples: the names of fields are not content), memory-mapped arrays
    and any Mapping.

    Raises:
        ContentError: for a value that has no encoding, naming its type.

    Example:
        >>> encode(17).hex()
        '6902000000000000003137'
        >>> encode(np.float32(1)) == encode(np.ones((), ">f4")), encode(1) == encode(True)
        (True, False)
    """
    try:
        return _encode(sample)
    except RecursionError as error:
        raise ContentError(
            f"a sample must not contain itself or be nested this deeply; got a {_name(sample)}. {_REMEDY}"
        ) from error


def _encode(value: Any) -> bytes:
    writer = _EXACT.get(type(value))
    return _writer(value)(value) if writer is None else writer(value)


def _item(tag: bytes, payload: bytes) -> bytes:
    return tag + u64(len(payload)) + payload


def _none(_value: None) -> bytes:
    return _item(b"n", b"")


def _bool(value: bool) -> bytes:
    return _item(b"o", b"\x01" if value else b"\x00")


def _int(value: int) -> bytes:
    return _item(b"i", b"%d" % value)


def _float(value: float) -> bytes:
    return _item(b"f", struct.pack("<d", value))


def _str(value: str) -> bytes:
    try:
        return _item(b"s", value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise ContentError(
            f"text in a sample must be valid Unicode; got a str with a lone surrogate. {_REMEDY}"
        ) from error


def _bytes(value: bytes) -> bytes:
    return _item(b"y", value)


def _list(value: list[Any]) -> bytes:
    return _item(b"l", b"".join(map(_encode, value)))


def _tuple(value: Iterable[Any]) -> bytes:
    return _item(b"t", b"".join(map(_encode, value)))


def _mapping(value: Mapping[Any, Any]) -> bytes:
    # Keys of different types do not compare in Python; their encodings do.
    pairs = sorted((_encode(key), _encode(item)) for key, item in value.items())
    return _item(b"m", b"".join(key + item for key, item in pairs))


def _array(value: Any) -> bytes:
    array = np.asarray(value)
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and not np.little_endian):
        array = array.astype(array.dtype.newbyteorder("<"))
    # tobytes and not ascontiguousarray, which turns a 0-d array into one of shape (1,).
    return _parts(ArrayBytes(array.dtype.name, array.shape, array.tobytes(order="C")))


def _parts(array: ArrayBytes) -> bytes:
    if array.dtype not in _ITEM_BYTES:
        raise ContentError(
            "an array in a sample must hold booleans, integers, float16 to float64, bfloat16 or complex "
            f"numbers; got elements of type {array.dtype}. {_REMEDY}"
        )
    expected = prod(array.shape) * _ITEM_BYTES[array.dtype]
    if len(array.data) != expected:
        raise ContentError(
            f"a {array.dtype} array of shape {array.shape} has {expected} bytes; its converter gave "
            f"{len(array.data)}. This is a defect of the converter given to register_tensor."
        )
    return _item(b"a", _str(array.dtype) + _tuple(array.shape) + _bytes(array.data))


def _image(value: Any) -> bytes:
    # Some formats know their mode only once the pixels are read.
    value.load()
    colours = value.getpalette("RGBA") if value.mode in ("P", "PA") else None
    palette = _none(None) if colours is None else _bytes(bytes(colours))
    return _item(b"p", _str(value.mode) + _tuple(value.size) + _bytes(value.tobytes()) + palette)


_EXACT: dict[type, Callable[[Any], bytes]] = {
    NoneType: _none,
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    bytes: _bytes,
    list: _list,
    tuple: _tuple,
    dict: _mapping,
    np.ndarray: _array,
    np.memmap: _array,
}


def _writer(value: Any) -> Callable[[Any], bytes]:
    """Return the writer of a value whose type is not one of the exact ones."""
    kind = type(value)
    if isinstance(value, np.generic):
        return _array
    for ancestor in kind.__mro__:
        if ancestor in _tensor_types:
            convert = _tensor_types[ancestor]
            return lambda tensor: _parts(convert(tensor))
    if _is_pil(kind):
        return _image
    if isinstance(value, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
        return _tuple
    if isinstance(value, Mapping):
        return _mapping
    raise ContentError(
        "a sample must be made of None, bool, int, float, str, bytes, NumPy arrays, tensors, PIL images, "
        f"and lists, tuples and mappings of these; got a {_name(value)}. {_REMEDY} "
        "Tensors are known once PyBrush's adapter of their framework is imported."
    )


def _is_pil(kind: type) -> bool:
    # By name: an image can only come from a process that has imported Pillow, which PyBrush need not.
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in kind.__mro__)


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
