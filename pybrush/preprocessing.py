"""What learned from all rows before training began: fitted objects, and functions that read what may change.

A scaler that was fitted on a row carries it into every other row, whatever SISA trains again; what a data set,
its transforms and what makes batches of it hold is looked through once, when the record is made, and each find is
an assumption of every guarantee. Constants are no finds. Guide: docs/guarantees.md, "What is looked for".
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, MutableMapping, MutableSequence, MutableSet
from dataclasses import replace
from types import FunctionType
from typing import Any

import numpy as np

from pybrush.reach import Kinds, Place, attributes_of, reached, variables
from pybrush.record.create import PlanWish

_log = logging.getLogger(__name__)

_COUNTS = {"n_features_in_", "feature_names_in_"}
"""What scikit-learn's stateless transformers note of the columns; no statistic of rows."""


def noted(wish: PlanWish, reading: Iterable[Place], owners: Iterable[Any], kinds: Kinds) -> PlanWish:
    """Return what a fit asks of the record, with what was found among the settings.

    Args:
        wish: what the fit asks for.
        reading: the data set, and functions that turn its rows into batches, each with a word for it.
        owners: model and the like, in which fitted objects are looked for.
        kinds: the framework's classes.
    """
    found = assumptions(reading, owners, kinds)
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


def assumptions(reading: Iterable[Place], owners: Iterable[Any], kinds: Kinds) -> list[dict[str, str]]:
    """Return name and statement of each find, by name; plain JSON. For the arguments see `noted`."""
    prepares = list(reached(reading, kinds))
    beside = reached(((type(owner).__name__, owner) for owner in owners), kinds)
    fitted: dict[str, set[str]] = {}
    for place, value in [*prepares, *beside]:
        if _is_fitted(value) or kinds.is_fitted(value):
            fitted.setdefault(type(value).__name__, set()).add(place)
    found = {name: _of_fitted(name, sorted(places)) for name, places in fitted.items()}
    for _, value in prepares:
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
    names = {name for name, _ in attributes_of(value) if name.endswith("_") and not name.startswith("_")}
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
