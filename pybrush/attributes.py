"""State that models and callbacks keep outside of variables: their attributes.

Plain values (`pybrush.record.states`) are stored with each stage. What refers to the model's own parts is
no state. Any other value cannot be stored: it is looked at before and after each stage, and a change is
refused, since later shards would see what earlier ones left there. What is what in a framework, its
adapter says (`Known`). Guide: docs/pitfalls.md.
"""

from __future__ import annotations

import hashlib
import io
import pickle  # digests of attributes are compared in memory; nothing pickled is kept or loaded
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from pybrush.errors import ConfigurationError, TrainingError, UnsupportedError
from pybrush.record import trees

Attributes = dict[str, Any]


class Known(Protocol):
    """What an adapter knows of its framework's objects, and of the parts of one model."""

    def is_internal(self, owner: Any, name: str) -> bool:
        """Whether an attribute is the framework's own: its state, if any, is stored by other means."""

    def is_part(self, value: Any) -> bool:
        """Whether a value is a part of the model, or of its optimization: its state is stored by other means."""

    def holds_state(self, value: Any) -> bool:
        """Whether something that can be called may hold state, as layers do; other such things are behaviour."""

    def is_trainable(self, value: Any) -> bool:
        """Whether training moves a tensor, so that a copy of it in its place would not be trained."""

    def address(self, value: Any) -> int | None:
        """Return where a tensor of the framework lies in memory; None for anything else."""

    def read(self, value: Any) -> Any:
        """Return a value as a state may hold it: for example a list for the framework's own kind of list."""

    def compared(self, value: Any) -> Any:
        """Return what is pickled in place of an object whose own pickle differs each time; else the value itself."""

    def placed(self, value: Any, present: Any) -> Any:
        """Return a copy of a stored value to replace the present one, its tensors on that one's device."""


def plain_attributes(owner: Any, known: Known) -> Attributes:
    """Return copies of the attributes that a state can hold."""
    # Not deepcopy, which refuses tensors that are still part of a graph.
    return {
        name: trees.unpack(*trees.pack(known.read(value)))
        for name, value in _attributes(owner, known)
        if _is_plain(value, known)
    }


def write_attributes(owner: Any, stored: Attributes, known: Known) -> None:
    """Set the stored attributes and take away plain ones that were not there then."""
    present = dict(_attributes(owner, known))
    for name in [name for name, value in present.items() if name not in stored and _is_plain(value, known)]:
        delattr(owner, name)
    for name, value in stored.items():
        setattr(owner, name, known.placed(value, present.get(name)))


def opaque_digests(owners: Iterable[tuple[str, Any]], known: Known) -> dict[str, str]:
    """Return a digest of each attribute that a state cannot hold, by its full name."""
    return {
        f"{place}.{name}": _digest(value, known)
        for place, owner in owners
        for name, value in _attributes(owner, known)
        if not _is_plain(value, known)
    }


def check_opaque(before: dict[str, str], after: dict[str, str], remedy: str) -> None:
    """Refuse attributes that changed in a stage and cannot be stored with it.

    Args:
        before: what `opaque_digests` returned before the stage.
        after: what it returned after the stage.
        remedy: a sentence that says where the framework's users keep such state.

    Raises:
        TrainingError: naming them.
    """
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise TrainingError(
            f"training changed {', '.join(changed)}, of types that a stage cannot store, so later shards would see "
            f"what earlier ones left there. {remedy}"
        )


def check_no_data(owners: Iterable[tuple[str, Any]], known: Known, datasets: Iterable[Any]) -> None:
    """Refuse attributes that are the training data: stored with every stage, they would outlive any request.

    Args:
        owners: model and callbacks, each with a word for it.
        known: what the adapter knows.
        datasets: objects that hold the training data as attributes.

    Raises:
        ConfigurationError: naming them.
    """
    held = (value for dataset in datasets for value in vars(dataset).values())
    data = {address for value in held for address in _addresses(value, known)}
    found = [
        f"{place}.{name}"
        for place, owner in owners
        for name, value in _attributes(owner, known)
        if _is_plain(value, known) and not data.isdisjoint(_addresses(value, known))
    ]
    if found:
        raise ConfigurationError(
            f"{', '.join(found)} is training data, which would be stored with every stage and outlive a request. Keep "
            "the data out of model and callbacks, where data sets belong."
        )


def inside(value: Any) -> list[Any]:
    """Return what a list, tuple or dictionary holds, nothing for any other value."""
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []


def _addresses(value: Any, known: Known) -> Iterator[int]:
    """Return where the tensors and arrays in a value, and its containers, lie in memory."""
    address = known.address(value)
    if address is not None:
        yield address
    elif isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        yield value.__array_interface__["data"][0]
    elif inside(value):
        yield id(value)
        for item in inside(value):
            yield from _addresses(item, known)


def _attributes(owner: Any, known: Known) -> Iterator[tuple[str, Any]]:
    """Return the attributes that are neither the framework's nor behaviour nor references to known parts."""
    for name, value in list(vars(owner).items()):
        behaviour = callable(value) and not isinstance(value, type) and not known.holds_state(value)
        if not known.is_internal(owner, name) and not behaviour and not _refers(value, known):
            yield name, value


def _refers(value: Any, known: Known) -> bool:
    try:
        return _is_reference(value, known)
    except RecursionError:  # a container that holds itself
        return False


def _is_reference(value: Any, known: Known) -> bool:
    """Whether a value is one of the known parts, or a container of nothing else."""
    items = inside(value)
    return all(_is_reference(item, known) for item in items) if items else known.is_part(value)


def _is_plain(value: Any, known: Known) -> bool:
    try:
        trees.pack(known.read(value))
    except (UnsupportedError, RecursionError):  # the second where `read` follows a container that holds itself
        return False
    # A stored one would come back as a copy that nothing trains.
    return not _holds_trainable(value, known)


def _holds_trainable(value: Any, known: Known) -> bool:
    return known.is_trainable(value) or any(_holds_trainable(item, known) for item in inside(value))


class _Pickler(pickle.Pickler):
    """Pickles what the adapter wants compared in place of its objects."""

    def __init__(self, file: io.BytesIO, known: Known) -> None:
        super().__init__(file)
        self._known = known

    def reducer_override(self, value: Any) -> Any:
        compared = self._known.compared(value)
        return NotImplemented if compared is value else (tuple, ([compared],))


def _digest(value: Any, known: Known) -> str:
    file = io.BytesIO()
    try:
        _Pickler(file, known).dump(known.read(value))
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError, RuntimeError):
        return f"object {id(value)}"
    return hashlib.sha256(file.getbuffer()).hexdigest()
