"""A fit or request with other settings, another key or other data than the record's is refused, and says which."""

import json
from contextlib import closing
from dataclasses import replace

import pytest

from pybrush.errors import (
    ConfigurationError,
    ContentError,
    FingerprintError,
    IdError,
    MissingRowsError,
    PyBrushError,
    RecordError,
    SecretKeyError,
)
from pybrush.record import Record
from tests.conformance.harness import Setup, assert_same_record, in_cell, opened, table
from tests.untouched import untouched

SETUP, ROWS = Setup(network="dense", optimizer="momentum"), table()
ORDERED = replace(SETUP, sequential=True)

CHANGED = {
    "another optimizer": (replace(SETUP, optimizer="adam"), "optimiz"),
    "other layers": (replace(SETUP, network="regular"), "param"),
    "another order": (replace(SETUP, sequential=True), "order"),
    "another naming": (replace(SETUP, named="position"), "naming"),
}
FITTED = {
    "shards": (replace(SETUP, shards=3), "shards"),
    "slices": (replace(SETUP, slices=3), "slices"),
    "epochs": (replace(SETUP, epochs=6), "epochs"),
    "seed": (replace(SETUP, seed=6), "seed"),
    "batch size": (replace(SETUP, batch_size=5), "batch_size"),
    "encryption": (replace(SETUP, encrypt=True), "encrypt"),
}


def refused_by(call, framework, shelf, folder, setup, error, match, rows=ROWS, recorded=SETUP):
    shelf.copy(folder, recorded)
    training = framework.training(folder, setup, rows)
    with untouched(folder, read=training.snapshot), pytest.raises(error, match=match) as caught:
        call(training)
    with opened(folder) as record:
        assert record.requests == ()
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name in CHANGED if name != "another order"])
def test_a_request_with_another_training_is_refused_and_the_error_names_the_field(name, framework, shelf, tmp_path):
    setup, field = CHANGED[name]
    refused_by(lambda t: t.unlearn(rows=[3]), framework, shelf, tmp_path, setup, FingerprintError, field)


@pytest.mark.parametrize("name", [*CHANGED, *FITTED])
def test_a_fit_with_another_training_is_refused_and_the_error_names_the_field(name, framework, shelf, tmp_path):
    setup, field = (CHANGED | FITTED)[name]
    refused_by(lambda t: t.fit(), framework, shelf, tmp_path, setup, FingerprintError, field)


def test_a_request_with_another_key_or_without_one_is_refused(framework, shelf, tmp_path):
    other = replace(SETUP, key=bytes(reversed(range(32))))
    ask = lambda training: training.unlearn(rows=[3])  # noqa: E731
    refused_by(ask, framework, shelf, tmp_path, other, SecretKeyError, "another record's")
    training = framework.training(tmp_path, replace(SETUP, key=None), ROWS)
    with untouched(tmp_path), pytest.raises(SecretKeyError, match="key"):
        training.unlearn(rows=[3])


def test_a_record_that_another_framework_made_is_refused_by_its_name(framework, shelf, tmp_path):
    shelf.copy(tmp_path, SETUP)
    with closing(Record.open(tmp_path / "record", SETUP.key)) as record, record.ledger.writing("test"):
        record.ledger.change("UPDATE plan SET value = ? WHERE name = 'adapter'", (json.dumps("jax"),))
    training = framework.training(tmp_path, SETUP, ROWS)
    for call in (training.fit, lambda: training.unlearn(rows=[3])):
        with untouched(tmp_path, read=training.snapshot), pytest.raises(FingerprintError, match="the adapter jax"):
            call()


def test_a_request_where_no_record_is_says_so(framework, tmp_path):
    training = framework.training(tmp_path, SETUP, ROWS)
    with untouched(tmp_path), pytest.raises(RecordError, match="there is no record"):
        training.unlearn(rows=[3])


# Data


def test_a_content_that_changed_under_its_id_is_counted_and_refused(framework, shelf, tmp_path):
    rows = ROWS.relabelled(in_cell(0, 0)[:2])
    ask = {"rows": [in_cell(0, 0)[2]]}
    refused_by(lambda t: t.unlearn(**ask), framework, shelf, tmp_path, SETUP.later(), ContentError, "2 ", rows)


def test_rows_that_are_gone_are_an_error_where_a_stage_needs_them_and_none_elsewhere(
    framework, shelf, tmp_path, caplog
):
    gone = in_cell(1, 0)[0]
    rows = ROWS.without([gone])
    ask = {"ids": [ROWS.ids[in_cell(1, 0)[1]]]}
    later = SETUP.later()
    refused_by(lambda t: t.unlearn(**ask), framework, shelf, tmp_path, later, MissingRowsError, "missing=True", rows)
    training = framework.training(tmp_path, later, rows)
    assert training.unlearn(ids=[ROWS.ids[in_cell(0, 0)[0]]]).forgotten == 1
    assert any("1 " in message and "still in the model" in message for message in caplog.messages)
    assert training.unlearn(missing=True).forgotten == 1
    assert_same_record(tmp_path, shelf.fitted(SETUP, ROWS.without([gone, in_cell(0, 0)[0]])))


def test_rows_in_another_order_are_refused_where_the_order_is_kept_and_welcome_where_it_is_not(
    framework, shelf, tmp_path
):
    turned = ROWS.at(range(len(ROWS) - 1, -1, -1))
    for name, setup in (("a", ORDERED), ("b", SETUP)):
        (tmp_path / name).mkdir()
        shelf.copy(tmp_path / name, setup)
    training = framework.training(tmp_path / "a", ORDERED.later(), turned)
    with untouched(tmp_path / "a", read=training.snapshot), pytest.raises(PyBrushError, match="order"):
        training.unlearn(ids=[ROWS.ids[3]])
    framework.training(tmp_path / "b", SETUP.later(), turned).unlearn(ids=[ROWS.ids[3]])
    assert_same_record(tmp_path / "b", shelf.fitted(SETUP, ROWS.without([3])))


def test_equal_rows_in_a_fixed_order_need_ids(framework, tmp_path):
    setup = replace(ORDERED, named="content")
    training = framework.training(tmp_path, setup, ROWS.with_equal([2, 7]))
    with untouched(tmp_path, read=training.snapshot), pytest.raises(IdError, match="ids="):
        training.fit()


@pytest.mark.parametrize("change", [{"ids": ("same",) * 44}, {"ids": ROWS.ids[:3]}, {"ids": (1.5,) * 44}], ids=str)
def test_ids_that_do_not_name_each_row_are_refused(change, framework, tmp_path):
    training = framework.training(tmp_path, SETUP, replace(ROWS, **change))
    with untouched(tmp_path, read=training.snapshot), pytest.raises(IdError):
        training.fit()


def test_too_few_rows_are_refused_before_there_is_a_record(framework, tmp_path):
    training = framework.training(tmp_path, SETUP, ROWS.at([3]))
    with untouched(tmp_path, read=training.snapshot), pytest.raises(ConfigurationError, match="at least 2 rows"):
        training.fit()


# Arguments


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 0},
        {"shards": True},
        {"slices": 1.5},
        {"seed": -1},
        {"seed": 2**32},
        {"encrypt": 1},
        {"key": b"short"},
    ],
    ids=str,
)
def test_arguments_that_cannot_work_are_refused(change, framework, tmp_path):
    with untouched(tmp_path), pytest.raises(PyBrushError):
        framework.training(tmp_path, replace(SETUP, **change), ROWS).fit()


@pytest.mark.parametrize(
    "more",
    [{"aggregate": "median"}, {"outputs": "logit"}, {"content": "maybe"}, {"content": "off"}, {"rebuild_all": True}],
    ids=str,
)
def test_arguments_of_the_callback_that_cannot_work_are_refused(more, framework, tmp_path):
    kind = type(framework.training(tmp_path, SETUP, ROWS).sisa)
    with untouched(tmp_path), pytest.raises(PyBrushError):
        kind(record=tmp_path / "record", **more)
