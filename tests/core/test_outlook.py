"""What is said of the stages that are left to build: how many, of how many rows, and how long they take."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from pybrush import forget
from pybrush.build import Sources
from pybrush.plan.outlook import Outlook, clock
from pybrush.record import Record
from pybrush.record.resolve import Wish
from tests.core.numpy_learner import NumpyLearner, roster_of, wish

SECONDS = 10
"""A visit of one row takes ten seconds on the clock of these tests."""
DATA = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 2
IDS = [f"id-{row}" for row in range(60)]


class Learner(NumpyLearner):
    """Trains while a clock goes on that only it moves."""

    now = 0.0
    heard = ()

    def train_stage(self, data, rows, horizon, seeds):
        Learner.heard = (*Learner.heard, horizon.outlook)
        Learner.now += SECONDS * horizon.epochs * len(rows(0))
        return super().train_stage(data, rows, horizon, seeds)


@pytest.fixture(autouse=True)
def by_the_clock(monkeypatch, caplog):
    Learner.heard = ()
    monkeypatch.setattr("pybrush.build.time", SimpleNamespace(perf_counter=lambda: Learner.now))
    caplog.set_level(logging.INFO, "pybrush")


def fit(folder, **settings):
    return forget.fit(folder, wish(**settings), Learner(np.zeros(3)), DATA, roster_of(DATA, IDS)).record


def unlearn(record, *rows):
    sources = Sources(Learner(np.zeros(3)), DATA, roster_of(DATA, IDS)(record.names))
    names = record.names.samples([IDS[row] for row in rows])
    return forget.unlearn(record, sources, Wish(names=names), aggregate=lambda _: None)


def told(stages, epochs):
    """Return what should be said of building some stages, computed stage by stage."""
    lines, left = [], sum(stage.rows for stage in stages) * epochs * SECONDS
    for number, stage in enumerate(stages, start=1):
        took = stage.rows * epochs * SECONDS
        left -= took
        lines.append(
            f"stage {number} of {len(stages)} is built: shard {stage.shard}, slice {stage.slice}, {stage.rows} rows, "
            f"{epochs} epochs, {took:.1f} s; {clock(left)} left"
        )
    return lines


def test_every_stage_says_what_it_took_and_what_is_left(tmp_path, caplog):
    record = fit(tmp_path / "record")
    stages, epochs = record.graph(), record.plan.epochs_per_slice
    rows = sum(stage.rows for stage in stages)
    assert caplog.messages[0] == f"stages to build: 6, with {rows} rows in all and {epochs} epochs each; ? left"
    assert caplog.messages[1:] == told(stages, epochs)
    assert caplog.messages[-1].endswith("0:00 left")


def test_the_learner_hears_which_stage_of_how_many_it_trains_and_the_time_left_is_right_at_every_moment(tmp_path):
    record = fit(tmp_path / "record")
    visits = [stage.rows * record.plan.epochs_per_slice for stage in record.graph()]
    assert [(o.number, o.count, o.shards, o.slices, o.visits) for o in Learner.heard] == [
        (number, 6, 3, 2, own) for number, own in enumerate(visits, start=1)
    ]
    for number, outlook in enumerate(Learner.heard):
        for share in (0.25, 0.5, 1.0):
            elapsed = SECONDS * share * visits[number]
            expected = SECONDS * (sum(visits[number:]) - share * visits[number])
            assert outlook.left(share, elapsed) == pytest.approx(expected)
    assert Learner.heard[0].left() is None


def test_a_fit_that_goes_on_knows_the_pace_from_the_stages_that_are_there(tmp_path, caplog):
    learner = Learner(np.zeros(3))
    learner.fail_at = (1, 1)
    with pytest.raises(ArithmeticError):
        forget.fit(tmp_path / "record", wish(), learner, DATA, roster_of(DATA, IDS))
    caplog.clear()
    record = fit(tmp_path / "record")
    left, epochs = record.graph()[3:], record.plan.epochs_per_slice
    rows = sum(stage.rows for stage in left)
    expected = clock(rows * epochs * SECONDS)
    assert (
        caplog.messages[0] == f"stages to build: 3, with {rows} rows in all and {epochs} epochs each; {expected} left"
    )
    assert caplog.messages[1:] == told(left, epochs)


def test_a_request_says_that_it_is_a_full_retrain_before_the_first_stage_and_only_then(tmp_path, caplog):
    record = fit(tmp_path / "record")
    caplog.clear()
    unlearn(record, 3)
    assert not [line for line in caplog.messages if "full retrain" in line]
    samples = record.samples()
    firsts = [next(row for row in range(60) if row != 3 and cell(record, samples, row) == (s, 0)) for s in range(3)]
    caplog.clear()
    result = unlearn(record, *firsts)
    assert result.cost.stages_rebuilt == result.cost.stages
    said = [message for name, level, message in caplog.record_tuples if level == logging.INFO]
    assert said[0] == "this is a full retrain: the request hits every stage"
    assert said[1].startswith("stages to build: 6, ")


def cell(record, samples, row):
    at = samples.find(record.names.samples([IDS[row]]))[0]
    return int(samples.shards[at]), int(samples.slices[at])


def test_a_manifest_that_cannot_be_read_stops_no_request_for_the_sake_of_an_estimate(tmp_path, caplog):
    record = fit(tmp_path / "record")
    samples = record.samples()
    row = next(row for row in range(60) if cell(record, samples, row) == (0, 0))
    doomed = next(stage.key for stage in record.graph() if stage.shard == 0)
    (record.store.path(doomed) / "manifest.json").write_text("{")
    caplog.clear()
    assert unlearn(record, row).forgotten == 1
    assert "? left" not in caplog.messages[0]


def test_nothing_is_said_where_nothing_is_built(tmp_path, caplog):
    fit(tmp_path / "record")
    caplog.clear()
    record = fit(tmp_path / "record")
    assert [line for line in caplog.messages if "stage" in line] == []
    assert isinstance(record, Record)


def test_a_stage_alone_of_no_rows_has_no_outlook():
    assert Outlook().left() is None and clock(None) == "?"
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3600, 100000)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "27:46:40",
    ]
