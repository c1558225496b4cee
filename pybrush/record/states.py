"""The state of a stage in a folder: the tree in tree.json, its tensors in state.safetensors.

Tensors are kept as flat bytes: safetensors' NumPy front knows neither bfloat16 nor complex numbers, and
saves a transposed array wrongly without a word. Guide: docs/record_format.md, "State trees".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from pybrush.errors import CorruptRecordError
from pybrush.hashing import u64
from pybrush.record.files import write_new
from pybrush.record.trees import REMEDY, TENSOR_FILE, TREE_FILE, Arrays, Flat, pack, unpack


def init_digest(tree: Any) -> str:
    """Return the digest, in hexadecimal, by which keys know the state that all stages start from."""
    return digest_of(*pack(tree))


def digest_of(tree_json: bytes, arrays: Mapping[str, Flat]) -> str:
    """Return the SHA-256 of tree.json and of each tensor in name order, lengths before each.

    Unlike `state_sha256` it leaves out the container's header, which belongs to another library.
    """
    digest = hashlib.sha256(u64(len(tree_json)) + tree_json)
    for name in sorted(arrays):
        digest.update(u64(arrays[name].size) + arrays[name].tobytes())
    return digest.hexdigest()


def save(folder: Path, tree: Any, write_file: Callable[[Path, bytes], None] = write_new) -> str:
    """Write a tree into an existing folder and return its `state_sha256`.

    Making, syncing and renaming the folder is the part of who publishes it.
    """
    tree_json, arrays = pack(tree)
    tensors = safetensors.numpy.save(arrays)
    write_file(folder / TREE_FILE, tree_json)
    write_file(folder / TENSOR_FILE, tensors)
    return _sha256(tree_json, tensors)


def load(folder: Path) -> Any:
    """Return the tree that was saved in a folder; raises what `read` and `unpack` raise."""
    return unpack(*read(folder), source=str(folder / TREE_FILE))


def read(folder: Path) -> tuple[bytes, Arrays]:
    """Return what `pack` gave for the tree in a folder, without building the tree.

    Raises:
        CorruptRecordError: where a file is missing or damaged, naming it.
    """
    tree_json, tensors = _read_files(folder)
    try:
        return tree_json, dict(sorted(safetensors.numpy.load(tensors).items()))
    except (SafetensorError, LookupError, ValueError) as error:
        raise CorruptRecordError(f"{folder / TENSOR_FILE} is damaged: {error}. {REMEDY}") from error


def state_sha256(folder: Path) -> str:
    """Return the SHA-256 of tree.json followed by state.safetensors, in hexadecimal."""
    return _sha256(*_read_files(folder))


def same_bits(folder_a: Path, folder_b: Path) -> bool:
    """Say whether two folders hold the same tree with the same bytes in every tensor."""
    (tree_a, arrays_a), (tree_b, arrays_b) = read(folder_a), read(folder_b)
    if tree_a != tree_b or arrays_a.keys() != arrays_b.keys():
        return False
    return all(np.array_equal(data, arrays_b[name]) for name, data in arrays_a.items())


def _sha256(tree_json: bytes, tensors: bytes) -> str:
    digest = hashlib.sha256(tree_json)
    digest.update(tensors)
    return digest.hexdigest()


def _read_files(folder: Path) -> tuple[bytes, bytes]:
    try:
        return (folder / TREE_FILE).read_bytes(), (folder / TENSOR_FILE).read_bytes()
    except FileNotFoundError as error:
        raise CorruptRecordError(f"{error.filename} is missing. {REMEDY}") from error
