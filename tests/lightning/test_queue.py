"""What waits in the queue is served by one unlearn: the bits are those of a fit on what the data set then holds."""

from dataclasses import replace
from datetime import date, datetime
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from pybrush.errors import ForgetError, IdError
from pybrush.names import Namer
from pybrush.naming import Naming
from pybrush.record import Record
from pybrush_lightning.sample_ids import roster_of
from tests.lightning.models import Rows, Table
from tests.lightning.test_bitwise import assert_as_if_never_seen, assert_same_record
from tests.lightning.twin import CASES, KEY, answers, data_for, module_for, trainer_for

NAMES, OWNERS = Rows().names, Rows().owners
LATE = (40, 41, 42, 43)
GONE = (0, 1, 3, 5, 16, 20, 27, 38)


def fitted(name, folder):
    """Fit a table that lacks four rows and has two labels wrong."""
    case = CASES[name]
    module, trainer = module_for(case, folder / "initial.pt"), trainer_for(case, folder)
    trainer.fit(module, **data_for(replace(case, rows=partial(Table, fixed=())), LATE))
    return trainer, module


def enqueue(folder):
    record = Record.open(folder / "record", KEY)
    record.enqueue(ids=[NAMES[3], NAMES[20]])
    record.enqueue(subjects=[OWNERS[5]])
    record.enqueue(before="2026-01-03")
    record.amend([NAMES[2], NAMES[13], NAMES[3], NAMES[30]])
    record.admit()
    record.close()


def assert_served(folder):
    record = Record.open(folder / "record", KEY)
    assert [(entry.state, entry.request) for entry in record.queue] == [("served", 1)] * 5
    assert record.verify().is_clean
    record.close()


@pytest.mark.parametrize("name", ["a table", "a table in order", "a share of a table"])
def test_one_request_forgets_amends_and_admits_with_the_bits_of_a_fit_on_what_is_there(name, tmp_path, fresh_process):
    trainer, module = fitted(name, tmp_path)
    enqueue(tmp_path)
    data = data_for(CASES[name])
    foretold = trainer.unlearn(queued=True, dry_run=True, **data)
    result = trainer.unlearn(queued=True, **data)
    counts = (result.forgotten, result.amended, result.admitted)
    assert counts == (foretold.forgotten, foretold.amended, foretold.admitted) == (8, 2, 4)
    assert result.entries == foretold.entries == (1, 2, 3, 4, 5)
    assert_served(tmp_path)
    assert_as_if_never_seen(name, tmp_path, fresh_process, answers(trainer, module), GONE)


def test_in_another_process_that_is_killed_and_called_again_the_bits_are_the_same(tmp_path, fresh_process):
    fitted("a table", tmp_path)
    enqueue(tmp_path)
    order = {"name": "a table", "folder": tmp_path, "gone": [], "ask": {"queued": True}}
    assert fresh_process.ask("killed", job="unlearn", at=12, **order)
    record = Record.open(tmp_path / "record", KEY)
    assert {(entry.state, entry.request) for entry in record.queue} == {("accepted", 1)}
    record.close()
    assert fresh_process.ask("unlearn", **order)["forgotten"] == 8
    assert_served(tmp_path)
    now = torch.load(tmp_path / "answers.pt", weights_only=True)
    assert_as_if_never_seen("a table", tmp_path, fresh_process, now, GONE)


def test_rows_that_join_after_one_shard_had_too_few_are_trained(tmp_path, fresh_process):
    case = CASES["a table"]
    module, trainer = module_for(case, tmp_path / "initial.pt"), trainer_for(case, tmp_path)
    few = tuple(range(4, 44))
    trainer.fit(module, DataLoader(Table(few, fixed=()), batch_size=5, shuffle=True))
    record = Record.open(tmp_path / "record", KEY)
    record.admit()
    record.amend([NAMES[2]])
    before = len(record.graph())
    result = trainer.unlearn(queued=True, **data_for(case))
    assert (result.amended, result.admitted) == (1, 40) and len(record.graph()) >= before
    record.close()
    assert_as_if_never_seen("a table", tmp_path, fresh_process, answers(trainer, module), ())


def test_rows_that_are_too_old_are_forgotten_at_once_and_none_is_no_error(tmp_path, fresh_process):
    case = CASES["a table"]
    module, trainer = module_for(case, tmp_path / "initial.pt"), trainer_for(case, tmp_path)
    trainer.fit(module, **data_for(case))
    assert trainer.unlearn(before="2025-12-31").method == "none"
    assert trainer.unlearn(before=date(2026, 1, 3)).forgotten == 2
    assert trainer.unlearn(before=datetime(2026, 1, 3)).method == "none"
    assert trainer.unlearn(queued=True).method == "none"
    assert_as_if_never_seen("a table", tmp_path, fresh_process, answers(trainer, module), (0, 1))


@pytest.mark.parametrize("more", [{"ids": ["a"]}, {"missing": True}, {"before": "2026-01-01"}, {"subjects": ["a"]}])
def test_the_queue_is_served_by_a_call_that_names_nothing_else(tmp_path, more):
    trainer = trainer_for(CASES["a table"], tmp_path)
    with pytest.raises(ForgetError, match="in one way"):
        trainer.unlearn(queued=True, **more, model=object())


FORMS = {
    "text": lambda days: [str(day) for day in days],
    "dates": lambda days: days.tolist(),
    "nanoseconds": lambda days: days.astype("datetime64[ns]"),
    "times": lambda days: [datetime(day.year, day.month, day.day, 13) for day in days.tolist()],
}


@pytest.mark.parametrize("form", FORMS)
def test_dates_come_from_a_column_a_sequence_or_a_callable_in_any_form(form):
    expected = list(range(20000, 20044))
    days = FORMS[form](np.array(expected, "datetime64[D]"))
    table = Table()
    for times in ("when", days, lambda data: data.when):
        table.when = days
        naming = Naming(ids="names", times=times)
        roster = roster_of(naming, table, Namer(KEY))
        assert roster.days_of(roster.names, 0).tolist() == expected
    part = Subset(table, [7, 3])
    part.names = [NAMES[7], NAMES[3]]
    roster = roster_of(Naming(ids="names", times="when"), part, Namer(KEY))
    assert roster.days_of(roster.names, 0).tolist() == [20007, 20003]


def test_another_number_of_dates_than_rows_is_refused():
    with pytest.raises(IdError, match="one entry for each of the 44 rows; got 3"):
        roster_of(Naming(ids="names", times=["2026-01-01"] * 3), Table(), Namer(KEY))


def test_no_bit_depends_on_the_dates(tmp_path):
    for name, times in (("a", "days"), ("b", None)):
        case = CASES["a table"]
        module = module_for(case, tmp_path / "initial.pt")
        (tmp_path / name).mkdir()
        trainer_for(case, tmp_path / name, sisa={"times": times}).fit(module, **data_for(case))
    assert_same_record(tmp_path / "a", tmp_path / "b")
