"""Receipts: what opens the commitment of a sealed request, long after the record has forgotten what it named.

The record keeps a salted hash of each request in its chain of events. Whoever kept the salt and the struck names, which
`result.write_receipt` writes, can show which request a line of the chain stands for, and with the record's key whose
rows it struck. Guide: docs/erasure_request.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pybrush.change import Change
from pybrush.errors import RecordError
from pybrush.hashing import chained
from pybrush.names import Names, among
from pybrush.record.ledger import check_events
from pybrush.record.record import Record


@dataclass(frozen=True)
class Receipt:
    """A receipt that was found to be of a request of the record.

    Attributes:
        request: number of the request.
        state: of the request, such as "sealed".
        rows: rows that it forgot, amended and admitted, copies counted.
        accepted: time in UTC. sealed: time, or None.
        names: the pseudonyms of the rows that it forgot, shape (n, 16), dtype uint8.
    """

    request: int
    state: str
    rows: int
    accepted: str
    sealed: str | None
    names: Names = field(repr=False)

    def holds(self, names: Names) -> NDArray[np.bool_]:
        """Return for each pseudonym whether the request forgot it, shape (n,).

        Args:
            names: such as `record.names.samples(ids)`, shape (n, 16).
        """
        return among(names, self.names)


def check_receipt(record: Record, path: Path) -> Receipt:
    """Check a receipt against the chain of events (see `Record.check_receipt`)."""
    number, salt, parts = _read(path)
    check_events(record.ledger)
    events = record.ledger.rows("SELECT body FROM events WHERE kind = 'accepted'")
    told = {event["request"]: event["commitment"] for event in (json.loads(text) for (text,) in events)}
    if told.get(number) != chained("pybrush-commit", salt, *parts).hex():
        raise RecordError(
            f"{path} opens no request of {record.folder}: it was changed, or it is another record's receipt."
        )
    request = next(request for request in record.requests if request.number == number)
    change = Change.of_committed(*parts)
    forgotten = change.strikes.names[~among(change.strikes.names, change.additions.names)]
    return Receipt(number, request.state, request.rows, request.accepted, request.sealed, forgotten)


def _read(path: Path) -> tuple[int, bytes, tuple[bytes, ...]]:
    """Return the number of the request, the salt and the parts that a receipt names."""
    try:
        values = json.loads(path.read_bytes())
        parts = tuple(map(bytes.fromhex, (values["rows"], *values["added"])))
        return int(values["request"]), bytes.fromhex(values["salt"]), parts
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{path} is not a receipt as result.write_receipt() writes it ({error!r}).") from error
