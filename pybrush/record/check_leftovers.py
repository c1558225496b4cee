"""Whether what a request takes is gone: names in the record's files, and files of user code."""

from __future__ import annotations

import json
from pathlib import Path

from pybrush.errors import ErasureError
from pybrush.record.collect import check_gone, files_but, gone_names
from pybrush.record.record import Record
from pybrush.record.samples import read_samples
from pybrush.record.transaction import OpenRequest, open_request, pending_path, unfinished


def check_open_request(record: Record) -> None:
    """Look that an unfinished request can be finished.

    Raises:
        CorruptRecordError: where its pending file is missing or another's.
    """
    _open_request(record)


def check_files(record: Record) -> None:
    """Look that after the commit of a request no file holds its names; every file of the record is read.

    The ledger itself may hold them in free pages until it is rewritten.

    Raises:
        ErasureError: naming the files that do.
    """
    request = _open_request(record)
    if request is not None and request.state != "pending":
        files = files_but(record, pending_path(record, request.number), record.ledger.path)
        check_gone(files, gone_names(read_samples(record.ledger), request.change.strikes))


def _open_request(record: Record) -> OpenRequest | None:
    """Return the unfinished request, None where there is none or only its seal is missing."""
    waiting = unfinished(record)
    if not waiting or (waiting[0].state == "collected" and not pending_path(record, waiting[0].number).is_file()):
        return None
    return open_request(record)


def check_artefacts(record: Record, wanted: set[str]) -> int:
    """Look that no registered file outlived its stage; return how many of the others exist.

    Raises:
        ErasureError: naming those that did.
    """
    left = [path for path, stage in record.artefacts().items() if stage not in wanted and Path(path).exists()]
    if left:
        raise ErasureError(
            f"files of stages that are forgotten still exist: {json.dumps(left)}. Delete them; record.settle() removes "
            "those that a request with purge='list' left."
        )
    return sum(Path(path).exists() for path in record.artefacts())
