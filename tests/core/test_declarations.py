"""What the user declares of the assumptions: kept in the ledger, shown in every later guarantee."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pybrush import forget
from pybrush.errors import ConfigurationError, CorruptRecordError
from pybrush.record import Record
from tests.core import format_reader as reader
from tests.core.numpy_learner import NumpyLearner, roster_of, wish
from tests.core.test_fit_and_forget import by_ids, data, fit, unlearn

IDS = [f"person-{i:012d}" for i in range(20)]
WORDS = "weights were random"


@pytest.fixture
def folder(tmp_path):
    """A fitted record of twenty ids."""
    fitted, _ = fit(tmp_path / "a", data(20), IDS)
    fitted.record.close()
    return tmp_path / "a"


def declare(folder, *pairs):
    with closing(Record.open(folder)) as record:  # without the key: no name is matched
        for name, statement in pairs:
            record.declare(name, statement)


def assumptions(folder, **more):
    """Return name -> assumption of a request that strikes one row, or would."""
    result = unlearn(folder, data(20), by_ids([IDS[3]]), IDS, **more)
    return {assumption.name: assumption for assumption in result.guarantee.assumptions}


def rows_of(folder, query):
    with closing(sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)) as connection:
        return connection.execute(query).fetchall()


def test_a_known_assumption_that_is_declared_holds_with_the_users_words_behind_its_statement(folder):
    before = assumptions(folder, dry_run=True)
    assert {one.holds for one in before.values() if one.how == "declared"} == {"unknown"}
    declare(folder, ("initial-state", WORDS))
    after = assumptions(folder)
    changed = after["initial-state"]
    assert (changed.how, changed.holds) == ("declared", "yes")
    assert changed.statement == f"{before['initial-state'].statement}; declared: {WORDS}"
    assert after | {"initial-state": None} == before | {"initial-state": None}
    assert list(after) == list(before)


def test_an_assumption_of_the_users_own_stands_at_the_end_in_their_words(folder):
    before = assumptions(folder, dry_run=True)
    declare(folder, ("consent", "all rows came with consent (é)"))
    after = assumptions(folder)
    assert list(after) == [*before, "consent"]
    own = after["consent"]
    assert (own.statement, own.how, own.holds) == ("all rows came with consent (é)", "declared", "yes")


def test_the_outcome_of_the_request_and_its_release_say_what_the_result_says(folder):
    declare(folder, ("consent", "given"))
    assert "consent" in assumptions(folder)
    ((outcome,),) = rows_of(folder, "SELECT outcome FROM requests")
    ((released,),) = rows_of(folder, "SELECT guarantee FROM releases")
    for guarantee in (json.loads(outcome)["guarantee"], json.loads(released)):
        last = guarantee["assumptions"][-1]
        assert last == {"name": "consent", "statement": "given", "how": "declared", "holds": "yes"}


def test_declaring_again_replaces(folder):
    declare(folder, ("initial-state", "a first guess"), ("initial-state", WORDS), ("consent", "given"))
    found = assumptions(folder)["initial-state"].statement
    assert found.endswith(WORDS) and "guess" not in found
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    rows = rows_of(folder, "SELECT name, statement, since FROM declarations ORDER BY name")
    assert [row[:2] for row in rows] == [("consent", "given"), ("initial-state", WORDS)]
    assert {row[2] for row in rows} <= {today, datetime.now(UTC).strftime("%Y-%m-%d")}
    assert b"a first guess" not in (folder / "ledger.sqlite").read_bytes()  # the request rewrote the file


def test_each_declaration_is_a_chained_event_without_its_words(folder):
    declare(folder, ("consent", "given"), ("consent", "asked in writing"))
    record = reader.read_record(folder)
    assert reader.defects(record) == []
    events = [event for event in record["tables"]["events"] if event["kind"] == "declared"]
    bodies = [json.loads(event["body"]) for event in events]
    assert [body["declarations"] for body in bodies] == [1, 1]
    assert all(body.keys() == {"commitment", "declarations"} for body in bodies)
    (row,) = record["tables"]["declarations"]
    assert bodies[1]["commitment"] == reader.declaration_commitment(row["salt"], "consent", "asked in writing").hex()
    with closing(Record.open(folder)) as opened:
        assert opened.verify().is_clean


def test_equal_words_have_other_commitments_each_time(folder):
    declare(folder, ("consent", "given"), ("consent", "given"))
    bodies = rows_of(folder, "SELECT body FROM events WHERE kind = 'declared'")
    assert len(set(bodies)) == 2


@pytest.mark.parametrize(
    "statement", ["", "   ", "x" * 501, "two\nlines", "\x1b[31m", "\ud800", None, 7], ids=repr,
)  # fmt: skip
def test_a_statement_that_says_nothing_or_too_much_is_refused_and_nothing_is_written(folder, statement):
    before = (folder / "ledger.sqlite").read_bytes()
    with pytest.raises(ConfigurationError, match="1 to 500"):
        declare(folder, ("initial-state", statement))
    assert (folder / "ledger.sqlite").read_bytes() == before


@pytest.mark.parametrize("name", ["", " ", "n" * 201, "a\tb", None])
def test_a_name_that_is_none_is_refused(folder, name):
    with pytest.raises(ConfigurationError, match="1 to 200"):
        declare(folder, (name, WORDS))


def test_the_longest_name_and_statement_are_taken(folder):
    declare(folder, ("n" * 200, "s" * 500))
    assert assumptions(folder)["n" * 200].statement == "s" * 500


def test_no_assumption_that_is_proved_can_be_declared_and_every_other_can(folder):
    found = assumptions(folder, dry_run=True)
    proved = [name for name, one in found.items() if one.how == "proved"]
    assert proved == ["placement"]
    with pytest.raises(ConfigurationError, match="by construction"):
        declare(folder, ("placement", WORDS))
    declare(folder, *((name, WORDS) for name in found if name not in proved))
    assert {one.holds for one in assumptions(folder).values()} == {"yes"}


DAMAGES = {
    "other words": "UPDATE declarations SET statement = 'never asked'",
    "another name": "UPDATE declarations SET name = 'preprocessing'",
    "one taken out": "DELETE FROM declarations",
    "one put in": "INSERT INTO declarations VALUES ('x', 'y', '2026-01-31', zeroblob(16))",
}


@pytest.mark.parametrize("statement", DAMAGES.values(), ids=DAMAGES.keys())
def test_verify_finds_declarations_that_were_not_made(folder, statement):
    declare(folder, ("consent", "given"))
    rows_of(folder, statement)
    with closing(Record.open(folder)) as record, pytest.raises(CorruptRecordError, match="declarations"):
        record.verify()


def test_what_an_adapter_found_is_an_assumption_until_it_is_declared(tmp_path):
    rows = data(20)
    found = {"name": "preprocessing:Scaler", "statement": "fitted on all rows"}
    asked = replace(wish(), settings={"assumptions": [found]})
    learner = NumpyLearner([0.1, -0.2, 0.3])
    forget.fit(tmp_path / "a", asked, learner, rows, roster_of(rows, IDS)).record.close()
    told = assumptions(tmp_path / "a", dry_run=True)["preprocessing:Scaler"]
    assert (told.statement, told.how, told.holds) == ("fitted on all rows", "declared", "unknown")
    declare(tmp_path / "a", ("preprocessing:Scaler", "fitted on public rows"))
    told = assumptions(tmp_path / "a")["preprocessing:Scaler"]
    assert (told.statement, told.holds) == ("fitted on all rows; declared: fitted on public rows", "yes")


def test_a_record_of_the_same_data_with_other_findings_has_the_same_keys(tmp_path):
    rows, keys = data(20), []
    for place, settings in (("a", {}), ("b", {"assumptions": [{"name": "n", "statement": "s"}]})):
        learner = NumpyLearner([0.1, -0.2, 0.3])
        asked = replace(wish(), settings=settings)
        with closing(forget.fit(tmp_path / place, asked, learner, rows, roster_of(rows, IDS)).record) as record:
            keys.append(record.store.keys())
    assert keys[0] == keys[1]
