"""A stage stores only the tensors that training changed; those of the initial state it names.

Works on packed trees (`pybrush.record.trees`): `thin` replaces each tensor that has, at its place in the tree, the
initial state's type, shape and bits by a reference, and `fill` gives back what was packed, byte for byte. What a
frozen backbone holds is then on disk once, however many stages there are. Guide: docs/record_format.md,
"State trees".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pybrush.errors import CorruptRecordError
from pybrush.record.trees import Arrays, Flat, dump_tree, parse_tree

PREFIX = "initial/"
"""Stands before the name of a tensor that lies in the initial state's file."""

Fetch = Callable[[str], Flat]
"""Name of a tensor of the initial state -> its bytes."""


def thin(tree_json: bytes, arrays: Arrays, base_json: bytes, fetch: Fetch) -> tuple[bytes, Arrays]:
    """Return a packed tree in which what the base holds at the same place is a reference.

    Args:
        tree_json: what `pack` returned, as is `arrays`.
        arrays: tensors by name.
        base_json: tree.json of the initial state.
        fetch: reads a tensor of the initial state.
    """
    tree = parse_tree(tree_json)
    met: set[str] = set()
    taken: dict[str, str] = {}
    for node, other in _pairs(tree, parse_tree(base_json)):
        own, held = node[5], other[5]
        # Two tensors of the tree must not become one, so a tensor of the base is named for one alone.
        free = own not in met and held not in taken
        if free and node[:5] == other[:5] and np.array_equal(arrays[own], fetch(held)):
            taken[held] = own
        met.add(own)
    return _renamed(tree, {own: PREFIX + held for held, own in taken.items()}, arrays)


def fill(tree_json: bytes, arrays: Arrays, fetch: Fetch) -> tuple[bytes, Arrays]:
    """Return what was packed before `thin`.

    Raises:
        CorruptRecordError: for a reference to what the initial state does not hold.
    """
    tree = parse_tree(tree_json)
    try:
        found = {name: fetch(name.removeprefix(PREFIX)) for name in _references(tree)}
        return _renamed(tree, {}, {**arrays, **found})
    except LookupError as error:
        raise CorruptRecordError(
            f"a stage names a tensor that its files and the initial state lack: {error}."
        ) from error


def references(tree_json: bytes) -> set[str]:
    """Return the names by which a stored tree refers to tensors of the initial state."""
    return _references(parse_tree(tree_json))


def _references(tree: Any) -> set[str]:
    return {node[5] for node in _tensors(tree) if str(node[5]).startswith(PREFIX)}


def _renamed(tree: Any, references: dict[str, str], arrays: Arrays) -> tuple[bytes, Arrays]:
    """Return the tree with references put in and its other tensors counted anew, in the order of the walk."""
    kept: Arrays = {}
    names = dict(references)
    for node in _tensors(tree):
        own = node[5]
        if own not in names:
            names[own] = f"{len(kept):06d}"
            kept[names[own]] = arrays[own]
        node[5] = names[own]
    return dump_tree(tree), kept


def _tensors(node: Any) -> Iterator[Any]:
    """Return the tensor nodes of a tree, in the order in which they were met when it was packed."""
    if not isinstance(node, list):
        return
    if node and node[0] == "tensor":
        yield node
    elif node and node[0] in _NESTED:
        for part in node[1]:
            yield from _tensors(part) if node[0] in _SEQUENCES else _tensors_of_pair(part)


def _tensors_of_pair(pair: Any) -> Iterator[Any]:
    for part in pair:
        yield from _tensors(part)


def _pairs(node: Any, base: Any) -> Iterator[tuple[Any, Any]]:
    """Return each tensor node of a tree with the tensor node at the same place in another."""
    if not isinstance(node, list) or not isinstance(base, list) or node[0] != base[0]:
        return
    if node[0] == "tensor":
        yield node, base
    elif node[0] in _SEQUENCES:
        for part, other in zip(node[1], base[1], strict=False):
            yield from _pairs(part, other)
    elif node[0] in _MAPPINGS:
        there = {dump_tree(key): value for key, value in base[1]}
        for key, value in node[1]:
            if (place := dump_tree(key)) in there:
                yield from _pairs(value, there[place])


_SEQUENCES = ("list", "tuple")
_MAPPINGS = ("dict", "ordered", "counter")
_NESTED = _SEQUENCES + _MAPPINGS
