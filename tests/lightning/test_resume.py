"""A second fit trains nothing, and a trainer may do something else between two requests."""

import logging

import pytest
import torch
from torch.utils.data import DataLoader

from tests.lightning.models import KILL, Net, Rows
from tests.lightning.test_bitwise import assert_as_if_never_seen, fitted
from tests.lightning.twin import CASES, answers, data_for, trainer_for

NAME = "momentum"


@pytest.fixture
def steps(monkeypatch):
    """Count training steps."""
    counted = []
    monkeypatch.setattr(KILL, "step", lambda: counted.append(1))
    return counted


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
