"""What learned from all rows before training began: fitted objects, and functions that read what may change.

A scaler that was fitted on a row carries it into every other row, whatever SISA trains again; what a data set,
its transforms and the collate function hold is looked through once, when the record is made, and each find is
an assumption of every guarantee. Constants are no finds. Guide: docs/guarantees.md, "What is looked for".
"""

from __future__ import annotations

import dis
import logging
from collections import deque
from collections.abc import Iterable, Iterator, MutableMapping, MutableSequence, MutableSet
from dataclasses import replace
from functools import cached_property, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pybrush.record.create import PlanWish
from pybrush.user_code import is_installed, is_installed_file
from pybrush_lightning import _private

_log = logging.getLogger(__name__)

Place = tuple[str, Any]
"""Where something was found, in words without values or keys, and what it is."""

MANY = 1000
"""Entries from which a container is taken for data and not looked into."""

_READING = {"__getitem__", "__getitems__", "__call__", "__iter__"}
"""Special methods through which rows are read; what `__init__` reads ends up in attributes."""

_COUNTS = {"n_features_in_", "feature_names_in_"}
"""What scikit-learn's stateless transformers note of the columns; no statistic of rows."""


def noted(wish: PlanWish, loader: DataLoader[Any], *owners: Any) -> PlanWish:
    """Return what a fit asks of the record, with what was found among the settings.

    Args:
        wish: what the fit asks for.
        loader: the training loader.
        owners: module and data module, in which fitted objects are looked for.
    """
    found = assumptions(loader, owners)
    return replace(wish, settings={**wish.settings, "assumptions": found})


def say_found(wish: PlanWish) -> None:
    """Warn of what was found, while the record is made: then it can still be mended."""
    names = [found["name"].partition(":")[2] for found in wish.settings["assumptions"]]
    if names:
        _log.warning(
            "preprocessing that may have seen all rows: %s. A request does not refit it, and every guarantee will name "
            "it; fit it on rows that are never forgotten, or declare why it holds (docs/guarantees.md).",
            ", ".join(names),
        )


def assumptions(loader: DataLoader[Any], owners: Iterable[Any] = ()) -> list[dict[str, str]]:
    """Return name and statement of each find, by name; plain JSON."""
    reading = list(reached([("dataset", loader.dataset), ("collate_fn", loader.collate_fn)]))
    beside = reached((type(owner).__name__, owner) for owner in owners)
    fitted: dict[str, set[str]] = {}
    for place, value in [*reading, *beside]:
        if _is_fitted(value):
            fitted.setdefault(type(value).__name__, set()).add(place)
    found = {name: _of_fitted(name, sorted(places)) for name, places in fitted.items()}
    for _, value in reading:
        if isinstance(value, FunctionType):
            changing = [f"{name} ({type(held).__name__})" for name, held in variables(value) if _is_read(name, held)]
            if changing:
                found[value.__qualname__] = _of_function(value.__qualname__, changing)
    return [{"name": f"preprocessing:{name}", "statement": text} for name, text in sorted(found.items())]


def _of_fitted(name: str, places: list[str]) -> str:
    return (
        f"the fitted statistics of {name} ({', '.join(places)}), which reach the model, come from no forgotten row; "
        "if they do, refit it without the forgotten rows and train anew"
    )


def _of_function(name: str, variables: list[str]) -> str:
    return (
        f"what the function {name} reads ({', '.join(variables)}) comes from no forgotten row and stays as it is "
        "while stages are trained"
    )


def _is_fitted(value: Any) -> bool:
    """Whether an object has learned something, by scikit-learn's convention: `fit`, and attributes like `mean_`."""
    if not hasattr(type(value), "fit"):
        return False
    names = {name for name, _ in _vars(value) if name.endswith("_") and not name.startswith("_")}
    return bool(names - _COUNTS)


def _is_read(name: str, value: Any) -> bool:
    """Whether a variable of a function may change, or came from data: containers, arrays, tensors.

    A global that is written in capitals is a constant, by convention.
    """
    is_constant = name.rpartition(" ")[2].isupper() and name.startswith("global ")
    return not is_constant and _is_changing(value)


def _is_changing(value: Any) -> bool:
    if isinstance(value, (tuple, frozenset)):
        return any(map(_is_changing, value))
    containers = (MutableSequence, MutableMapping, MutableSet, deque)
    is_array = hasattr(type(value), "__array__") and not isinstance(value, np.generic)
    return isinstance(value, containers) or (is_array and not isinstance(value, type))


def reached(roots: Iterable[Place]) -> Iterator[Place]:
    """Return what can be reached from some objects, each once, with the first place; data is not looked into."""
    waiting, seen = deque[Place](), dict[int, Any]()
    for place, value in roots:  # into these whatever they are, also where their class is an installed one
        waiting += [(place, value), *((f"{place}.{name}", held) for name, held in _vars(value))]
    while waiting:
        place, value = waiting.popleft()
        if id(value) not in seen:
            seen[id(value)] = value  # kept, so that its id is not another's meanwhile
            yield place, value
            waiting.extend(_below(place, value))


def _below(place: str, value: Any) -> Iterator[Place]:
    """Return what an object holds or a function reads."""
    if isinstance(value, (type, ModuleType, torch.Tensor, np.ndarray, *_private.trainer_classes())):
        return
    if isinstance(value, (dict, list, tuple, set, frozenset, deque)):
        items = list(value.values() if isinstance(value, dict) else value) if len(value) <= MANY else []
        yield from ((f"{place}[...]", item) for item in items)
    elif isinstance(value, FunctionType):
        yield from ((f"{name} of {value.__qualname__}", held) for name, held in [*variables(value), *_vars(value)])
    elif isinstance(value, MethodType):
        yield from ((place, value.__self__), (place, value.__func__))
    elif isinstance(value, partial):
        yield from ((place, value.func), (place, value.args), (place, value.keywords))
    elif _may_prepare(value):
        yield from ((f"{place}.{name}", held) for name, held in [*_vars(value), *_of_class(type(value))])


def _may_prepare(value: Any) -> bool:
    """Whether an object that is no container may prepare rows: the user's own, what is called, what is fitted."""
    kind = type(value)
    return callable(value) or isinstance(value, Dataset) or hasattr(kind, "fit") or not is_installed(kind)


def _vars(value: Any) -> list[Place]:
    try:
        return list(vars(value).items())
    except TypeError:  # it has slots, or is a builtin
        return []


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


def _globals(code: CodeType) -> set[str]:
    """Return the names of globals that a function reads, also in functions inside of it."""
    names = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
