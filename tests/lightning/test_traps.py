"""Traps that a training in shards on one trainer can step into, each with the test that fails without its cure.

More of them are in test_bitwise.py: what the user does between fit and unlearn, state outside of the
state_dict, and EarlyStopping that carries one shard's patience into the next.
"""

import warnings

import lightning
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import callbacks as library
from lightning.pytorch.loggers import CSVLogger
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from pybrush.record import Record
from tests.lightning.models import Net, OtherNet, Rows, Validated
from tests.lightning.test_bitwise import assert_as_if_never_seen, fitted
from tests.lightning.twin import CASES, KEY, Case, answers, data_for, trainer_for

NOTES = []


@pytest.fixture(autouse=True)
def notes():
    NOTES.clear()
    return NOTES


@pytest.mark.parametrize("package", [lightning, pytorch_lightning])
def test_a_stage_runs_in_a_loop_of_the_trainers_own_class_so_that_monitors_work(package, tmp_path, notes):
    class Looking(Net if package is lightning else OtherNet):
        def on_train_start(self):
            notes.append(self.trainer.fit_loop)

    monitor = (library if package is lightning else package.callbacks).LearningRateMonitor()
    case = Case(package=package)
    trainer = trainer_for(case, tmp_path, logger=CSVLogger(tmp_path / "logs"), callbacks=[monitor])
    own = type(trainer.fit_loop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about few batches between two lines of a log
        trainer.fit(Looking(), **data_for(case))
    assert all(isinstance(loop, own) for loop in notes) and len(set(map(id, notes))) == 4
    assert trainer.fit_loop not in notes and type(trainer.fit_loop) is own
    assert monitor.lrs["lr-SGD"]


def test_every_epoch_of_every_stage_validates_on_all_rows(tmp_path, notes):
    class Counting(Validated):
        def validation_step(self, batch, index):
            if not self.trainer.sanity_checking:
                notes.append((self.current_epoch, len(batch[1])))

    case = Case(validation=True, shards=3, epochs=3)
    trainer_for(case, tmp_path).fit(Counting(), **data_for(case))
    assert notes == [(epoch, rows) for _ in range(3) for epoch in range(4) for rows in (5, 5, 2)]


@pytest.mark.parametrize("name", ["early stop", "plateau"])
def test_a_request_finds_its_data_after_other_data_was_tested_and_predicted(name, tmp_path, fresh_process):
    trainer, module = fitted(name, tmp_path)
    answers(trainer, module)
    trainer.test(module, DataLoader(Rows(seed=2), batch_size=8), verbose=False)
    trainer.validate(module, DataLoader(Rows(seed=4), batch_size=8), verbose=False)
    trainer.unlearn(rows=[3, 20])
    assert_as_if_never_seen(name, tmp_path, fresh_process, answers(trainer, module), [3, 20])


def test_evaluation_before_a_request_leaves_dropout_on_and_batch_statistics_alone(tmp_path, fresh_process):
    trainer, module = fitted("momentum", tmp_path)
    module.eval()
    module.requires_grad_(False)
    trainer.unlearn(rows=[3, 20])
    assert_as_if_never_seen("momentum", tmp_path, fresh_process, answers(trainer, module), [3, 20])


def test_what_one_shard_leaves_in_a_callback_reaches_no_other(tmp_path, notes):
    class Keeping(library.Callback):
        def __init__(self):
            self.count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

        def on_train_start(self, trainer, pl_module):
            notes.append(self.count)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.count += 1

    case = Case(callbacks=(Keeping,))
    trainer_for(case, tmp_path).fit(Net(), **data_for(case))
    record = Record.open(tmp_path / "record", KEY)
    steps = [record.store.manifest(stage.key).steps for stage in record.graph()]
    assert notes == [0, steps[0], 0, steps[2]]


def test_each_shard_has_the_cycle_of_its_own_steps(tmp_path):
    case = CASES["one cycle by steps"]
    trainer_for(case, tmp_path).fit(case.module(), **data_for(case))
    record = Record.open(tmp_path / "record", KEY)
    lasts = set()
    for stage in record.graph():
        steps = record.store.manifest(stage.key).steps
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
        cycle = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        for _ in range(steps):
            optimizer.step()
            cycle.step()
        stored = record.store.load(stage.key)[0]["optimization"]["schedulers"][0]
        assert (stored["total_steps"], stored["_last_lr"]) == (steps, cycle.get_last_lr())
        lasts.add(steps)
    assert len(lasts) == 2


def test_a_validation_loop_in_mid_epoch_draws_nothing_from_the_training(tmp_path):
    digests = []
    for share in (1.0, 0.25):
        torch.manual_seed(1)
        folder = tmp_path / str(share)
        case = Case(validation=True, shards=1, trainer={"val_check_interval": share})
        trainer_for(case, folder).fit(Validated(), **data_for(case))
        record = Record.open(folder / "record", KEY)
        digests.append([record.store.manifest(stage.key).sha256 for stage in record.graph()])
    assert digests[0] == digests[1]
