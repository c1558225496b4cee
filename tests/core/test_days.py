"""Dates become whole days, the same however they are written, and reach no bit of a model."""

from contextlib import closing
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest

from pybrush import forget
from pybrush.content import encode
from pybrush.days import day_of, days_of, text_of
from pybrush.errors import IdError
from pybrush.record import Record
from pybrush.request import Roster
from tests.core import format_reader as reader
from tests.core.numpy_learner import NumpyLearner, wish
from tests.core.test_fit_and_forget import KEY, assert_same_record, data, fit

IDS = list(range(20))
EAST = timezone(timedelta(hours=9))


@pytest.mark.parametrize(
    "value",
    [
        date(2026, 1, 31), datetime(2026, 1, 31, 23, 59), datetime(2026, 2, 1, 8, tzinfo=EAST), "2026-01-31",
        "20260131", "2026-01-31T12:00:00Z", "2026-01-31 23:59:59.5", "2026-02-01T08:59:59+09:00",
        np.datetime64("2026-01-31"),
        np.datetime64("2026-01-31T23:00", "ns"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_date_is_the_same_day_in_every_form(value):
    assert day_of(value) == (date(2026, 1, 31) - date(1970, 1, 1)).days
    assert text_of(day_of(value)) == "2026-01-31"


@pytest.mark.parametrize(
    "value", [20484, 1.5, None, True, "31.1.2026", "", "2026-02-30", np.datetime64("NaT"), b"x"], ids=repr
)
def test_what_is_no_date_is_refused(value):
    with pytest.raises(IdError, match="a date must be"):
        day_of(value)


def test_arrays_of_dates_of_any_unit_are_read_whole():
    days = np.array(["1969-12-31", "1970-01-01", "2026-01-31"], "datetime64[D]")
    for unit in ("D", "s", "ns"):
        assert days_of(days.astype(f"datetime64[{unit}]")).tolist() == [-1, 0, 20484]
    assert days_of(["1969-12-31", date(1970, 1, 1)]).tolist() == [-1, 0]
    with pytest.raises(IdError, match="1 of 2 dates are NaT"):
        days_of(np.array(["2026-01-31", "NaT"], "datetime64[D]"))


def dated(days, ids=IDS, rows=None):
    rows = rows or data(20)
    return lambda namer: Roster(
        namer, len(rows[1]), ids, None, lambda i: encode((rows[0][i], rows[1][i])), np.array(days)
    )


def days_in(folder):
    return {row["name"]: row["day"] for row in reader.read_record(folder)["tables"]["samples"]}


def test_every_sample_keeps_the_day_that_was_given_for_it(tmp_path):
    days = [100 * (7 * i % 20) - 50 for i in IDS]
    forget.fit(tmp_path / "a", wish(), NumpyLearner([0.1, -0.2, 0.3]), data(20), dated(days)).record.close()
    assert days_in(tmp_path / "a") == {reader.pseudonym(KEY, i): days[i] for i in IDS}


def test_without_dates_a_sample_has_the_day_on_which_it_was_recorded(tmp_path):
    before = datetime.now(UTC).date()
    fit(tmp_path / "a", data(20), IDS)[0].record.close()
    found = set(days_in(tmp_path / "a").values())
    assert found <= {day_of(before), day_of(datetime.now(UTC).date())} and len(found) == 1


def test_of_equal_rows_the_earliest_day_counts(tmp_path):
    rows = data(20)
    rows[0][[4, 9, 13]], rows[1][[4, 9, 13]] = rows[0][4], rows[1][4]
    days = [1000 + i for i in range(20)]
    days[9] = 7
    plan = wish(naming="content")
    forget.fit(tmp_path / "a", plan, NumpyLearner([0.1, -0.2, 0.3]), rows, dated(days, None, rows)).record.close()
    found = sorted(days_in(tmp_path / "a").values())
    assert found == sorted([7, *(1000 + i for i in range(20) if i not in (4, 9, 13))])


def test_no_bit_depends_on_a_day(tmp_path):
    fit(tmp_path / "a", data(20), IDS)[0].record.close()
    forget.fit(tmp_path / "b", wish(), NumpyLearner([0.1, -0.2, 0.3]), data(20), dated(range(20))).record.close()
    assert_same_record(tmp_path / "a", tmp_path / "b")


def test_as_many_days_as_rows_are_needed(tmp_path):
    with pytest.raises(IdError, match="times must have one entry for each of the 20 rows; got 19"):
        forget.fit(tmp_path / "a", wish(), NumpyLearner([0.1]), data(20), dated(range(19)))


def test_a_day_takes_at_most_three_bytes_of_a_sample(tmp_path):
    sizes = []
    for name, length in (("few", 4000), ("many", 12000)):
        roster = lambda namer, n=length: Roster(namer, n, range(n), None, None, np.full(n, 40000))  # noqa: E731
        forget.fit(
            tmp_path / name, wish(contents="off", epochs=1), NumpyLearner([0.1, -0.2, 0.3]), data(length), roster
        ).record.close()
        with closing(Record.open(tmp_path / name, KEY)) as record:
            sizes.append(record.ledger.path.stat().st_size)
    assert (sizes[1] - sizes[0]) / 8000 < 70
