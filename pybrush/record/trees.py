"""Typed trees: nested values and tensors as tree.json and flat bytes, and back.

Plain JSON turns integer keys into strings, and an optimizer then loses its momentum without a word;
pickle runs code. Here every value carries its type, and a type that is not listed is refused with its
place. A tree may hold, by exact type: None, bool, int, float, str, bytes, list, tuple, dict,
OrderedDict, Counter, NumPy arrays and scalars, Enum members, and what a registered Codec knows.
Guide: docs/record_format.md, "State trees".
"""

from __future__ import annotations

import json
import re
import reprlib
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import ModuleType, NoneType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pybrush.errors import CorruptRecordError, UnsupportedError

FORMAT = 1
TREE_FILE = "tree.json"
TENSOR_FILE = "state.safetensors"

Flat = NDArray[np.uint8]
"""The elements of one tensor as bytes, in C order, shape (bytes,)."""

Arrays = dict[str, Flat]
"""The tensors of a state by storage name: "000000", "000001", ..."""

REMEDY = "Put the folder back from a copy; a stage's folder may be removed, and is built again."


@dataclass(frozen=True, eq=False)
class TensorParts:
    """One tensor, taken apart by its codec.

    Attributes:
        dtype: the codec's name of the element type.
        shape: lengths of the axes; () for a single element.
        data: a copy of the elements in C order.
        order: what `memory_order` gives. Kept because a product of matrices gives other bits where
            memory is laid out another way.
        storage_key: equal for two tensors of one tree exactly where they are the same memory under
            the same type: device, start, shape, strides. None is never tied, as for empty tensors,
            which may all start at zero.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Flat
    order: tuple[int, ...] | None = None
    storage_key: Hashable = None


class Codec(Protocol):
    """What an adapter registers so that states may hold its framework's values."""

    name: str
    """Stands in tree.json, so it never changes."""

    def is_tensor(self, value: Any) -> bool:
        """Say whether `flatten` is the way to store a value."""

    def flatten(self, value: Any) -> TensorParts:
        """Take a tensor apart; raise UnsupportedError for one that has no plain bytes."""

    def restore(self, dtype: str, shape: tuple[int, ...], order: tuple[int, ...] | None, data: Flat) -> Any:
        """Return a new tensor, not a view of `data`; raise ValueError where the four do not fit."""

    def describe(self, value: Any) -> tuple[str, str] | None:
        """Return (kind, text) of a small value that is no tensor, or None for a stranger."""

    def build(self, kind: str, text: str) -> Any:
        """Return what `describe` described; raise ValueError for what it never writes."""


def register_codec(codec: Codec) -> None:
    """Make a framework's values known; its adapter calls this when it is imported."""
    _codecs[codec.name] = codec


def memory_order(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...] | None:
    """Return the axes from the outermost to the innermost in memory, or None for C order."""
    if 0 in shape:
        return None
    # The stride of an axis of one element means nothing.
    long = [axis for axis, length in enumerate(shape) if length > 1]
    placed = sorted(long, key=lambda axis: -abs(strides[axis]))
    return None if placed == long else (*(axis for axis, length in enumerate(shape) if length == 1), *placed)


def pack(tree: Any) -> tuple[bytes, Arrays]:
    """Return the bytes of tree.json and the tensors that it names; nothing is shared with the tree.

    Equal trees with equal ties give equal bytes. Tensors that are the same memory share one name; views
    that merely overlap are stored apart, and a list or dict that occurs twice is written twice.

    Raises:
        UnsupportedError: for a value of any other type, naming its place and its type.

    Example:
        >>> pack({0: (0.5, None)})[0]
        b'{"format":1,"tree":["dict",[[["int","0"],["tuple",[["float","0x1.0000000000000p-1"],null]]]]]}'
    """
    writer = _Writer()
    try:
        return dump_tree(writer.node(tree, ())), writer.arrays
    except RecursionError as error:
        raise UnsupportedError("a state must not contain itself or be nested this deeply.") from error


def unpack(tree_json: bytes, arrays: Mapping[str, Flat], source: str = TREE_FILE) -> Any:
    """Return the tree that was packed, in new tensors; tied ones are one object again.

    Args:
        tree_json: the bytes of tree.json.
        arrays: its tensors by storage name.
        source: the name of the first argument in errors.

    Raises:
        CorruptRecordError: where the two are not what `pack` writes.
        UnsupportedError: where they need another version, or a codec or Enum class not yet imported.
    """
    try:
        reader = _Reader(arrays)
        tree = reader.value(_nodes(tree_json))
        reader.check_all_read()
    except _UnknownError as error:
        raise UnsupportedError(f"{source} {error}.") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = f"is damaged or belongs to another {TENSOR_FILE}: {error!r}"
        raise CorruptRecordError(f"{source} {reason}. {REMEDY}") from error
    return tree


def dump_tree(nodes: Any) -> bytes:
    """Return the bytes of tree.json for a tree of nodes, in its one spelling."""
    document = {"format": FORMAT, "tree": nodes}
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse_tree(tree_json: bytes) -> Any:
    """Return the nodes of a tree.json.

    Raises:
        CorruptRecordError: for another spelling.
        UnsupportedError: for another format.
    """
    try:
        return _nodes(tree_json)
    except _UnknownError as error:
        raise UnsupportedError(f"{TREE_FILE} {error}.") from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise CorruptRecordError(f"{TREE_FILE} is damaged: {error!r}. {REMEDY}") from error


def _nodes(tree_json: bytes) -> Any:
    document = json.loads(tree_json)
    if document["format"] != FORMAT:
        raise _UnknownError(f"is of format {document['format']!r}, and this version reads {FORMAT}")
    if dump_tree(document["tree"]) != tree_json:
        raise ValueError("not written as states are: sorted keys, no spaces, ASCII")
    return document["tree"]


class _UnknownError(Exception):
    """A sound file needs what this process does not have."""


_ATOMS: dict[type, Callable[[Any], Any]] = {
    NoneType: lambda value: value,
    bool: lambda value: value,
    int: lambda value: ["int", str(value)],
    float: lambda value: ["float", value.hex()],
    bytes: lambda value: ["bytes", value.hex()],
}

_SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple"}

_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "ordered", Counter: "counter"}


class _Writer:
    """Turns values into nodes and collects their tensors on the way."""

    def __init__(self) -> None:
        self.arrays: Arrays = {}
        self._names: dict[Hashable, str] = {}

    def node(self, value: Any, path: tuple[Any, ...]) -> Any:
        kind = type(value)
        if kind in _ATOMS:
            return _ATOMS[kind](value)
        if kind is str:
            return _check_text(value, path)
        if kind in _SEQUENCES:
            return [_SEQUENCES[kind], [self.node(item, (*path, index)) for index, item in enumerate(value)]]
        if kind in _MAPPINGS:
            return [_MAPPINGS[kind], [self._pair(key, item, (*path, key)) for key, item in value.items()]]
        if isinstance(value, Enum):
            return _enum_node(value, path)
        return self._foreign(value, path)

    def _pair(self, key: Any, item: Any, path: tuple[Any, ...]) -> list[Any]:
        return [self.node(key, path), self.node(item, path)]

    def _foreign(self, value: Any, path: tuple[Any, ...]) -> list[Any]:
        for codec in _codecs.values():
            if codec.is_tensor(value):
                return ["tensor", codec.name, *self._tensor(codec, value, path)]
            described = codec.describe(value)
            if described is not None:
                return ["value", codec.name, *described]
        raise _refusal(f"a value of type {type(value).__module__}.{type(value).__qualname__}", path)

    def _tensor(self, codec: Codec, value: Any, path: tuple[Any, ...]) -> list[Any]:
        try:
            parts = codec.flatten(value)
        except UnsupportedError as error:
            raise _refusal(str(error), path) from error
        name = f"{len(self.arrays):06d}"
        if parts.storage_key is not None:
            name = self._names.setdefault((codec.name, parts.dtype, parts.storage_key), name)
        self.arrays.setdefault(name, parts.data)
        return [parts.dtype, list(parts.shape), None if parts.order is None else list(parts.order), name]


def _check_text(value: str, path: tuple[Any, ...]) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON would join two lone surrogates into one character.
        raise _refusal("a str that is not valid Unicode", path) from error
    return value


def _enum_node(value: Enum, path: tuple[Any, ...]) -> list[Any]:
    kind = type(value)
    found = _enum_class(kind.__module__, kind.__qualname__)
    if found is not kind or found.__members__.get(value.name) is not value:
        raise _refusal(f"{value!r}, which cannot be found again by its name", path)
    return ["enum", kind.__module__, kind.__qualname__, value.name]


def _enum_class(module: str, qualname: str) -> type[Enum] | None:
    # Only what is already imported, and not getattr: a file must not be able to run code.
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = vars(found).get(name) if isinstance(found, (ModuleType, type)) else None
    return found if isinstance(found, type) and issubclass(found, Enum) else None


def _refusal(what: str, path: tuple[Any, ...]) -> UnsupportedError:
    place = "state" + "".join(f"[{reprlib.repr(step)}]" for step in path)
    return UnsupportedError(
        f"{place}: a state holds plain values, containers of them, arrays and tensors; got {what}. "
        "Turn it into one of these where the state is read."
    )


class _Reader:
    """Builds values from nodes; whatever does not fit raises one of the errors that `unpack` catches."""

    def __init__(self, arrays: Mapping[str, Flat]) -> None:
        self._arrays = arrays
        self._made: dict[str, tuple[Any, Any]] = {}

    def value(self, node: Any) -> Any:
        if node is None or isinstance(node, bool):
            return node
        if isinstance(node, str):
            return node.encode("utf-8").decode("utf-8")
        tag, *rest = _list(node)
        return _BUILDERS[tag](self, *rest)

    def sequence(self, items: list[Any]) -> list[Any]:
        return [self.value(item) for item in _list(items)]

    def mapping(self, pairs: list[Any]) -> dict[Any, Any]:
        made = dict(map(self.sequence, _list(pairs)))
        if len(made) != len(pairs):
            raise ValueError("a mapping has a key twice")
        return made

    def tensor(self, codec: str, dtype: str, shape: list[int], order: list[int] | None, name: str) -> Any:
        description = (codec, dtype, shape, order)
        if name not in self._made:
            axes = None if order is None else _numbers(order)
            data = self._arrays[name]
            if data.dtype != np.uint8 or data.ndim != 1:
                raise ValueError(f"tensor {name} is not flat bytes")
            self._made[name] = description, _codec(codec).restore(dtype, _numbers(shape), axes, data)
        known, value = self._made[name]
        if known != description:
            raise ValueError(f"tensor {name} is described in two ways")
        return value

    def small(self, codec: str, kind: str, text: str) -> Any:
        return _codec(codec).build(kind, text)

    def member(self, module: str, qualname: str, name: str) -> Enum:
        kind = _enum_class(module, qualname)
        if kind is None:
            raise _UnknownError(f"holds a member of {module}.{qualname}: import that Enum first")
        return kind[name]

    def check_all_read(self) -> None:
        if list(self._made) != [f"{number:06d}" for number in range(len(self._arrays))]:
            raise ValueError("the names of the tensors do not count up from 000000 in the order of the tree")


def _exactly(text: str, value: Any, canonical: str) -> Any:
    if text != canonical:
        raise ValueError(f"{text!r} should read {canonical!r}")
    return value


_BUILDERS: dict[str, Callable[..., Any]] = {
    "int": lambda _, text: _exactly(text, int(text), str(int(text))),
    "float": lambda _, text: _exactly(text, float.fromhex(text), float.fromhex(text).hex()),
    "bytes": lambda _, text: _exactly(text, bytes.fromhex(text), bytes.fromhex(text).hex()),
    "list": _Reader.sequence,
    "tuple": lambda reader, items: tuple(reader.sequence(items)),
    "dict": _Reader.mapping,
    "ordered": lambda reader, pairs: OrderedDict(reader.mapping(pairs)),
    "counter": lambda reader, pairs: Counter(reader.mapping(pairs)),
    "enum": _Reader.member,
    "tensor": _Reader.tensor,
    "value": _Reader.small,
}


def _codec(name: str) -> Codec:
    if name not in _codecs:
        raise _UnknownError(f"holds values of {name!r}: import PyBrush's adapter of that framework first")
    return _codecs[name]


def _list(node: Any) -> list[Any]:
    if not isinstance(node, list):
        raise ValueError(f"{reprlib.repr(node)} should be a list")
    return node


def _numbers(node: Any) -> tuple[int, ...]:
    if any(type(number) is not int or number < 0 for number in _list(node)):
        raise ValueError(f"{reprlib.repr(node)} should be whole numbers")
    return tuple(node)


class _NumPyCodec:
    """NumPy arrays and scalars; byte order is part of the element type's name."""

    name = "numpy"
    # Long doubles have undefined padding, objects no bytes, and names of records lack their fields.
    _dtypes = re.compile(r"[|<>](b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d*|[mM]8(\[\w+\])?)")

    def is_tensor(self, value: Any) -> bool:
        return type(value) is np.ndarray

    def flatten(self, value: Any) -> TensorParts:
        if not self._dtypes.fullmatch(value.dtype.str):
            raise UnsupportedError(f"an array of element type {value.dtype}")
        start = value.__array_interface__["data"][0]
        return TensorParts(
            dtype=value.dtype.str,
            shape=value.shape,
            data=np.frombuffer(value.tobytes(order="C"), dtype=np.uint8),
            order=memory_order(value.shape, value.strides),
            storage_key=(start, value.shape, value.strides) if value.size else None,
        )

    def restore(self, dtype: str, shape: tuple[int, ...], order: tuple[int, ...] | None, data: Flat) -> Any:
        if not self._dtypes.fullmatch(dtype) or np.dtype(dtype).str != dtype:
            raise ValueError(f"{dtype!r} is no element type")
        # reshape refuses a number of bytes that does not fit, transpose what is no permutation.
        array = np.frombuffer(data.tobytes(), dtype=np.dtype(dtype)).reshape(shape)
        axes = tuple(range(len(shape))) if order is None else order
        return array.transpose(axes).copy(order="C").transpose(np.argsort(axes))

    def describe(self, value: Any) -> tuple[str, str] | None:
        if not isinstance(value, np.generic) or not self._dtypes.fullmatch(value.dtype.str):
            return None
        return "scalar", f"{value.dtype.str} {value.tobytes().hex()}"

    def build(self, kind: str, text: str) -> Any:
        dtype, data = text.split(" ")
        if kind != "scalar" or bytes.fromhex(data).hex() != data:
            raise ValueError(f"a NumPy {kind} cannot be {text!r}")
        return self.restore(dtype, (), None, np.frombuffer(bytes.fromhex(data), dtype=np.uint8))[()]


_codecs: dict[str, Codec] = {"numpy": _NumPyCodec()}
