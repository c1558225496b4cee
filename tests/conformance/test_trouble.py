"""Errors, kills and calls that are made again: the user's objects are as before, and the bits those of a calm run."""

import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pybrush.errors import LockedError
from tests.conformance.harness import (
    SWITCH,
    Setup,
    TroubleError,
    assert_same_constituents,
    assert_same_record,
    opened,
    same_bits,
    table,
)
from tests.untouched import differences, untouched

SETUP, ROWS, GONE = Setup(optimizer="momentum", saves="the last"), table(), (3, 20)
LEFT = ROWS.without(GONE)

# Lightning's own, about a folder that an earlier fit of the same project wrote to.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

PLACES = [("begin", 1), ("begin", 2), ("batch", 1), ("batch", 8), ("epoch", 3), ("end", 2)]


def states_of(folder):
    with opened(folder) as record:
        return [request.state for request in record.requests]


# Errors


@pytest.mark.parametrize(("place", "time_"), PLACES)
def test_a_fit_that_failed_leaves_the_model_as_it_was_and_the_next_one_is_right(
    place, time_, framework, shelf, tmp_path
):
    training = framework.training(tmp_path, SETUP, ROWS)
    before = training.snapshot()
    SWITCH.set(place, time_)
    with pytest.raises(TroubleError):
        training.fit()
    assert differences(before, training.snapshot()) == []
    training.fit()
    assert_same_record(tmp_path, shelf.fitted(SETUP))
    with opened(tmp_path) as record:
        held = framework.constituents(record)
    assert same_bits(framework.weights(training.model), held[max(held)])


@pytest.mark.parametrize(("place", "time_"), PLACES)
def test_a_request_that_failed_leaves_the_model_as_it_was_and_the_next_call_finishes_it(
    place, time_, framework, shelf, tmp_path
):
    training = framework.training(tmp_path, SETUP, ROWS)
    training.fit()
    before = training.snapshot()
    SWITCH.set(place, time_)
    with pytest.raises(TroubleError):
        training.unlearn(rows=list(GONE))
    assert differences(before, training.snapshot()) == []
    assert states_of(tmp_path) == ["pending"]
    assert training.unlearn(rows=list(GONE)).request == 1
    assert_same_record(tmp_path, shelf.fitted(SETUP, LEFT))


def test_a_request_that_fails_again_names_both_ways_out_and_the_other_one_is_to_cancel(framework, shelf, tmp_path):
    shelf.copy(tmp_path, SETUP)
    training = framework.training(tmp_path, SETUP.later(), ROWS)
    for _ in range(2):
        SWITCH.set("batch", 1)
        with pytest.raises(TroubleError) as caught:
            training.unlearn(rows=list(GONE))
    assert "cancel(1)" in "".join(caught.value.__notes__)
    with opened(tmp_path) as record:
        assert "1: pending" in record.verify().pending[0]
        record.cancel(1)
        assert record.verify().is_clean
    assert states_of(tmp_path) == ["cancelled"]
    assert_same_record(tmp_path, shelf.fitted(SETUP))
    assert training.unlearn(rows=list(GONE)).request == 2
    assert_same_record(tmp_path, shelf.fitted(SETUP, LEFT))


# Kills


@pytest.mark.parametrize(("place", "time_"), [("begin", 1), ("batch", 9), ("epoch", 5), ("end", 3)])
def test_a_fit_that_was_killed_goes_on_and_ends_in_the_same_bits(place, time_, framework, elsewhere, shelf, tmp_path):
    order = {"folder": tmp_path, "setup": SETUP, "rows": ROWS}
    assert elsewhere.killed("fit", **order, switch={"place": place, "left": time_, "kills": True})
    training = framework.training(tmp_path, SETUP, ROWS, weights=6)
    training.fit()
    assert_same_record(tmp_path, shelf.fitted(SETUP))
    assert_same_constituents(framework, tmp_path, shelf.fitted(SETUP))


@pytest.mark.parametrize(
    ("place", "time_", "finish"),
    [("begin", 1, "fit"), ("batch", 7, "unlearn"), ("epoch", 3, "another request"), ("end", 1, "unlearn")],
)
def test_a_request_that_was_killed_is_finished_by_the_next_call(
    place, time_, finish, framework, elsewhere, shelf, tmp_path
):
    shelf.copy(tmp_path, SETUP)
    order = {"folder": tmp_path, "setup": SETUP.later(), "rows": ROWS, "asked": {"rows": list(GONE)}}
    assert elsewhere.killed("unlearn", **order, switch={"place": place, "left": time_, "kills": True})
    assert states_of(tmp_path) == ["pending"]
    training, gone = framework.training(tmp_path, SETUP, ROWS, weights=6), GONE
    if finish == "fit":
        training.fit()
    else:
        asked = GONE if finish == "unlearn" else (5,)
        assert training.unlearn(rows=list(asked)).request == (1 if finish == "unlearn" else 2)
        gone = {*GONE, *asked}
    assert set(states_of(tmp_path)) == {"sealed"}
    assert_same_record(tmp_path, shelf.fitted(SETUP, ROWS.without(gone)))


# Calls made again


def test_a_second_fit_trains_nothing_and_loads_the_constituents(framework, shelf, tmp_path, caplog):
    training = framework.training(tmp_path, SETUP, ROWS)
    training.fit()
    held = framework.weights(training.model)
    later = framework.training(tmp_path, SETUP, ROWS, weights=8)
    SWITCH.set("batch", 1)
    with caplog.at_level(logging.INFO, "pybrush"):
        training.fit()
        later.fit()
    assert sum("nothing was left to train" in message for message in caplog.messages) == 2
    assert same_bits(framework.weights(training.model), held)
    assert same_bits(framework.weights(later.model), held)


def test_a_fit_after_a_request_does_not_train_the_forgotten_rows_again(framework, shelf, tmp_path, caplog):
    shelf.copy(tmp_path, SETUP)
    training = framework.training(tmp_path, SETUP, ROWS)
    training.unlearn(rows=list(GONE))
    SWITCH.set("batch", 1)
    with caplog.at_level(logging.WARNING, "pybrush"):
        training.fit()
    SWITCH.set()
    assert any("2 rows of the data set are not recorded" in message for message in caplog.messages)
    assert_same_record(tmp_path, shelf.fitted(SETUP, LEFT))


def test_stages_whose_files_were_lost_are_built_again_with_the_same_bits(framework, shelf, tmp_path):
    shelf.copy(tmp_path, SETUP)
    with opened(tmp_path) as record:
        for key in sorted(record.store.keys())[1:]:
            shutil.rmtree(record.store.path(key))
    framework.training(tmp_path, SETUP, ROWS, weights=7).fit()
    assert_same_record(tmp_path, shelf.fitted(SETUP))


def test_two_records_in_one_process_do_not_touch_each_other(framework, shelf, tmp_path):
    trainings = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        trainings.append(framework.training(tmp_path / name, SETUP, ROWS))
    for training in trainings:
        training.fit()
    for gone in GONE:
        for training in trainings:
            training.unlearn(rows=[gone])
    for name in ("a", "b"):
        assert_same_record(tmp_path / name, shelf.fitted(SETUP, LEFT))


def test_a_record_may_be_deleted_and_made_again_with_the_same_bits(framework, shelf, tmp_path):
    shelf.copy(tmp_path, SETUP)
    training = framework.training(tmp_path, SETUP, ROWS, weights=4)
    training.unlearn(rows=list(GONE))
    shutil.rmtree(tmp_path / "record")
    framework.training(tmp_path, SETUP, ROWS).fit()
    assert_same_record(tmp_path, shelf.fitted(SETUP))


def test_what_the_user_does_between_fit_and_request_changes_nothing(framework, shelf, tmp_path):
    training = framework.training(tmp_path, SETUP, ROWS)
    training.fit()
    framework.spoil(training.model)
    training.unlearn(rows=list(GONE))
    assert_same_record(tmp_path, shelf.fitted(SETUP, LEFT))


def test_a_record_of_a_relative_path_stays_where_it_is_when_the_folder_changes(framework, shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = framework.training(Path(), replace(SETUP, saves=""), ROWS)
    training.fit()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert training.unlearn(rows=list(GONE)).forgotten == 2
    assert_same_record(tmp_path, shelf.fitted(replace(SETUP, saves=""), LEFT))


# Two processes


def test_while_one_process_serves_a_request_another_is_refused_and_may_enqueue(framework, elsewhere, shelf, tmp_path):
    shelf.copy(tmp_path, SETUP)
    order = {"folder": tmp_path, "setup": SETUP.later(), "rows": ROWS, "asked": {"rows": [GONE[0]]}}
    job = elsewhere.start("unlearn", **order, switch={"seconds": 0.5})
    training = framework.training(tmp_path, SETUP.later(), ROWS)
    until(lambda: states_of(tmp_path) == ["pending"])
    before = training.snapshot()
    for ask in ({"rows": [7]}, {"rows": [7], "dry_run": True}):
        with pytest.raises(LockedError, match="another process serves a request"):
            training.unlearn(**ask)
    assert differences(before, training.snapshot()) == []
    with opened(tmp_path) as record:
        record.enqueue(ids=[ROWS.ids[GONE[1]]])
    assert elsewhere.answer(job)["request"] == 1
    assert training.unlearn(queued=True).forgotten == 1
    assert_same_record(tmp_path, shelf.fitted(SETUP, LEFT))


def until(holds, seconds=60):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_process_without_model_and_data_cancels_what_another_left(elsewhere, framework, shelf, tmp_path):
    shelf.copy(tmp_path, SETUP)
    training = framework.training(tmp_path, SETUP.later(), ROWS)
    SWITCH.set("batch", 3)
    with pytest.raises(TroubleError):
        training.unlearn(rows=list(GONE))
    elsewhere.do("on_record", folder=tmp_path, calls=[("cancel", {"request": 1})])
    with untouched(tmp_path / "record" / "stages"):
        assert training.unlearn(rows=list(GONE), dry_run=True).forgotten == 2
    assert_same_record(tmp_path, shelf.fitted(SETUP))
