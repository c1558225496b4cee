"""What the user's trainer, loggers, bars and hooks see of a SISA fit."""

import os
import subprocess
import sys

import lightning
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import callbacks as library
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

import pybrush_lightning
from pybrush.record import Record
from tests.lightning.models import Net, OtherNet, Rows, Validated
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.twin import CASES, KEY, Case, data_for, trainer_for

CASE = Case(epochs=3, shards=2, slices=2)
"""Two epochs a stage, four in all, of which the user asked for three."""


NOTES = []


class Noting(Net):
    """Notes what the trainer says at every turn."""

    def setup(self, stage):
        NOTES.append(("setup", self.trainer.max_epochs))

    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches
        NOTES.append(("configure", self.trainer.max_epochs, self.trainer.current_epoch, steps))
        return super().configure_optimizers()

    def on_fit_start(self):
        NOTES.append(("fit", self.trainer.current_epoch))

    def on_train_start(self):
        NOTES.append(("start", self.trainer.current_epoch, self.trainer.global_step))

    def on_train_epoch_start(self):
        NOTES.append(("epoch", self.current_epoch, self.global_step, self.trainer.max_epochs))

    def on_train_end(self):
        NOTES.append(("end", self.trainer.current_epoch, self.trainer.global_step))


@pytest.fixture
def notes():
    NOTES.clear()
    return NOTES


def of(kind, notes):
    return [note[1:] for note in notes if note[0] == kind]


def test_the_trainer_counts_through_the_horizon_and_says_the_users_numbers_afterwards(tmp_path, notes):
    trainer = trainer_for(CASE, tmp_path)
    trainer.fit(Noting(), **data_for(CASE))
    record = Record.open(tmp_path / "record", KEY)
    stages = [record.store.manifest(stage.key) for stage in record.graph()]
    batches = [-(-stage.rows // 5) - (stage.rows % 5 == 1) for stage in stages]
    before = [0, stages[0].steps, 0, stages[2].steps]
    assert [stage.steps for stage in stages] == [2 * count for count in batches]
    assert of("start", notes) == [(0, before[0]), (2, before[1]), (0, before[2]), (2, before[3])]
    assert [epoch for epoch, *_ in of("epoch", notes)] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert {limit for *_, limit in of("epoch", notes)} == {4}
    assert of("end", notes)[-1] == (4, stages[2].steps + stages[3].steps)
    assert of("setup", notes) == [(4,)] and of("fit", notes) == [(0,)]
    inside = of("configure", notes)[-4:]
    assert inside == [(4, epoch, 4 * count) for epoch, count in zip([0, 2, 0, 2], batches, strict=True)]
    assert (trainer.max_epochs, trainer.current_epoch) == (3, 3)
    assert trainer.global_step == stages[2].steps + stages[3].steps
    assert trainer.state.finished and not trainer.training


def test_a_request_leaves_the_counters_of_the_constituent_that_the_module_holds(tmp_path):
    trainer = trainer_for(CASE, tmp_path)
    trainer.fit(Net(), **data_for(CASE))
    trainer.unlearn(rows=[3])
    record = Record.open(tmp_path / "record", KEY)
    last = [record.store.manifest(stage.key).steps for stage in record.graph() if stage.shard == 1]
    assert (trainer.max_epochs, trainer.current_epoch, trainer.global_step) == (3, 3, sum(last))


def test_the_learning_rate_is_summed_over_the_steps_of_each_stage(tmp_path):
    case = Case(lambda: Net(scheduler="step"), shards=1)
    trainer_for(case, tmp_path).fit(Net(scheduler="step"), **data_for(case))
    record = Record.open(tmp_path / "record", KEY)
    first, second = (record.store.manifest(stage.key) for stage in record.graph())
    for stage, rates in ((first, (0.1, 0.05)), (second, (0.025, 0.0125))):
        expected = sum(rate / (1 - 0.9) * stage.steps / 2 for rate in rates)
        assert stage.learning_rate_sum == pytest.approx(expected)


@pytest.mark.parametrize("bar", [library.TQDMProgressBar, library.RichProgressBar])
def test_progress_bars_summaries_and_validation_go_along(bar, tmp_path, capsys):
    case = CASES["plateau"]
    callbacks = [bar(), library.RichModelSummary() if bar is library.RichProgressBar else library.ModelSummary()]
    shown = {"enable_progress_bar": True, "enable_model_summary": True}
    trainer = trainer_for(case, tmp_path, callbacks=callbacks, **shown)
    trainer.fit(Validated(scheduler="plateau"), **data_for(case))
    trainer.unlearn(rows=[3])
    assert "Epoch" in capsys.readouterr().out
    assert Record.open(tmp_path / "record", KEY).verify()


def test_bars_and_loggers_change_no_bit(tmp_path):
    folders = []
    for shown in (False, True):
        folder = tmp_path / str(shown)
        folder.mkdir()
        torch.manual_seed(0)
        logger = CSVLogger(folder / "logs") if shown else False
        trainer = trainer_for(
            CASES["plateau"], folder, enable_progress_bar=shown, enable_model_summary=shown, logger=logger
        )
        trainer.fit(Validated(scheduler="plateau"), **data_for(CASES["plateau"]))
        trainer.unlearn(rows=[3])
        folders.append(folder)
    assert_same_record(*folders)


def test_metrics_of_one_shard_are_not_monitored_in_the_next(tmp_path):
    seen = []

    class Looking(library.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(dict(trainer.callback_metrics))

    case = Case(callbacks=(Looking,))
    trainer_for(case, tmp_path).fit(Net(), **data_for(case))
    assert seen == [{}] * 4


def test_workers_end_with_their_stage(tmp_path):
    case = Case(shards=1, loader={"num_workers": 1, "persistent_workers": True})
    trainer_for(case, tmp_path).fit(Net(), **data_for(case))
    assert torch.multiprocessing.active_children() == []


def test_a_module_that_asks_its_data_module_is_served_in_a_trainer_that_fitted_nothing(tmp_path):
    class Asking(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1 / self.trainer.datamodule.loader["batch_size"])

    case = CASES["data module"]
    trainer_for(case, tmp_path).fit(Asking(), **data_for(case))
    later = trainer_for(case, tmp_path)
    assert later.unlearn(rows=[3], model=Asking(), **data_for(case)).forgotten == 1


def test_loaders_after_a_data_module_in_one_trainer_are_what_is_used(tmp_path):
    trainer = trainer_for(CASES["data module"], tmp_path)
    plain = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    plain.fit(Net(), **data_for(CASES["data module"]))
    trainer.datamodule = plain.datamodule
    trainer.fit(Net(), DataLoader(Rows(rows=30), batch_size=5, shuffle=True))
    assert trainer.unlearn(rows=[29]).forgotten == 1
    assert Record.open(tmp_path / "record", KEY).samples().rows == 29


# How unlearn comes to a trainer


def test_every_trainer_class_has_unlearn_and_the_typed_one_too(tmp_path):
    for trainer_class in (lightning.Trainer, pytorch_lightning.Trainer, pybrush_lightning.Trainer):
        assert callable(trainer_class.unlearn)
    case = CASES["momentum"]
    trainer_for(case, tmp_path).fit(Net(), **data_for(case))
    typed = pybrush_lightning.Trainer(
        callbacks=[pybrush_lightning.SISA(record=tmp_path / "record", key=KEY)], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    assert typed.unlearn(rows=[3], model=Net(), **data_for(case)).forgotten == 1


def test_a_module_of_the_other_package_trains_in_the_other_packages_trainer(tmp_path):
    case = CASES["the other package"]
    trainer = trainer_for(case, tmp_path)
    assert type(trainer) is pytorch_lightning.Trainer
    trainer.fit(OtherNet(), **data_for(case))
    assert trainer.unlearn(rows=[3]).forgotten == 1


def test_importing_twice_wraps_once_and_a_variable_leaves_the_trainers_alone():
    code = (
        "import lightning, pybrush_lightning as p; first = lightning.Trainer.save_checkpoint; p.attach();"
        "assert lightning.Trainer.save_checkpoint is first; assert not hasattr(lightning.Trainer, 'unlearn')"
    )
    environment = {**os.environ, "PYBRUSH_NO_PATCH": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class StopsItself(Net):
    """Ends its first slice after one epoch of two."""

    def on_train_epoch_start(self):
        NOTES.append(("epoch", self.current_epoch))
        self.trainer.should_stop = self.current_epoch == 0


def test_a_stage_that_the_module_stops_counts_in_full(tmp_path, notes):
    trainer_for(CASE, tmp_path).fit(StopsItself(), **data_for(CASE))
    assert of("epoch", notes) == [(0,), (2,), (3,)] * 2
