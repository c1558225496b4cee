"""What a refusal must leave as it was: names, bytes and modes of every file and folder, and values beside them."""

import os
import stat
from contextlib import contextmanager
from pathlib import Path

LOCKS = {"lock", "request.lock"}
"""Files of a record that are made by whoever asks for a lock, and hold nothing."""


def files_in(*places):
    """Return mode and content of all files, links and folders below some places; a missing place has none."""
    found = {}
    for place in map(Path, places):
        for path in [place, *sorted(place.rglob("*"))]:
            if path.name in LOCKS or not os.path.lexists(path):
                continue
            mode = path.lstat().st_mode
            content = str(path.readlink()) if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else None
            found[str(path)] = oct(mode), content
    return found


def differences(before, after):
    """Return the names whose values are not the same."""
    missing = object()
    return sorted(str(n) for n in before.keys() | after.keys() if before.get(n, missing) != after.get(n, missing))


@contextmanager
def untouched(*places, read=dict):
    """Let a block pass only if it leaves all files below some places, and what `read()` returns, as they were.

    `read` returns a mapping of names to values that can be compared.
    """
    before = files_in(*places) | read()
    yield
    changed = differences(before, files_in(*places) | read())
    assert not changed, f"not as before: {changed}"
