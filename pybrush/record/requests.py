"""The requests of a record, as the ledger tells of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pybrush.record.files import entries
from pybrush.record.ledger import Ledger


@dataclass(frozen=True)
class RequestLine:
    """What is told of a request wherever one is told of.

    Attributes:
        number: counted from 1.
        state: "pending", "committed", "collected", "sealed" or "cancelled".
        method: such as "rebuild".
        rows: rows it strikes, copies counted.
        accepted: time in UTC. committed: time, or None. sealed: time, or None.
    """

    number: int
    state: str
    method: str
    rows: int
    accepted: str
    committed: str | None
    sealed: str | None


@dataclass(frozen=True)
class RequestInfo(RequestLine):
    """One request, as the ledger tells it.

    Attributes:
        outcome: guarantee and cost, plain values; empty before the commit.
    """

    outcome: Mapping[str, Any] = field(default_factory=dict)


def read_requests(ledger: Ledger, folder: Path) -> tuple[RequestInfo, ...]:
    """Return all requests of the record in a folder, in the order in which they came.

    A sealed one that still has its pending file counts as collected: its last step on disk is missing.
    """
    rows = ledger.rows(
        "SELECT number, state, method, rows, accepted, committed, sealed, outcome FROM requests ORDER BY number"
    )
    named = {path.name for path in entries(folder / "pending")}
    return tuple(
        RequestInfo(
            number, "collected" if state == "sealed" and str(number) in named else state,
            method, struck, accepted, committed, sealed, json.loads(outcome or "{}"),
        )
        for number, state, method, struck, accepted, committed, sealed, outcome in rows
    )  # fmt: skip
