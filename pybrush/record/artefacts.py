"""Files of user code whose stage a request took: removed, or left and listed until somebody settles them.

A request removes them (`purge="delete"`) or leaves them (`purge="list"`), which its row in the ledger says, so that a
rerun after a crash does the same. What was left stays registered, with the number of the request, and is a defect for
`verify` for as long as it exists. Every function here is called under the record's lock.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pybrush.errors import ConfigurationError
from pybrush.record.files import erase
from pybrush.record.record import Record

Purge = Literal["delete", "list"]

_UNWANTED = "stage NOT IN (SELECT key FROM wanted)"
_LEFT = "request IS NOT NULL"


def check_purge(purge: object) -> None:
    """Check a caller's word.

    Raises:
        ConfigurationError: for any other than "delete" and "list".
    """
    if purge not in get_args(Purge):
        raise ConfigurationError(f"purge must be 'delete' or 'list'; got {purge!r}.")


def purge_of(record: Record, number: int) -> Purge:
    """Return how a request deals with files of the stages that it takes."""
    found: Purge = record.ledger.rows("SELECT purge FROM requests WHERE number = ?", (number,))[0][0]
    return found


def set_purge(record: Record, number: int, purge: Purge) -> None:
    """Let the last word of a caller on an unfinished request count."""
    if purge != purge_of(record, number):
        with record.ledger.writing("purge"):
            record.ledger.change("UPDATE requests SET purge = ? WHERE number = ?", (purge, number))


def remove_or_leave(record: Record, number: int) -> dict[str, Any]:
    """Deal with the files of unwanted stages as a request says; return what was done, as plain values."""
    return remove(record) if purge_of(record, number) == "delete" else _leave(record, number)


def remove(record: Record) -> dict[str, Any]:
    """Remove the files of all unwanted stages, those that earlier requests left too."""
    return _remove(record, _paths(record, _UNWANTED))


def remove_but_left(record: Record) -> dict[str, Any]:
    """Remove the files of unwanted stages, but those that a request left on purpose."""
    return _remove(record, _paths(record, f"{_UNWANTED} AND request IS NULL"))


def left(record: Record) -> dict[str, int]:
    """Return path -> request of the files that requests left and that exist."""
    rows = record.ledger.rows("SELECT path, request FROM artefacts WHERE request IS NOT NULL ORDER BY path")
    found = {str(record.folder.resolve() / path): int(request) for path, request in rows}
    return {path: request for path, request in found.items() if Path(path).exists()}


def settle(record: Record) -> tuple[str, ...]:
    """Remove what requests left; return the paths of what was there (see `Record.settle`)."""
    rows = _paths(record, _LEFT)
    return tuple(_remove(record, rows)["artefacts_unlinked"]) if rows else ()


def _remove(record: Record, rows: dict[str, str]) -> dict[str, Any]:
    absent = _absent(record, rows)
    found = sorted(set(rows.values()) - set(absent))
    were_left = rows.keys() & _paths(record, _LEFT).keys()
    for path in rows.values():
        erase(Path(path))
    with record.ledger.writing("artefacts"):
        record.ledger.change_many("DELETE FROM artefacts WHERE path = ?", ((stored,) for stored in rows))
        if were_left:
            record.ledger.append_event("settled", artefacts=len(were_left))
    return {"artefacts_unlinked": found, "absent": absent}


def _absent(record: Record, rows: dict[str, str]) -> list[str]:
    """Return which files somebody else removed; noted before any is removed here, for a rerun after a crash."""
    noted = dict(record.ledger.rows("SELECT path, kind FROM artefacts WHERE kind IN ('absent', 'unlinking')"))
    new = {stored: "unlinking" if Path(path).exists() else "absent" for stored, path in rows.items()}
    if new.keys() - noted.keys():
        with record.ledger.writing("absent"):
            for stored in new.keys() - noted.keys():
                record.ledger.change("UPDATE artefacts SET kind = ? WHERE path = ?", (new[stored], stored))
    return sorted(path for stored, path in rows.items() if (new | noted)[stored] == "absent")


def _leave(record: Record, number: int) -> dict[str, Any]:
    """Register the files of unwanted stages with the request that leaves them, and forget those that are gone."""
    rows = _paths(record, f"{_UNWANTED} AND request IS NULL")
    gone = [stored for stored, path in _paths(record, _UNWANTED).items() if not Path(path).exists()]
    absent = sorted(path for stored, path in rows.items() if stored in gone)
    with record.ledger.writing("artefacts"):
        record.ledger.change_many("DELETE FROM artefacts WHERE path = ?", ((stored,) for stored in gone))
        record.ledger.change(f"UPDATE artefacts SET request = ? WHERE {_UNWANTED} AND request IS NULL", (number,))
        if len(rows) > len(absent):
            record.ledger.append_event("left", request=number, artefacts=len(rows) - len(absent))
    return {"artefacts_left": sorted(left(record)), "absent": absent}


def _paths(record: Record, condition: str) -> dict[str, str]:
    """Return stored path -> path of the artefacts that meet a condition."""
    home = record.folder.resolve()
    return {path: str(home / path) for (path,) in record.ledger.rows(f"SELECT path FROM artefacts WHERE {condition}")}
