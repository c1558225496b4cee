"""State that training may reach and no stage stores: generators, and variables of the user's functions and classes.

Attributes of model and callbacks are looked at elsewhere (`pybrush.attributes`). Here it is what their
functions, the data set and what makes batches of it read besides: globals, closures, default values, class
attributes. It is compared before and after each stage. A generator that went on makes later stages depend on
earlier ones and is refused; any other change may be harmless (a counter that is printed), and the guarantee
names it. Guide: docs/guarantees.md, "What is looked for".
"""

from __future__ import annotations

import hashlib
import pickle  # digests of generators and numbers are compared in memory; nothing pickled is kept or loaded
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pybrush.errors import TrainingError
from pybrush.randomness import Randomness
from pybrush.reach import MANY, Kinds, Place, reached, variables
from pybrush.user_code import is_installed

T = TypeVar("T")

Digests = dict[str, str]
"""Place, in words -> digest of what is there."""

_GENERATORS: dict[type, Callable[[Any], bytes]] = {
    np.random.Generator: lambda value: pickle.dumps(value.bit_generator.state),
    np.random.RandomState: lambda value: pickle.dumps(value.get_state()),
    random.Random: lambda value: pickle.dumps(value.getstate()),
}
_SEEDED = tuple(vars(module)["random"].__self__ for module in (random, np.random))
"""The global generators of Python and NumPy."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_SAMPLED = 64
"""Elements of an array that are looked at."""


class Hidden:
    """What some objects reach besides their attributes.

    Args:
        roots: objects of the user's, each with a word for it.
        kinds: the framework's classes.
        stored: tensors and generators whose state is part of each stage.
    """

    def __init__(self, roots: Iterable[Place], kinds: Kinds, stored: Iterable[Any] = ()) -> None:
        found = list(reached(roots, kinds))
        self._tensors, self._states = kinds.tensors, {**_GENERATORS, **kinds.generators}
        self._elsewhere = {id(value): value for value in (*_SEEDED, *kinds.seeded, *stored)}
        self._functions = [value for _, value in found if isinstance(value, FunctionType)]
        self._generators = [(place, value) for place, value in found if isinstance(value, tuple(self._states))]
        classes = {type(value) for _, value in found} | {value for _, value in found if isinstance(value, type)}
        self._classes = sorted((kind for kind in classes if not is_installed(kind)), key=lambda kind: kind.__qualname__)

    def generators(self) -> Digests:
        """Return a digest of each generator; the global ones are seeded for every stage and do not count."""
        named = [*self._generators, *self._variables()]
        once = {id(value): (place, value) for place, value in reversed(named) if id(value) not in self._elsewhere}
        states = ((place, _read(self._states, value)) for place, value in once.values())
        return {place: _hash(state) for place, state in states if state is not None}

    def values(self) -> Digests:
        """Return a digest of each variable that holds plain values, containers, arrays or tensors."""
        apart = ((place, value) for place, value in self._variables() if id(value) not in self._elsewhere)
        found = ((place, _of_value(value, self._tensors)) for place, value in apart)
        return {place: digest for place, digest in found if digest is not None}

    def _variables(self) -> Iterator[Place]:
        for function in self._functions:
            for name, value in variables(function):
                # A global is one variable, however many functions read it.
                owner = function.__module__ if name.startswith("global ") else function.__qualname__
                yield f"{name} of {owner}", value
        for kind in self._classes:
            for name, value in vars(kind).items():
                if not name.startswith("__"):
                    yield f"{kind.__qualname__}.{name}", value


def check_generators(before: Digests, after: Digests, randomness: Randomness) -> None:
    """Refuse generators that went on while a stage was trained.

    Raises:
        TrainingError: naming them.
    """
    changed = _changed(before, after)
    if changed:
        raise TrainingError(
            f"training drew from {', '.join(changed)}, which no stage stores, so later shards would draw other numbers "
            f"than in a fit of their own. Draw from the global generators of {randomness.names}: they are seeded for "
            "every stage and epoch."
        )


def found_changed(before: Digests, after: Digests) -> list[dict[str, str]]:
    """Return name and statement of an assumption for each variable that changed while a stage was trained."""
    return [
        {
            "name": f"hidden-state:{place}",
            "statement": f"{place}, which changed while a stage was trained, has no influence on what later ones learn",
        }
        for place in _changed(before, after)
    ]


def array_digest(value: NDArray[Any]) -> str:
    """Return a digest of an array's shape, type and at most 64 of its elements."""
    if value.dtype.hasobject:
        return f"{id(value)} {value.shape}"
    spots = np.linspace(0, max(value.size - 1, 0), min(_SAMPLED, value.size)).astype(np.int64)
    return _hash(f"{value.shape} {value.dtype}".encode() + np.ascontiguousarray(value.flat[spots]).tobytes())


def _changed(before: Digests, after: Digests) -> list[str]:
    return sorted(place for place, digest in before.items() if after.get(place, digest) != digest)


def _read(by_kind: Mapping[type, Callable[[Any], T]], value: Any) -> T | None:
    """Return what a value's class reads of it; None for a value of another class."""
    return next((read(value) for kind, read in by_kind.items() if isinstance(value, kind)), None)


def _of_value(value: Any, tensors: Mapping[type, Callable[[Any], str]], depth: int = 0) -> str | None:
    """Return a digest of a value in a time that does not grow with it; None for what is no value."""
    if isinstance(value, _PLAIN):
        return _hash(f"{type(value).__name__} {value!r}".encode())
    of_tensor = _read(tensors, value)
    if of_tensor is not None:
        return of_tensor
    if isinstance(value, np.ndarray):
        return array_digest(value)
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        if len(value) > MANY or depth > 2:
            return f"{id(value)} {len(value)}"
        items = value.items() if isinstance(value, dict) else value
        parts = (_of_value(item, tensors, depth + 1) or f"{id(item)}" for item in items)
        return _hash(" ".join([type(value).__name__, *(sorted(parts) if isinstance(value, set) else parts)]).encode())
    return None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
