"""What the user's own code can reach: attributes, containers, and what functions read beside their arguments.

A look at user code begins at some objects (a data set, a function, a model) and follows what they hold and
read. Installed packages are not looked into, nor are data and tensors. Guide: docs/guarantees.md, "What is looked for".
"""

from __future__ import annotations

import dis
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from pybrush.user_code import is_installed, is_installed_file

Place = tuple[str, Any]
"""Where something was found, in words without values or keys, and what it is."""

MANY = 1000
"""Entries from which a container is taken for data and not looked into."""

_READING = {"__getitem__", "__getitems__", "__call__", "__iter__"}
"""Special methods through which rows are read; what `__init__` reads ends up in attributes."""


@dataclass(frozen=True)
class Kinds:
    """Which classes of a framework are looked at in a way of their own.

    Attributes:
        tensors: class -> takes a tensor, and returns a text that is another one when the tensor has changed.
        generators: class -> takes a generator of random numbers, and returns its state.
        seeded: the framework's global generators, which are seeded for every stage.
        preparing: installed ones whose objects may prepare rows, such as data sets.
        closed: those whose objects are not looked into, such as what runs a training; tensors never are.
        is_fitted: whether an object has learned from rows in the framework's own way.
    """

    tensors: Mapping[type, Callable[[Any], str]]
    generators: Mapping[type, Callable[[Any], bytes]]
    seeded: tuple[Any, ...] = ()
    preparing: tuple[type, ...] = ()
    closed: tuple[type, ...] = ()
    is_fitted: Callable[[Any], bool] = lambda _: False


def reached(roots: Iterable[Place], kinds: Kinds) -> Iterator[Place]:
    """Return what can be reached from some objects, each once, with the first place; data is not looked into."""
    waiting, seen = deque[Place](), dict[int, Any]()
    for place, value in roots:  # into these whatever they are, also where their class is an installed one
        waiting += [(place, value), *((f"{place}.{name}", held) for name, held in attributes_of(value))]
    while waiting:
        place, value = waiting.popleft()
        if id(value) not in seen:
            seen[id(value)] = value  # kept, so that its id is not another's meanwhile
            yield place, value
            waiting.extend(_below(place, value, kinds))


def variables(function: FunctionType) -> list[Place]:
    """Return what a function of the user's reads beside its arguments: closure, globals, default values."""
    if is_installed(function) or is_installed_file(function.__code__.co_filename):  # such as a package's decorator
        return []
    found: list[Place] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found.append((name, cell.cell_contents))
        except ValueError:  # not assigned yet
            continue
    known = function.__globals__
    found += [(f"global {name}", known[name]) for name in sorted(_globals(function.__code__)) if name in known]
    found += [("a default value", held) for held in function.__defaults__ or ()]
    return found + list((function.__kwdefaults__ or {}).items())


def attributes_of(value: Any) -> list[Place]:
    """Return names and values of an object's own attributes; none where it has slots, or is a builtin."""
    try:
        return list(vars(value).items())
    except TypeError:
        return []


def _below(place: str, value: Any, kinds: Kinds) -> Iterator[Place]:
    """Return what an object holds or a function reads."""
    if isinstance(value, (type, ModuleType, np.ndarray, *kinds.tensors, *kinds.closed)):
        return
    if isinstance(value, (dict, list, tuple, set, frozenset, deque)):
        items = list(value.values() if isinstance(value, dict) else value) if len(value) <= MANY else []
        yield from ((f"{place}[...]", item) for item in items)
    elif isinstance(value, FunctionType):
        read = [*variables(value), *attributes_of(value)]
        yield from ((f"{name} of {value.__qualname__}", held) for name, held in read)
    elif isinstance(value, MethodType):
        yield from ((place, value.__self__), (place, value.__func__))
    elif isinstance(value, partial):
        yield from ((place, value.func), (place, value.args), (place, value.keywords))
    elif _may_prepare(value, kinds):
        yield from ((f"{place}.{name}", held) for name, held in [*attributes_of(value), *_of_class(type(value))])


def _may_prepare(value: Any, kinds: Kinds) -> bool:
    """Whether an object that is no container may prepare rows: the user's own, what is called, what is fitted."""
    kind = type(value)
    return callable(value) or isinstance(value, kinds.preparing) or hasattr(kind, "fit") or not is_installed(kind)


def _of_class(kind: type) -> Iterator[Place]:
    """Return methods and class attributes of the user's own classes."""
    for base in kind.__mro__:
        for name, held in vars(base).items() if not is_installed(base) else ():
            if name in _READING or not name.startswith("__"):
                yield name, _unwrapped(held)


def _unwrapped(held: Any) -> Any:
    """Return the function in a property, static or class method, any other entry of a class as it is."""
    if isinstance(held, (property, cached_property)):
        return held.fget if isinstance(held, property) else held.func
    return held.__func__ if isinstance(held, (staticmethod, classmethod)) else held


def _globals(code: CodeType) -> set[str]:
    """Return the names of globals that a function reads, also in functions inside of it."""
    names = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
