"""The byte search: does any file still hold one of these byte strings?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

_FEW = 30
_CHUNK = 1 << 24


def find_bytes(files: Iterable[Path], needles: Sequence[bytes]) -> list[Path]:
    """Return the files that hold any of the needles.

    Args:
        files: files to search, each read whole in pieces that overlap.
        needles: byte strings of at least 8 bytes.
    """
    wanted = sorted(set(needles))
    return [path for path in files if wanted and _holds(path, wanted)]


def name_needles(names: Iterable[bytes]) -> list[bytes]:
    """Return how names and digests may stand in a file: raw and as lower-case hexadecimal."""
    return [form for name in names for form in (name, name.hex().encode())]


def _holds(path: Path, needles: Sequence[bytes]) -> bool:
    overlap = max(map(len, needles)) - 1
    table = None if len(needles) <= _FEW else _Prefixes(needles)
    tail = b""
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            data = tail + piece
            found = any(needle in data for needle in needles) if table is None else table.found_in(data)
            if found:
                return True
            tail = data[-overlap:]
    return False


class _Prefixes:
    """Many needles at once: look at each offset whether its eight bytes start a needle, then compare."""

    def __init__(self, needles: Sequence[bytes]) -> None:
        self._by_prefix: dict[int, list[bytes]] = {}
        for needle in needles:
            self._by_prefix.setdefault(int.from_bytes(needle[:8], "little"), []).append(needle)
        self._prefixes = np.array(sorted(self._by_prefix), dtype=np.uint64)

    def found_in(self, data: bytes) -> bool:
        for shift in range(min(8, len(data) - 7)):
            words = np.frombuffer(data, "<u8", (len(data) - shift) // 8, shift)
            at = np.minimum(np.searchsorted(self._prefixes, words), len(self._prefixes) - 1)
            for index in np.flatnonzero(self._prefixes[at] == words).tolist():
                start = index * 8 + shift
                if any(data.startswith(needle, start) for needle in self._by_prefix[int(words[index])]):
                    return True
        return False
