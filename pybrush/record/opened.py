"""A record that a callback opens when it is asked for, and keeps open."""

from __future__ import annotations

import os
from pathlib import Path

from pybrush.errors import RecordError
from pybrush.record.record import Record
from pybrush.record.secret import KeySource


class Opened:
    """The record in a folder, opened once for each ledger file and process."""

    def __init__(self) -> None:
        self._held: tuple[tuple[int, int], Record] | None = None

    def of(self, folder: Path, key: KeySource) -> Record | None:
        """Return the record, or None where there is none yet, or only one that was never finished."""
        ledger = folder / "ledger.sqlite"
        if not ledger.is_file():
            return None
        here = ledger.stat().st_ino, os.getpid()  # a connection must not cross a fork
        if self._held is None or self._held[0] != here:
            try:
                self._held = here, Record.open(folder, key)
            except RecordError as error:
                if type(error) is not RecordError:
                    raise
                return None
        return self._held[1]
