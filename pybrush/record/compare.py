"""How far two states are from each other: equal bits, numbers within a tolerance, or another state.

Works on packed trees (`pybrush.record.trees`), so it knows no framework. Only floating and complex numbers in tensors
may differ within a tolerance; everything else of a state must be equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pybrush.errors import ConfigurationError
from pybrush.record.trees import Arrays, Flat, dump_tree, parse_tree

Outcome = Literal["bit_identical", "within_tolerance", "mismatch"]

Packed = tuple[bytes, Arrays]
"""What `trees.pack` returns."""

_AT_ONCE = 1 << 20
"""Numbers that are compared at a time: as float64 a large tensor would take several times its memory."""

_PLACES = 5
"""Places that are named where parts differ that are no numbers of a tensor."""


@dataclass(frozen=True)
class Tolerance:
    """How far numbers may be apart: for each tensor, absolute + relative times the largest magnitude stored in it.

    The rule is for a whole tensor because single numbers near zero are mostly rounding. Two NaNs are equal, a NaN and a
    number are not.

    Attributes:
        absolute: in the unit of the numbers.
        relative: of the largest magnitude in the tensor.

    Raises:
        ConfigurationError: for negative, infinite or undefined values.
    """

    absolute: float = 1e-6
    relative: float = 1e-4

    def __post_init__(self) -> None:
        for name, value in (("absolute", self.absolute), ("relative", self.relative)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ConfigurationError(f"the {name} tolerance must be a number of at least 0; got {value!r}.")


@dataclass(frozen=True)
class GroupDifference:
    """How far the tensors of one part of a state are apart.

    Attributes:
        name: the part, such as "module.parameters".
        tensors: how many there are.
        differing: how many of them have other bits.
        absolute: largest absolute difference of two numbers; infinite where one is not finite.
        relative: largest absolute difference within a tensor over the largest magnitude stored in it.
    """

    name: str
    tensors: int
    differing: int
    absolute: float
    relative: float


@dataclass(frozen=True)
class StateDifference:
    """How two states differ.

    Attributes:
        outcome: "bit_identical", "within_tolerance" or "mismatch".
        groups: each part that holds tensors.
        places: the first places at which something differs that no tolerance covers.
    """

    outcome: Outcome
    groups: tuple[GroupDifference, ...]
    places: tuple[str, ...]


def compare_states(stored: Packed, found: Packed, tolerance: Tolerance) -> StateDifference:
    """Compare a state with a stored one.

    Args:
        stored: the state that differences are relative to.
        found: the other one.
        tolerance: how far numbers may be apart.
    """
    groups: dict[str, list[_TensorDifference]] = {}
    places: list[str] = []
    for path, node, other in _pairs(parse_tree(stored[0]), parse_tree(found[0]), ()):
        place = ".".join(path) or "the whole state"
        if node != other:
            places.append(place)
        elif _is_tensor(node):
            difference = _tensor_difference(node[2], stored[1][node[5]], found[1][node[5]])
            groups.setdefault(".".join(path[:2]), []).append(difference)
            if difference.differs and difference.is_exact:
                places.append(place)
    within = not places and all(one.is_within(tolerance) for group in groups.values() for one in group)
    same = not places and not any(one.differs for group in groups.values() for one in group)
    outcome: Outcome = "bit_identical" if same else "within_tolerance" if within else "mismatch"
    return StateDifference(
        outcome, tuple(_summed(name, found) for name, found in sorted(groups.items())), tuple(places[:_PLACES])
    )


@dataclass(frozen=True)
class _TensorDifference:
    """Of one tensor: the largest difference of two numbers, and the largest magnitude that is stored.

    `is_exact` says that the numbers are whole, so that a difference has no size.
    """

    differs: bool
    is_exact: bool = False
    largest: float = 0.0
    scale: float = 0.0

    @property
    def relative(self) -> float:
        if self.largest == 0:
            return 0.0
        return self.largest / self.scale if self.scale else float("inf")

    def is_within(self, tolerance: Tolerance) -> bool:
        return self.largest <= tolerance.absolute + tolerance.relative * self.scale


def _tensor_difference(kind: str, stored: Flat, found: Flat) -> _TensorDifference:
    if np.array_equal(stored, found):
        return _TensorDifference(differs=False)
    held, now = _numbers(kind, stored), _numbers(kind, found)
    if held is None or now is None:
        return _TensorDifference(differs=True, is_exact=True)
    largest = scale = 0.0
    for start in range(0, len(held), _AT_ONCE):
        one, other = held[start : start + _AT_ONCE], now[start : start + _AT_ONCE]
        largest = max(largest, _largest_difference(one, other))
        finite = np.abs(one[np.isfinite(one)]).astype(np.float64)
        scale = max(scale, float(finite.max(initial=0.0)))
    return _TensorDifference(differs=True, largest=largest, scale=scale)


def _largest_difference(stored: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the largest distance of two numbers; equal infinities and two NaNs are at none."""
    wide = np.complex128 if stored.dtype.kind == "c" else np.float64
    one, other = stored.astype(wide), found.astype(wide)
    alike = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(one - other)
    apart[~np.isfinite(apart)] = np.inf
    apart[alike] = 0.0
    return float(apart.max(initial=0.0))


def _numbers(kind: str, data: Flat) -> NDArray[Any] | None:
    """Return the elements of a tensor as floating or complex numbers; None where they are neither.

    Args:
        kind: a codec's name of the element type: NumPy's, or one that is little-endian.
        data: the elements as bytes.
    """
    if kind == "bfloat16":  # the upper half of a float32
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if kind == "complex32":
        parts = data.view("<f2").astype(np.float32)
        return parts.view(np.complex64)
    try:
        dtype = np.dtype(kind)
    except TypeError:  # NumPy has no numbers of eight bits with a point
        return None
    if dtype.kind not in "fc":
        return None
    return data.view(dtype if kind[0] in "<>" else dtype.newbyteorder("<"))


def _summed(name: str, tensors: list[_TensorDifference]) -> GroupDifference:
    return GroupDifference(
        name=name,
        tensors=len(tensors),
        differing=sum(tensor.differs for tensor in tensors),
        absolute=max(tensor.largest for tensor in tensors),
        relative=max(tensor.relative for tensor in tensors),
    )


def _pairs(node: Any, other: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Return path and both nodes wherever two trees have a leaf, or nodes that cannot be walked together."""
    kind = node[0] if isinstance(node, list) else None
    if kind in _SEQUENCES and _fits(node, other):
        for number, (part, beside) in enumerate(zip(node[1], other[1], strict=True)):
            yield from _pairs(part, beside, (*path, str(number)))
    elif kind in _MAPPINGS and _fits(node, other) and _keys(node) == _keys(other):
        for (key, part), (_, beside) in zip(node[1], other[1], strict=True):
            yield from _pairs(part, beside, (*path, _shown(key)))
    else:
        yield path, node, other


def _fits(node: Any, other: Any) -> bool:
    return isinstance(other, list) and node[0] == other[0] and len(node[1]) == len(other[1])


def _keys(node: Any) -> list[bytes]:
    return [dump_tree(key) for key, _ in node[1]]


def _shown(key: Any) -> str:
    """Return a key of a mapping as a reader knows it: a text as it is, a number without its type."""
    if isinstance(key, str):
        return key
    return str(key[1]) if isinstance(key, list) and key[0] == "int" else str(key)


def _is_tensor(node: Any) -> bool:
    return isinstance(node, list) and bool(node) and node[0] == "tensor"


_SEQUENCES = ("list", "tuple")
_MAPPINGS = ("dict", "ordered", "counter")
