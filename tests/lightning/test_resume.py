"""Fits and requests that are repeated, interrupted, killed or interleaved end in the same bits."""

import logging
import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from pybrush.errors import GuaranteeError, LockedError
from pybrush.record import Record
from pybrush.record.locks import request_lock
from tests.lightning.models import KILL, Net, Rows
from tests.lightning.test_bitwise import assert_as_if_never_seen, assert_same_record, fitted
from tests.lightning.twin import CASES, KEY, answers, data_for, module_for, trainer_for

NAME = "momentum"


@pytest.fixture
def steps(monkeypatch):
    """Count training steps."""
    counted = []
    monkeypatch.setattr(KILL, "step", lambda: counted.append(1))
    return counted


@pytest.mark.parametrize("at", [1, 9, 16, 25])
def test_a_fit_that_was_killed_goes_on_and_ends_in_the_same_bits(at, tmp_path, fresh_process):
    module_for(CASES[NAME], tmp_path / "initial.pt")
    order = {"name": NAME, "folder": tmp_path, "initial": tmp_path / "initial.pt", "gone": []}
    assert fresh_process.ask("killed", job="fit", at=at, **order)
    torch.manual_seed(at)
    module, trainer = Net(), trainer_for(CASES[NAME], tmp_path)
    trainer.fit(module, **data_for(CASES[NAME]))
    assert_as_if_never_seen(NAME, tmp_path, fresh_process, answers(trainer, module), [])


@pytest.mark.parametrize("at", [1, 7, 12])
@pytest.mark.parametrize("finish", ["unlearn", "fit", "another request"])
def test_a_request_that_was_killed_is_finished_by_the_next_call(at, finish, tmp_path, fresh_process):
    fitted(NAME, tmp_path)
    assert fresh_process.ask("killed", job="unlearn", at=at, name=NAME, folder=tmp_path, gone=[3, 20])
    assert [request.state for request in Record.open(tmp_path / "record", KEY).requests] == ["pending"]
    module, trainer, gone = Net(), trainer_for(CASES[NAME], tmp_path), [3, 20]
    if finish == "fit":
        trainer.fit(module, **data_for(CASES[NAME]))
    else:
        asked = gone if finish == "unlearn" else [5]
        result = trainer.unlearn(rows=asked, model=module, **data_for(CASES[NAME]))
        assert result.request == (1 if finish == "unlearn" else 2)
        gone = sorted({*gone, *asked})
    assert_as_if_never_seen(NAME, tmp_path, fresh_process, answers(trainer, module), gone)


def test_a_second_fit_trains_nothing_and_loads_the_constituents(tmp_path, steps, caplog):
    trainer, module = fitted(NAME, tmp_path)
    first, taken = answers(trainer, module), len(steps)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert taken > 0
    with torch.no_grad():
        module.net[0].weight.zero_()
    with caplog.at_level(logging.INFO, "pybrush"):
        trainer.fit(module, **data_for(CASES[NAME]))
    later = trainer_for(CASES[NAME], tmp_path)
    other = Net()
    later.fit(other, **data_for(CASES[NAME]))
    assert len(steps) == taken
    assert any("nothing was left to train" in message for message in caplog.messages)
    for again in (module, other):
        assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())
    assert torch.equal(answers(later, other), first)
    assert (later.global_step, later.current_epoch, later.max_epochs) == (
        trainer.global_step, trainer.current_epoch, trainer.max_epochs
    )  # fmt: skip


def test_a_fit_after_a_request_does_not_train_the_forgotten_row_again(tmp_path, steps, caplog):
    trainer, module = fitted(NAME, tmp_path)
    trainer.unlearn(rows=[3])
    now, taken = answers(trainer, module), len(steps)
    with caplog.at_level(logging.WARNING, "pybrush"):
        trainer.fit(module, **data_for(CASES[NAME]))
    assert len(steps) == taken
    assert any("1 rows of the data set are not recorded" in message for message in caplog.messages)
    assert torch.equal(answers(trainer, module), now)


def test_stages_whose_files_were_lost_are_built_again_with_the_same_bits(tmp_path, fresh_process):
    trainer, module = fitted(NAME, tmp_path)
    record = Record.open(tmp_path / "record", KEY)
    for key in list(record.store.keys())[1:]:
        shutil.rmtree(record.store.path(key))
    trainer.fit(module, **data_for(CASES[NAME]))
    assert_as_if_never_seen(NAME, tmp_path, fresh_process, answers(trainer, module), [])


def test_two_trainers_with_two_records_do_not_touch_each_other(tmp_path, fresh_process):
    alone = tmp_path / "alone"
    alone.mkdir()
    expected = fitted(NAME, alone)[0].unlearn(rows=[3, 20])
    trainers, modules = [], []
    for number in (0, 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        trainers.append(trainer_for(CASES[NAME], folder))
        modules.append(module_for(CASES[NAME], alone / "initial.pt"))
    for trainer, module in zip(trainers, modules, strict=True):
        trainer.fit(module, **data_for(CASES[NAME]))
    for row in (3, 20):
        for trainer in trainers:
            trainer.unlearn(rows=[row])
    for number in (0, 1):
        assert_same_record(alone, tmp_path / str(number))
        torch.testing.assert_close(answers(trainers[number], modules[number]), expected.model(Rows(seed=3).x))


def test_one_trainer_may_be_used_for_a_plain_module_between_two_requests(tmp_path, fresh_process):
    trainer, module = fitted(NAME, tmp_path)
    trainer.unlearn(rows=[3])
    trainer.validate(Watched(), DataLoader(Rows(seed=2), batch_size=8), verbose=False)
    trainer.unlearn(rows=[20])
    assert_as_if_never_seen(NAME, tmp_path, fresh_process, answers(trainer, module), [3, 20])


class Watched(Net):
    """Can be validated."""

    def validation_step(self, batch, index):
        self.log("val", self(batch[0]).sum(), batch_size=len(batch[1]))


def test_while_one_process_serves_a_request_another_is_refused(tmp_path):
    trainer, _ = fitted(NAME, tmp_path)
    with request_lock(tmp_path / "record"), pytest.raises(LockedError):
        trainer.unlearn(rows=[3])
    assert trainer.unlearn(rows=[3]).forgotten == 1


def test_a_record_may_be_deleted_and_made_again_by_the_same_trainer(tmp_path):
    trainer, module = fitted(NAME, tmp_path)
    first = answers(trainer, module)
    shutil.rmtree(tmp_path / "record")
    again = module_for(CASES[NAME], tmp_path / "initial.pt")
    trainer.fit(again, **data_for(CASES[NAME]))
    assert torch.equal(answers(trainer, again), first)
    assert trainer.unlearn(rows=[3]).forgotten == 1


def test_a_full_retrain_is_done_when_it_is_asked_for(tmp_path, fresh_process):
    case = CASES["whole"]
    module, trainer = module_for(case, tmp_path / "initial.pt"), trainer_for(case, tmp_path)
    trainer.fit(module, **data_for(case))
    with pytest.raises(GuaranteeError, match="guarantee='exact'"):
        trainer.unlearn(rows=[3, 20])
    assert Record.open(tmp_path / "record", KEY).requests == ()
    assert "this is a full retrain" in trainer.unlearn(rows=[3, 20], guarantee="exact", dry_run=True).notes[1]
    result = trainer.unlearn(rows=[3, 20], guarantee="exact")
    assert result.model is module and result.cost.stages_rebuilt == result.cost.stages == 1
    assert_as_if_never_seen("whole", tmp_path, fresh_process, answers(trainer, module), [3, 20])
