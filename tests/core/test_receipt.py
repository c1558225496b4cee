"""Proof of an erasure: the chain of events computed again from the ledger alone, and what opens a commitment."""

import json
import sqlite3
import stat
from contextlib import closing

import numpy as np
import pytest

from pybrush.errors import CorruptRecordError, RecordError
from pybrush.record import Record
from pybrush.record.resolve import Wish
from tests import reference
from tests.core import format_reader as reader
from tests.core.test_fit_and_forget import KEY, by_ids, data, fit, unlearn

IDS = [f"person-{i:012d}" for i in range(40)]
SUBJECTS = [[f"subject-{i % 8}"] for i in range(40)]


@pytest.fixture
def served(tmp_path):
    """A record, and the results of three requests on it: by id, by person, and of one row."""
    fit(tmp_path / "a", data(), IDS, SUBJECTS)[0].record.close()
    asks = [
        by_ids([IDS[3], IDS[17]]),
        lambda record: Wish(subjects=record.names.subjects(["subject-4"])),
        by_ids([IDS[39]]),
    ]
    results = [unlearn(tmp_path / "a", data(), ask, IDS, SUBJECTS) for ask in asks]
    return tmp_path / "a", results


STRUCK = [[3, 17], [i for i in range(40) if i % 8 == 4], [39]]
"""Positions of the rows that each request struck."""


def body_of(positions):
    x, y = data()
    rows = [
        (reader.pseudonym(KEY, IDS[i]), reader.content_digest(KEY, reader.encode((x[i], y[i]))), 1) for i in positions
    ]
    return reader.row_bytes(sorted(rows))


def test_after_sealed_requests_the_chain_is_computed_again_from_the_ledger_alone(served):
    folder, results = served
    with closing(sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)) as ledger:
        events = ledger.execute("SELECT number, kind, time, body, digest FROM events ORDER BY number").fetchall()
        commitments = ledger.execute("SELECT commitment FROM requests ORDER BY number").fetchall()
        assert ledger.execute("SELECT count(*) FROM salts").fetchone() == (0,)
    previous = bytes(32)
    for place, (number, kind, time, body, digest) in enumerate(events, start=1):
        previous = reader.event_digest(previous, number, kind, time, body)
        assert (number, digest) == (place, previous)
    kinds = [kind for _, kind, *_ in events]
    assert kinds == ["planned", "fitted", *["accepted", "committed", "sealed"] * 3]
    told = [json.loads(body)["commitment"] for _, kind, _, body, _ in events if kind == "accepted"]
    for result, (commitment,), text, positions in zip(results, commitments, told, STRUCK, strict=True):
        opened = reader.commitment(bytes.fromhex(result.salt), body_of(positions))
        assert opened == commitment == bytes.fromhex(text)
        assert (
            reader.commitment(bytes.fromhex(results[0].salt), body_of(positions)) != commitment or result is results[0]
        )


def test_a_receipt_tells_of_which_request_it_is_and_whose_rows_it_struck(served, tmp_path):
    folder, results = served
    for result, positions in zip(results, STRUCK, strict=True):
        path = result.write_receipt(tmp_path / "deep" / "receipt.json")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with closing(Record.open(folder, KEY)) as record:
            receipt, request = record.check_receipt(path), record.requests[result.request - 1]
            assert (receipt.request, receipt.state, receipt.rows) == (result.request, "sealed", len(positions))
            assert (receipt.accepted, receipt.sealed) == (request.accepted, request.sealed)
            found = receipt.holds(record.names.samples(IDS))
            assert np.flatnonzero(found).tolist() == sorted(positions)
            assert "names" not in repr(receipt)


def test_a_receipt_is_checked_without_the_key_and_stands_nowhere_in_the_record(served, tmp_path, monkeypatch):
    folder, results = served
    path = results[0].write_receipt(tmp_path / "receipt.json")
    values = json.loads(path.read_bytes())
    with closing(Record.open(folder)) as record:
        assert record.namer is None and record.check_receipt(path).request == 1
    assert reference.files_holding(folder, [bytes.fromhex(values["salt"]), bytes.fromhex(values["rows"])]) == []
    page = results[0].report(tmp_path / "page.html").read_text()
    assert (
        values["salt"] not in page and values["rows"][:32] not in page and values["rows"][:32] not in repr(results[0])
    )


CHANGES = {
    "another request": lambda values: {**values, "request": 2},
    "no request": lambda values: {**values, "request": 99},
    "another salt": lambda values: {**values, "salt": "00" * 16},
    "a row less": lambda values: {**values, "rows": values["rows"][80:]},
    "a row more": lambda values: {**values, "rows": values["rows"] + "00" * 40},
    "another row": lambda values: {**values, "rows": "00" + values["rows"][2:]},
    "a row cut short": lambda values: {**values, "rows": values["rows"][:-2]},
    "no rows": lambda values: {"request": 1, "salt": values["salt"]},
    "no hexadecimal": lambda values: {**values, "salt": "xx"},
    "no object": lambda values: [],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_receipt_that_was_changed_proves_nothing(change, served, tmp_path):
    folder, results = served
    path = results[0].write_receipt(tmp_path / "receipt.json")
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    with closing(Record.open(folder, KEY)) as record, pytest.raises(RecordError, match=r"receipt\.json (opens|is not)"):
        record.check_receipt(path)


def test_a_receipt_says_nothing_about_a_chain_that_was_changed(served, tmp_path):
    folder, results = served
    path = results[0].write_receipt(tmp_path / "receipt.json")
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("UPDATE events SET time = '2001-01-01T00:00:00Z' WHERE kind = 'sealed'")
    with closing(Record.open(folder, KEY)) as record, pytest.raises(CorruptRecordError, match="event"):
        record.check_receipt(path)


def test_there_is_no_receipt_of_what_was_not_a_request(served, tmp_path):
    folder, _ = served
    again = unlearn(folder, data(), by_ids([IDS[3]]), IDS, SUBJECTS)
    foretold = unlearn(folder, data(), by_ids([IDS[0]]), IDS, SUBJECTS, dry_run=True)
    for result in (again, foretold):
        with pytest.raises(RecordError, match="no receipt of this result"):
            result.write_receipt(tmp_path / "receipt.json")
    assert not (tmp_path / "receipt.json").exists()
