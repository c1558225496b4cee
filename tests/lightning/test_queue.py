"""What waits in the queue is served by one unlearn: the bits are those of a fit on what the data set then holds."""

from dataclasses import replace
from datetime import datetime
from functools import partial

import numpy as np
import pytest
from torch.utils.data import Subset

from pybrush.errors import IdError
from pybrush.names import Namer
from pybrush.naming import Naming
from pybrush.record import Record
from pybrush_lightning.sample_ids import roster_of
from tests.lightning.models import Rows, Table
from tests.lightning.test_bitwise import assert_as_if_never_seen
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


def test_one_request_forgets_amends_and_admits_with_the_bits_of_a_fit_on_what_is_there(tmp_path, fresh_process):
    name = "a share of a table"
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
