"""Every way to say what is to be forgotten means the same rows, and what means none for certain is refused."""

from dataclasses import replace

import numpy as np
import pytest

from pybrush.errors import (
    ConfigurationError,
    ForgetError,
    GuaranteeError,
    UnknownSamplesError,
    UnsupportedError,
)
from pybrush.guarantee import Budget, Exact
from tests.conformance.harness import Setup, assert_same_record, names_of, opened, table
from tests.untouched import untouched

SMALL = Setup(network="dense", optimizer="plain", slices=1, epochs=1, named="content")
IDS = replace(SMALL, named="ids")
OWNED = replace(SMALL, has_subjects=True)
DATED = replace(SMALL, has_days=True)
ROWS = table()

WAYS = {
    "rows": (SMALL, lambda _, __: {"rows": [5, 3, 4]}, [3, 4, 5]),
    "rows, repeated, as an array": (SMALL, lambda _, __: {"rows": np.array([3, 3, 20])}, [3, 20]),
    "its own data": (SMALL, lambda training, _: {"forget": training.part(3, 6)}, [3, 4, 5]),
    "other data of equal content": (SMALL, lambda _, framework: {"forget": framework.data(ROWS.at([20, 3]))}, [3, 20]),
    "its own data, with ids": (IDS, lambda training, _: {"forget": training.part(3, 6)}, [3, 4, 5]),
    "equal content, with ids": (IDS, lambda _, framework: {"forget": framework.data(ROWS.at([20, 3]))}, [3, 20]),
    "ids": (IDS, lambda _, __: {"ids": [ROWS.ids[20], ROWS.ids[3], ROWS.ids[3]]}, [3, 20]),
    "rows, with ids": (IDS, lambda _, __: {"rows": (20, 3)}, [3, 20]),
    "a subject": (OWNED, lambda _, __: {"subjects": [ROWS.subjects[3]]}, [3, 14, 25, 36]),
    "rows of a subject": (
        OWNED,
        lambda _, framework: {"forget": framework.data(ROWS.at([3, 14])), "subjects": [ROWS.subjects[3]]},
        [3, 14],
    ),
    "a date": (DATED, lambda _, __: {"before": "2026-01-04"}, [0, 1, 2]),
    "positions": (replace(SMALL, named="position"), lambda _, __: {"rows": [3, 20]}, [3, 20]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_request_means_the_same_rows_however_they_are_given(way, framework, shelf, tmp_path):
    setup, ask, gone = WAYS[way]
    shelf.copy(tmp_path, setup)
    kept = dict(zip(names_by_row(framework, shelf, setup), range(len(ROWS)), strict=True))
    training = framework.training(tmp_path, setup.later(), ROWS, weights=3)
    result = training.unlearn(**ask(training, framework))
    assert result.forgotten == len(gone)
    assert {kept[name] for name in names_of(tmp_path)} == set(range(len(ROWS))) - set(gone)
    with opened(tmp_path) as record:
        assert record.verify().is_clean


def names_by_row(framework, shelf, setup):
    """Return the pseudonym of each row."""
    training = framework.training(shelf.fitted(setup), setup, ROWS)
    with opened(shelf.fitted(setup)) as record:
        return [name.tobytes() for name in training.roster(record.names).names]


def test_deleting_rows_and_calling_missing_is_a_request(framework, shelf, tmp_path):
    shelf.copy(tmp_path, SMALL)
    left = ROWS.without([3, 20])
    result = framework.training(tmp_path, SMALL.later(), left).unlearn(missing=True)
    assert result.forgotten == 2
    assert_same_record(tmp_path, shelf.fitted(SMALL, left))


REFUSED = {
    "nothing": (SMALL, {}, ForgetError, "say in one way"),
    "two ways": (SMALL, {"rows": [1], "missing": True}, ForgetError, "say in one way"),
    "rows and people": (OWNED, {"rows": [1], "subjects": ["x"]}, ForgetError, "say in one way"),
    "the queue and rows": (SMALL, {"queued": True, "rows": [1]}, ForgetError, "say in one way"),
    "one id without a list": (IDS, {"ids": ROWS.ids[3]}, ForgetError, "takes a list"),
    "one person without a list": (OWNED, {"subjects": "alice"}, ForgetError, "takes a list"),
    "no rows": (SMALL, {"rows": []}, ForgetError, "empty"),
    "no ids": (IDS, {"ids": []}, ForgetError, "empty"),
    "rows that are not there": (SMALL, {"rows": [3, 44]}, ForgetError, "1 positions outside of 0..43"),
    "rows from the end": (SMALL, {"rows": [-1]}, ForgetError, "outside"),
    "a mask": (SMALL, {"rows": [True] + [False] * 43}, ForgetError, "whole numbers"),
    "fractions": (SMALL, {"rows": [2.5]}, ForgetError, "whole numbers"),
    "unknown ids": (IDS, {"ids": ["nobody", ROWS.ids[3]]}, UnknownSamplesError, "1 of 2 samples"),
    "unknown people": (OWNED, {"subjects": ["nobody"]}, UnknownSamplesError, "1 of 1 subjects"),
    "ids of a record by content": (SMALL, {"ids": [ROWS.ids[3]]}, ForgetError, "by content; pass rows="),
    "all rows": (SMALL, {"rows": range(44)}, ForgetError, "nothing is left"),
    "other duplicates": (SMALL, {"rows": [1], "duplicates": "keep"}, ConfigurationError, "keep"),
    "another purge": (SMALL, {"rows": [1], "purge": "keep"}, ConfigurationError, "keep"),
    "a method that is not there": (SMALL, {"rows": [1], "method": "scrub"}, GuaranteeError, "scrub"),
    "a guarantee that is not there": (SMALL, {"rows": [1], "guarantee": "certified"}, GuaranteeError, "certified"),
    "retain": (SMALL, {"rows": [1], "retain": ROWS}, UnsupportedError, "retain="),
    "audit": (SMALL, {"rows": [1], "audit": "cheap"}, UnsupportedError, "audit="),
    "accept_changes": (SMALL, {"rows": [1], "accept_changes": ("source:Net",)}, UnsupportedError, "accept_changes="),
    "rebuild_all": (SMALL, {"rows": [1], "rebuild_all": True}, UnsupportedError, "rebuild_all="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_as_asked_is_refused_and_touches_nothing(name, framework, shelf, tmp_path):
    setup, ask, error, match = REFUSED[name]
    assert_refused(framework, shelf, tmp_path, setup, lambda _: ask, error, match)


@pytest.mark.parametrize("setup", [SMALL, IDS], ids=["by content", "by ids"])
def test_rows_of_unknown_content_are_counted_and_refused(setup, framework, shelf, tmp_path):
    strange = ROWS.at([1, 2, 3]).relabelled([1, 2])
    ask = {"forget": framework.data(strange)}
    assert_refused(framework, shelf, tmp_path, setup, lambda _: ask, UnknownSamplesError, "2 of 3 samples")


def assert_refused(framework, shelf, folder, setup, ask, error, match):
    shelf.copy(folder, setup)
    training = framework.training(folder, setup.later(), ROWS)
    with untouched(folder, read=training.snapshot), pytest.raises(error, match=match):
        training.unlearn(**ask(training))
    with opened(folder) as record:
        assert record.requests == ()


# Equal rows


def test_one_of_three_equal_rows_leaves_two_also_where_it_stays_in_the_file(framework, shelf, tmp_path):
    rows = ROWS.with_equal([2, 7, 30])
    shelf.copy(tmp_path, SMALL, rows)
    training = framework.training(tmp_path, SMALL.later(), rows)
    assert training.unlearn(rows=[2], dry_run=True).audit["equal_rows_left"] == 2
    result = training.unlearn(rows=[2])
    assert (result.forgotten, result.audit["equal_rows_left"]) == (1, 2)
    assert any("2 rows equal to a forgotten one stay" in note for note in result.notes)
    assert_same_record(tmp_path, shelf.fitted(SMALL, rows.without([2])))


@pytest.mark.parametrize("is_there", [True, False], ids=["still in the file", "gone from the file"])
def test_a_second_of_three_equal_rows_leaves_one_in_another_process(is_there, framework, elsewhere, shelf, tmp_path):
    rows = ROWS.with_equal([2, 7, 30])
    shelf.copy(tmp_path, SMALL, rows)
    framework.training(tmp_path, SMALL.later(), rows).unlearn(rows=[2])
    later, position = (rows, 7) if is_there else (rows.without([2]), 6)
    order = {"folder": tmp_path, "setup": SMALL.later(), "rows": later, "asked": {"rows": [position]}}
    assert elsewhere.do("unlearn", **order)["forgotten"] == 1
    assert_same_record(tmp_path, shelf.fitted(SMALL, rows.without([2, 7])))


def test_duplicates_are_forgotten_with_the_row_where_that_is_asked(framework, shelf, tmp_path):
    rows = ROWS.with_equal([2, 7, 30])
    shelf.copy(tmp_path, SMALL, rows)
    result = framework.training(tmp_path, SMALL.later(), rows).unlearn(rows=[7], duplicates="forget")
    assert result.forgotten == 3
    assert_same_record(tmp_path, shelf.fitted(SMALL, rows.without([2, 7, 30])))


def test_a_subject_is_named_where_equal_rows_are_of_several_people(framework, shelf, tmp_path):
    rows = ROWS.with_equal([2, 7])
    shelf.copy(tmp_path, OWNED, rows)
    training = framework.training(tmp_path, OWNED.later(), rows)
    with pytest.raises(ForgetError, match="subjects="):
        training.unlearn(forget=framework.data(rows.at([2])))
    assert training.unlearn(forget=framework.data(rows.at([2])), subjects=[rows.subjects[2]]).forgotten == 1
    assert_same_record(tmp_path, shelf.fitted(OWNED, rows.without([2])))


# What comes back


def test_a_repeated_request_has_nothing_left_to_do_and_says_so(framework, shelf, tmp_path):
    shelf.copy(tmp_path, SMALL)
    training = framework.training(tmp_path, SMALL, ROWS)
    training.fit()
    first = training.unlearn(rows=[3, 20])
    with untouched(tmp_path, read=training.snapshot):
        again = training.unlearn(rows=[3, 20])
    assert (first.request, again.request, again.method, again.forgotten) == (1, 0, "none", 0)
    assert again.notes[0] == "all 2 were forgotten before; nothing was left to do"
    more = training.unlearn(rows=[3, 5])
    assert more.forgotten == 1 and "1 rows were not in the model any more" in more.notes[0]


def test_a_dry_run_says_what_then_happens_and_touches_nothing(framework, shelf, tmp_path):
    shelf.copy(tmp_path, SMALL)
    training = framework.training(tmp_path, SMALL.later(), ROWS)
    with untouched(tmp_path, read=training.snapshot):
        foretold = training.unlearn(rows=[3], dry_run=True)
    result = training.unlearn(rows=[3])
    assert foretold.model is None and foretold.request == 0
    assert (foretold.forgotten, foretold.cost.visits) == (result.forgotten, result.cost.visits)
    assert foretold.cost.stages_rebuilt == result.cost.stages_rebuilt == 1
    assert foretold.notes[0] == "dry run: nothing was touched"


@pytest.mark.parametrize("guarantee", ["exact", Budget(1.0, 1e-5)], ids=["exact", "a budget"])
def test_a_rebuild_meets_every_guarantee(guarantee, framework, shelf, tmp_path):
    shelf.copy(tmp_path, SMALL)
    result = framework.training(tmp_path, SMALL.later(), ROWS).unlearn(rows=[3], guarantee=guarantee)
    assert isinstance(result.guarantee, Exact) and result.method == "rebuild"


def test_a_full_retrain_is_done_where_it_is_asked_for(framework, shelf, tmp_path):
    whole = replace(SMALL, shards=1)
    shelf.copy(tmp_path, whole)
    training = framework.training(tmp_path, whole.later(), ROWS)
    with untouched(tmp_path, read=training.snapshot), pytest.raises(GuaranteeError, match="guarantee='exact'"):
        training.unlearn(rows=[3, 20])
    assert "this is a full retrain" in training.unlearn(rows=[3, 20], guarantee="exact", dry_run=True).notes[1]
    result = training.unlearn(rows=[3, 20], guarantee="exact")
    assert result.model is training.model and result.cost.stages_rebuilt == result.cost.stages == 1
    assert_same_record(tmp_path, shelf.fitted(whole, ROWS.without([3, 20])))
