"""Collection: removing everything that a committed request made unreachable, and looking that it is gone.

It runs only as the last step of a committed request, never on a changed setting. What to search for stands
in the pending file until then, and to unlink that file is the last thing done: until then a sealed request counts
as collected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pybrush.errors import ErasureError
from pybrush.names import Names, among, rows_of
from pybrush.record.artefacts import remove_or_leave
from pybrush.record.files import entries, erase, unlink
from pybrush.record.ledger import now
from pybrush.record.locks import coordinator_lock
from pybrush.record.record import Record
from pybrush.record.samples import Samples
from pybrush.record.search import find_bytes, name_needles
from pybrush.request import Strikes

UNLINKED = (
    "Files were unlinked. Unlinking does not overwrite the medium: copies in backups, snapshots or on flash cells are "
    "outside what this software can reach."
)
"""What removing plain files means for the medium."""

KEYS_DESTROYED = (
    "Each stage was encrypted under a key of its own, and the keys of the removed ones are destroyed: they cannot be "
    "read in any copy of the record's folder, backups and snapshots included. Outside of that are copies of the key "
    "ring, what the file system keeps of a deleted key, your own checkpoints and files, which are not encrypted, and "
    "whoever read the stages before."
)
"""What destroying keys means for the medium, and where it ends."""


def collect(record: Record, number: int, strikes: Strikes, raw_ids: Sequence[bytes] | None) -> dict[str, Any]:
    """Collect and seal a committed request.

    Args:
        record: the record.
        number: the request.
        strikes: what it struck.
        raw_ids: ids of sixteen bytes and more to search for; None where the call no longer has them.

    Returns:
        What was removed and what the search found, as plain values.

    Raises:
        ErasureError: where a forgotten name or digest is still in a file; the request stays committed.
    """
    pending = record.folder / "pending" / str(number)
    with coordinator_lock(record.folder):
        removed = remove_unwanted(record, partial(remove_or_leave, number=number))
        with record.ledger.writing("salts"):
            record.ledger.change("DELETE FROM salts WHERE request = ?", (number,))
        record.ledger.vacuum()
        report = removed | _search(record, strikes, raw_ids, files_but(record, pending)) | _medium(record)
        with record.ledger.writing("collected"):
            query = "UPDATE requests SET state = 'collected' WHERE number = ? AND state = 'committed'"
            record.ledger.change(query, (number,))
        seal(record, number)
    return report


def seal(record: Record, number: int) -> None:
    """Close a request and unlink what it named; call under the record's lock.

    In this order, since until the last step on disk a rerun has to know what the request named: without that
    the rerun of a request for one of several equal rows takes one more.
    """
    ledger = record.ledger
    if not ledger.rows("SELECT 1 FROM requests WHERE number = ? AND state = 'sealed'", (number,)):
        with ledger.writing("seal"):
            ledger.change("UPDATE requests SET state = 'sealed', sealed = ? WHERE number = ?", (now(), number))
            ledger.append_event("sealed", request=number)
    unlink(record.folder / "pending" / str(number))


def remove_unwanted(record: Record, clear: Callable[[Record], dict[str, Any]]) -> dict[str, Any]:
    """Remove stages, artefacts and temporary folders that the ledger does not want; call under the lock.

    Args:
        record: the record.
        clear: deals with the artefacts, and says what it did.
    """
    record.store.vault.check_current(record.ledger)
    record.store.vault.note_latest(record.ledger)
    wanted = record.ledger.wanted()
    cleared = clear(record)
    stages, releases = sorted(record.store.keys() - wanted), sorted(record.store.release_keys() - wanted)
    keys = sum(record.store.discard(key) for key in [*stages, *releases])
    record.store.sweep(wanted)
    for entry in entries(record.folder / "quarantine"):
        erase(entry)
    destroyed = {} if record.plan.encryption is None else {"keys_destroyed": keys}
    return {"stages_unlinked": len(stages), "release_states_unlinked": len(releases), **destroyed, **cleared}


def _medium(record: Record) -> dict[str, Any]:
    """Say what was done for the medium, in the record's folder and in its ledger, and where that ends."""
    answers = record.ledger.answers()
    version, settings = answers.pop("version"), ", ".join(f"{name}={answer}" for name, answer in answers.items())
    return {
        "sqlite": f"{version}; it answers {settings}",
        "medium": UNLINKED if record.plan.encryption is None else KEYS_DESTROYED,
    }


def _search(record: Record, strikes: Strikes, raw_ids: Sequence[bytes] | None, files: list[Path]) -> dict[str, Any]:
    gone = gone_names(record.samples(), strikes)
    check_gone(files, gone)
    found = find_bytes(files, [raw for raw in raw_ids or () if len(raw) >= 16])
    searched = "names and digests only" if raw_ids is None else "names, digests and ids of sixteen bytes or more"
    return {
        "searched": searched,
        "searched_names": len(gone),
        "searched_files": len(files),
        "raw_ids_found_in": [str(path) for path in found],
    }


def files_but(record: Record, *spared: Path) -> list[Path]:
    """Return every file in a record's folder, but for some."""
    return [path for path in sorted(record.folder.rglob("*")) if path.is_file() and path not in spared]


def check_gone(files: Iterable[Path], names: Iterable[bytes]) -> None:
    """Look that no file holds any of some forgotten names and digests.

    Raises:
        ErasureError: naming the files that do.
    """
    hits = find_bytes(files, name_needles(names))
    if hits:
        raise ErasureError(
            f"forgotten names are still in {', '.join(map(str, hits))}. The request stays committed, not sealed: "
            "remove what wrote them there and call unlearn again."
        )


def gone_names(samples: Samples, strikes: Strikes) -> list[bytes]:
    """Return the struck names, subjects and digests that no remaining sample holds."""
    contents = strikes.contents[strikes.contents.any(axis=1)]
    asked: Names = np.vstack([strikes.names, strikes.subjects, strikes.orphans, contents])
    held: set[bytes] = set()
    for names in (samples.names, samples.placements, samples.contents):
        held.update(rows_of(names[among(names, asked)]))
    return sorted(set(rows_of(asked)) - held)
