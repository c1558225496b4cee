"""State that training may reach and no stage stores: generators, and variables of the user's functions and classes.

Attributes of module and callbacks are looked at elsewhere (`pybrush_lightning.attributes`). Here it is what their
functions, the data set and the collate function read besides: globals, closures, default values, class
attributes. It is compared before and after each stage. A generator that went on makes later stages depend on
earlier ones and is refused; any other change may be harmless (a counter that is printed), and the guarantee
names it. Guide: docs/guarantees.md, "What is looked for".
"""

from __future__ import annotations

import hashlib
import pickle  # digests of generators and numbers are compared in memory; nothing pickled is kept or loaded
import random
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

import numpy as np
import torch

from pybrush.errors import TrainingError
from pybrush.user_code import is_installed
from pybrush_lightning.preprocessing import MANY, Place, reached, variables

Digests = dict[str, str]
"""Place, in words -> digest of what is there."""

_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_GLOBAL = {id(torch.default_generator), *(id(vars(module)["random"].__self__) for module in (random, np.random))}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_SAMPLED = 64
"""Elements of an array that are looked at."""


class Hidden:
    """What some objects reach besides their attributes.

    Args:
        roots: objects of the user's, each with a word for it.
    """

    def __init__(self, roots: Iterable[Place]) -> None:
        found = list(reached(roots))
        self._functions = [value for _, value in found if isinstance(value, FunctionType)]
        self._generators = [(place, value) for place, value in found if isinstance(value, _GENERATORS)]
        kinds = {type(value) for _, value in found} | {value for _, value in found if isinstance(value, type)}
        self._classes = sorted((kind for kind in kinds if not is_installed(kind)), key=lambda kind: kind.__qualname__)

    def generators(self) -> Digests:
        """Return a digest of each generator; the global ones are seeded for every stage and do not count."""
        named = [*self._generators, *((p, v) for p, v in self._variables() if isinstance(v, _GENERATORS))]
        once = {id(value): (place, value) for place, value in reversed(named) if id(value) not in _GLOBAL}
        return {place: _of_generator(value) for place, value in once.values()}

    def values(self) -> Digests:
        """Return a digest of each variable that holds plain values, containers, arrays or tensors."""
        found = ((place, _of_value(value)) for place, value in self._variables())
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


def check_generators(before: Digests, after: Digests) -> None:
    """Refuse generators that went on while a stage was trained.

    Raises:
        TrainingError: naming them.
    """
    changed = _changed(before, after)
    if changed:
        raise TrainingError(
            f"training drew from {', '.join(changed)}, which no stage stores, so later shards would draw other numbers "
            "than in a fit of their own. Draw from the global generators of random, numpy and torch: they are seeded "
            "for every stage and epoch."
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


def _changed(before: Digests, after: Digests) -> list[str]:
    return sorted(place for place, digest in before.items() if after.get(place, digest) != digest)


def _of_generator(value: Any) -> str:
    if isinstance(value, torch.Generator):
        return _hash(value.get_state().numpy().tobytes())
    return _hash(pickle.dumps(value.getstate() if isinstance(value, random.Random) else _numpy_state(value)))


def _numpy_state(value: Any) -> Any:
    return value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state()


def _of_value(value: Any, depth: int = 0) -> str | None:
    """Return a digest of a value in a time that does not grow with it; None for what is no value."""
    if isinstance(value, _PLAIN):
        return _hash(f"{type(value).__name__} {value!r}".encode())
    if isinstance(value, torch.Tensor):
        return f"{id(value)} {value._version}"  # noqa: SLF001 (counts changes in place)
    if isinstance(value, np.ndarray):
        return _of_array(value)
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        if len(value) > MANY or depth > 2:
            return f"{id(value)} {len(value)}"
        items = value.items() if isinstance(value, dict) else value
        parts = (_of_value(item, depth + 1) or f"{id(item)}" for item in items)
        return _hash(" ".join([type(value).__name__, *(sorted(parts) if isinstance(value, set) else parts)]).encode())
    return None


def _of_array(value: Any) -> str:
    if value.dtype.hasobject:
        return f"{id(value)} {value.shape}"
    spots = np.linspace(0, max(value.size - 1, 0), min(_SAMPLED, value.size)).astype(np.int64)
    return _hash(f"{value.shape} {value.dtype}".encode() + np.ascontiguousarray(value.flat[spots]).tobytes())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
