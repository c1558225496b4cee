"""The byte search: does any file still hold one of these byte strings?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

_FEW = 30
_CHUNK = 1 << 24
_LOW = (1 << 24) - 1
"""The bits of a word by which most of what is no needle is told from needles."""


def find_bytes(files: Iterable[Path], needles: Sequence[bytes]) -> list[Path]:
    """Return the files that hold any of the needles.

    Args:
        files: files to search, each read whole in pieces that overlap.
        needles: byte strings of at least 8 bytes.
    """
    wanted = sorted(set(needles))
    if not wanted:
        return []
    found_in = _few(wanted) if len(wanted) <= _FEW else _Prefixes(wanted).found_in
    overlap = max(map(len, wanted)) - 1
    return [path for path in files if _holds(path, found_in, overlap)]


def name_needles(names: Iterable[bytes]) -> list[bytes]:
    """Return how names and digests may stand in a file: raw and as lower-case hexadecimal."""
    return [form for name in names for form in (name, name.hex().encode())]


def _holds(path: Path, found_in: Callable[[bytes], bool], overlap: int) -> bool:
    tail = b""
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            data = tail + piece
            if found_in(data):
                return True
            tail = data[-overlap:]
    return False


def _few(needles: Sequence[bytes]) -> Callable[[bytes], bool]:
    return lambda data: any(needle in data for needle in needles)


class _Prefixes:
    """Many needles at once: look at each offset whether its eight bytes start a needle, then compare."""

    def __init__(self, needles: Sequence[bytes]) -> None:
        self._by_prefix: dict[int, list[bytes]] = {}
        for needle in needles:
            self._by_prefix.setdefault(int.from_bytes(needle[:8], "little"), []).append(needle)
        # Of a million random words a few per mille pass this table; only these are compared whole.
        self._maybe = np.zeros(_LOW + 1, dtype=bool)
        self._maybe[np.array([prefix & _LOW for prefix in self._by_prefix], dtype=np.int64)] = True

    def found_in(self, data: bytes) -> bool:
        for shift in range(min(8, len(data) - 7)):
            words = np.frombuffer(data, "<u8", (len(data) - shift) // 8, shift)
            for index in np.flatnonzero(self._maybe[words & np.uint64(_LOW)]).tolist():
                start = index * 8 + shift
                if any(data.startswith(needle, start) for needle in self._by_prefix.get(int(words[index]), ())):
                    return True
        return False
