"""The state of a stage in a folder: the tree in tree.json, its tensors in state.safetensors.

Tensors are kept as flat bytes: safetensors' NumPy front knows neither bfloat16 nor complex numbers, and
saves a transposed array wrongly without a word. A stage's state may leave tensors to the initial state
(`pybrush.record.layers`). Guide: docs/record_format.md, "State trees".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from pybrush.errors import CorruptRecordError
from pybrush.hashing import u64
from pybrush.record.files import write_new
from pybrush.record.layers import Fetch, fill, references, thin
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


ReadFile = Callable[[Path], bytes]
"""Returns what was written into a file; FileNotFoundError where there is none."""


def save(
    folder: Path, tree: Any, write_file: Callable[[Path, bytes], None] = write_new, initial: Path | None = None
) -> str:
    """Write a tree into an existing folder and return its `state_sha256`.

    Making, syncing and renaming the folder is the part of who publishes it.

    Args:
        folder: an existing folder.
        tree: what to write.
        write_file: writes one file.
        initial: folder of a state whose tensors are named, not stored again, where the tree has them too.
    """
    tree_json, arrays = pack(tree)
    if initial is not None:
        with _tensors_in(initial) as fetch:
            tree_json, arrays = thin(tree_json, arrays, (initial / TREE_FILE).read_bytes(), fetch)
    tensors = safetensors.numpy.save(arrays)
    write_file(folder / TREE_FILE, tree_json)
    write_file(folder / TENSOR_FILE, tensors)
    return _sha256(tree_json, tensors)


def load(folder: Path, initial: Path | None = None, read_file: ReadFile = Path.read_bytes) -> Any:
    """Return the tree that was saved in a folder; raises what `read` and `unpack` raise.

    Args:
        folder: where it was saved.
        initial: the folder that `save` was given.
        read_file: reads what `write_file` wrote; so everywhere here.
    """
    tree_json, arrays = read(folder, read_file)
    if initial is not None and references(tree_json):
        with _tensors_in(initial) as fetch:
            tree_json, arrays = fill(tree_json, arrays, fetch)
    return unpack(tree_json, arrays, source=str(folder / TREE_FILE))


def leans_on_initial(folder: Path, read_file: ReadFile = Path.read_bytes) -> bool:
    """Whether a saved state names tensors of the initial state."""
    return bool(references(read_file(folder / TREE_FILE)))


def read(folder: Path, read_file: ReadFile = Path.read_bytes) -> tuple[bytes, Arrays]:
    """Return what `pack` gave for the tree in a folder, without building the tree.

    Raises:
        CorruptRecordError: where a file is missing or damaged, naming it.
    """
    tree_json, tensors = _read_files(folder, read_file)
    try:
        return tree_json, dict(sorted(safetensors.numpy.load(tensors).items()))
    except (SafetensorError, LookupError, ValueError) as error:
        raise CorruptRecordError(f"{folder / TENSOR_FILE} is damaged: {error}. {REMEDY}") from error


def state_sha256(folder: Path, read_file: ReadFile = Path.read_bytes) -> str:
    """Return the SHA-256 of tree.json followed by state.safetensors, in hexadecimal."""
    return _sha256(*_read_files(folder, read_file))


def check_complete(folder: Path) -> None:
    """Look that the files of a state are there and as long as the container's header says; no tensor is read.

    Raises:
        CorruptRecordError: naming the file that is missing or cut short.
    """
    with _tensors_in(folder):
        pass
    path = folder / TREE_FILE
    if not path.is_file() or not path.stat().st_size:
        raise CorruptRecordError(f"{path} is missing or empty. {REMEDY}")


def same_bits(folder_a: Path, folder_b: Path) -> bool:
    """Say whether two folders hold the same tree with the same bytes in every tensor."""
    (tree_a, arrays_a), (tree_b, arrays_b) = read(folder_a), read(folder_b)
    if tree_a != tree_b or arrays_a.keys() != arrays_b.keys():
        return False
    return all(np.array_equal(data, arrays_b[name]) for name, data in arrays_a.items())


@contextmanager
def _tensors_in(folder: Path) -> Iterator[Fetch]:
    """Return a function that reads one tensor of a saved state by its name, without reading the others.

    Raises:
        CorruptRecordError: where the file is missing or damaged.
    """
    path = folder / TENSOR_FILE
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())

            def fetch(name: str) -> Flat:
                if name not in names:
                    raise KeyError(name)
                found: Flat = file.get_tensor(name)
                return found

            yield fetch
    except (SafetensorError, OSError) as error:
        raise CorruptRecordError(f"{path} is missing or damaged: {error}. {REMEDY}") from error


def _sha256(tree_json: bytes, tensors: bytes) -> str:
    digest = hashlib.sha256(tree_json)
    digest.update(tensors)
    return digest.hexdigest()


def _read_files(folder: Path, read_file: ReadFile) -> tuple[bytes, bytes]:
    try:
        return read_file(folder / TREE_FILE), read_file(folder / TENSOR_FILE)
    except FileNotFoundError as error:
        raise CorruptRecordError(f"{error.filename} is missing. {REMEDY}") from error
