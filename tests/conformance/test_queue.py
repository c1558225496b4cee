"""What waits in the queue is served by one request, with the bits of a fit on what the data then holds."""

from dataclasses import replace

import pytest

from pybrush.errors import ContentError, RecordError
from tests.conformance.harness import Setup, assert_same_record, opened, table
from tests.untouched import untouched

DATED = Setup(network="dense", optimizer="momentum", has_subjects=True, has_days=True)
ROWS = table()
LATE, FIXED, GONE = (40, 41, 42, 43), (2, 13), (0, 1, 3, 5, 16, 20, 27, 38)
BEFORE = ROWS.relabelled(FIXED).without(LATE)
"""The rows as they were at the fit: four came later, two had wrong labels."""

CALLS = [
    ("enqueue", {"ids": [ROWS.ids[3], ROWS.ids[20]]}),
    ("enqueue", {"subjects": [ROWS.subjects[5]]}),
    ("enqueue", {"before": "2026-01-03"}),
    ("amend", {"ids": [ROWS.ids[row] for row in (2, 13, 3, 30)]}),
    ("admit", {}),
]


@pytest.mark.parametrize("setup", [DATED, replace(DATED, sequential=True)], ids=["shuffled", "in order"])
def test_one_request_forgets_amends_and_admits_what_another_process_enqueued(
    setup, framework, elsewhere, shelf, tmp_path
):
    shelf.copy(tmp_path, setup, BEFORE)
    assert elsewhere.do("on_record", folder=tmp_path, calls=CALLS) == [1, 2, 3, 4, 5]
    training = framework.training(tmp_path, setup.later(), ROWS, weights=2)
    with untouched(tmp_path, read=training.snapshot):
        foretold = training.unlearn(queued=True, dry_run=True)
    result = training.unlearn(queued=True)
    counts = (result.forgotten, result.amended, result.admitted)
    assert counts == (foretold.forgotten, foretold.amended, foretold.admitted) == (8, 2, 4)
    assert result.entries == foretold.entries == (1, 2, 3, 4, 5)
    with opened(tmp_path) as record:
        assert [(entry.state, entry.request) for entry in record.queue] == [("served", 1)] * 5
    assert_same_record(tmp_path, shelf.fitted(setup, ROWS.without(GONE)))


def test_a_request_for_the_queue_that_was_killed_is_finished_by_the_next_one(framework, elsewhere, shelf, tmp_path):
    shelf.copy(tmp_path, DATED, BEFORE)
    elsewhere.do("on_record", folder=tmp_path, calls=CALLS)
    order = {"folder": tmp_path, "setup": DATED.later(), "rows": ROWS, "asked": {"queued": True}}
    assert elsewhere.killed("unlearn", **order, switch={"place": "batch", "left": 5, "kills": True})
    with opened(tmp_path) as record:
        assert {(entry.state, entry.request) for entry in record.queue} == {("accepted", 1)}
    assert elsewhere.do("unlearn", **order)["forgotten"] == 8
    assert_same_record(tmp_path, shelf.fitted(DATED, ROWS.without(GONE)))


def test_what_is_withdrawn_stays_in_the_model_and_an_empty_queue_is_no_error(framework, elsewhere, shelf, tmp_path):
    shelf.copy(tmp_path, DATED)
    elsewhere.do("on_record", folder=tmp_path, calls=[*CALLS[:1], ("withdraw", {"entry": 1})])
    training = framework.training(tmp_path, DATED.later(), ROWS)
    result = training.unlearn(queued=True)
    assert (result.method, result.request, result.forgotten) == ("none", 0, 0)
    with opened(tmp_path) as record:
        assert [entry.state for entry in record.queue] == ["withdrawn"]
        with pytest.raises(RecordError, match="withdrawn"):
            record.withdraw(1)
    assert_same_record(tmp_path, shelf.fitted(DATED))


def test_a_request_that_names_something_else_leaves_the_queue_and_says_so(framework, elsewhere, shelf, tmp_path):
    shelf.copy(tmp_path, DATED)
    elsewhere.do("on_record", folder=tmp_path, calls=CALLS[:1])
    result = framework.training(tmp_path, DATED.later(), ROWS).unlearn(rows=[7])
    assert any("1 entry waits in the queue" in note for note in result.notes)
    with opened(tmp_path) as record:
        assert record.queue[0].state == "waiting" and not record.verify().is_clean


def test_rows_that_are_too_old_are_forgotten_at_once_and_none_is_no_error(framework, shelf, tmp_path):
    shelf.copy(tmp_path, DATED)
    training = framework.training(tmp_path, DATED.later(), ROWS)
    assert training.unlearn(before="2025-12-31").method == "none"
    assert training.unlearn(before="2026-01-03").forgotten == 2
    assert training.unlearn(before="2026-01-03").method == "none"
    assert_same_record(tmp_path, shelf.fitted(DATED, ROWS.without([0, 1])))


def test_labels_that_were_fixed_without_a_word_are_refused_and_the_message_names_amend(framework, shelf, tmp_path):
    shelf.copy(tmp_path, DATED, BEFORE)
    training = framework.training(tmp_path, DATED.later(), ROWS.without(LATE))
    with untouched(tmp_path, read=training.snapshot), pytest.raises(ContentError, match=r"record\.amend\(ids\)"):
        training.unlearn(rows=[3, 20])
    with opened(tmp_path) as record:
        assert record.requests == ()


def test_rows_that_were_forgotten_do_not_join_again(framework, elsewhere, shelf, tmp_path):
    shelf.copy(tmp_path, DATED)
    training = framework.training(tmp_path, DATED.later(), ROWS)
    training.unlearn(subjects=[ROWS.subjects[5]])
    elsewhere.do("on_record", folder=tmp_path, calls=[("admit", {})])
    result = training.unlearn(queued=True)
    assert (result.method, result.admitted) == ("none", 0)
    assert "no row of the data set is new (4 that are not recorded were forgotten)" in result.notes[0]
    assert_same_record(tmp_path, shelf.fitted(DATED, ROWS.without([5, 16, 27, 38])))


def test_rows_that_join_where_shards_had_too_few_are_trained(framework, shelf, tmp_path):
    few = BEFORE.at([0, 1, 2, 3])
    shelf.copy(tmp_path, DATED, few)
    with opened(tmp_path) as record:
        record.admit()
        record.amend([ROWS.ids[2]])
        before = len(record.graph())
    result = framework.training(tmp_path, DATED.later(), ROWS).unlearn(queued=True)
    assert (result.amended, result.admitted) == (1, 40)
    with opened(tmp_path) as record:
        assert len(record.graph()) > before
    assert_same_record(tmp_path, shelf.fitted(DATED))


def test_no_bit_depends_on_the_dates(framework, shelf):
    undated = replace(DATED, has_days=False)
    assert_same_record(shelf.fitted(DATED), shelf.fitted(undated))
