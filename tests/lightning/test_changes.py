"""Under Lightning, rows that are amended and rows that join have the bits of a fit of the data as it is then."""

from contextlib import closing

import pytest
import torch
from torch.utils.data import DataLoader

from pybrush.errors import ContentError
from pybrush.record import Record
from tests.lightning.models import Rows
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.twin import CASES, KEY, answers, data_for, module_for, trainer_for

NEW, FORGOTTEN, AMENDED = (40, 41, 42, 43), (3, 20), (7, 11)


def now(gone=()):
    """The data set as it is when the request is made: some labels have been fixed since the fit."""
    rows = Rows()
    rows.y[list(AMENDED)] = (rows.y[list(AMENDED)] + 1) % 3
    kept = [row for row in range(len(rows)) if row not in gone]
    rows.x, rows.y = rows.x[kept], rows.y[kept]
    rows.names, rows.owners = ([column[row] for row in kept] for column in (rows.names, rows.owners))
    return rows


@pytest.mark.parametrize("name", ["ids", "in order"])
def test_a_batch_that_forgets_amends_and_admits_has_the_bits_of_a_fit_of_the_data_as_it_is_then(name, tmp_path):
    case = CASES[name]
    settings = {"batch_size": 5, "shuffle": True, **case.loader}
    module, trainer = module_for(case, tmp_path / "initial.pt"), trainer_for(case, tmp_path)
    trainer.fit(module, **data_for(case, NEW))
    names = Rows().names
    with closing(Record.open(tmp_path / "record", KEY)) as record:
        record.enqueue(ids=[names[row] for row in FORGOTTEN])
        record.amend([names[row] for row in AMENDED])
        record.admit()
    result = trainer.unlearn(queued=True, train_dataloaders=DataLoader(now(), **settings), guarantee="exact")
    assert (result.forgotten, result.amended, result.admitted) == (2, 2, 4)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    twin, other = module_for(case, tmp_path / "initial.pt"), trainer_for(case, fresh)
    other.fit(twin, DataLoader(now(FORGOTTEN), **settings))
    assert_same_record(tmp_path, fresh)
    assert torch.equal(answers(trainer, module), answers(other, twin))


def test_labels_that_were_fixed_without_a_word_are_refused_and_the_message_names_amend(tmp_path):
    case = CASES["ids"]
    module, trainer = module_for(case, tmp_path / "initial.pt"), trainer_for(case, tmp_path)
    trainer.fit(module, **data_for(case))
    held = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    names = [Rows().names[row] for row in FORGOTTEN]
    with pytest.raises(ContentError, match=r"record\.amend\(ids\)"):
        trainer.unlearn(ids=names, train_dataloaders=DataLoader(now(), batch_size=5, shuffle=True))
    assert all(torch.equal(held[name], tensor) for name, tensor in module.state_dict().items())
    assert Record.open(tmp_path / "record", KEY).requests == ()
