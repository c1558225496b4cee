"""What loggers get of a SISA fit: every row once, under steps that never come twice, with its shard and slice."""

import csv
from collections import Counter
from pathlib import Path

import lightning
import pytest
import pytorch_lightning as pl
import torch
from lightning.pytorch import callbacks as library
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from pybrush.record import Record
from tests.lightning.models import Net, OtherNet, Rows, Validated
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.twin import CASES, KEY, Case, data_for, trainer_for

CASE = Case(lambda: Net(scheduler="step"), epochs=3, shards=2, slices=2)
"""Two epochs a stage, four stages."""
PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def rows_of(logger):
    """Read metrics.csv as anyone would; an empty cell is left out."""
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def place(row):
    return int(row["pybrush/shard"]), int(row["pybrush/slice"])


def steps_of(folder):
    """Return place -> optimizer steps of each stage of a record."""
    record = Record.open(folder / "record", KEY)
    return {(s.shard, s.slice): record.store.manifest(s.key).steps for s in record.graph()}


@pytest.mark.parametrize("package", [lightning, pl], ids=lambda package: package.__name__)
def test_every_step_of_every_stage_is_a_row_of_its_own_with_shard_and_slice(package, tmp_path):
    make, kind = (Net, CSVLogger) if package is lightning else (OtherNet, pl.loggers.CSVLogger)
    logger = kind(tmp_path / "logs")
    case = Case(make, epochs=3, package=package)
    trainer = trainer_for(case, tmp_path, logger=logger, log_every_n_steps=1)
    trainer.fit(make(), **data_for(case))
    rows, steps = rows_of(logger), steps_of(tmp_path)
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == list(range(sum(steps.values())))
    assert Counter(map(place, trained)) == steps
    assert list(dict.fromkeys(map(place, rows))) == PLACES


def test_the_steps_go_on_through_requests_and_evaluations_of_the_same_trainer(tmp_path):
    logger = CSVLogger(tmp_path / "logs")
    trainer = trainer_for(CASE, tmp_path, logger=logger, log_every_n_steps=1)
    module = Net(scheduler="step")
    trainer.fit(module, **data_for(CASE))
    first = sum(steps_of(tmp_path).values())
    trainer.test(module, DataLoader(Rows(seed=2), batch_size=50), verbose=False)
    trainer.unlearn(rows=[3])
    trainer.test(module, DataLoader(Rows(seed=2), batch_size=50), verbose=False)
    rows = rows_of(logger)
    trained = [row["step"] for row in rows if "loss" in row]
    assert trained == list(range(len(trained))) and len(trained) > first
    tested = [row for row in rows if "test_loss" in row]
    assert [row["step"] for row in tested] == [first, len(trained)]
    assert not any("pybrush/shard" in row for row in tested)
    assert "log_metrics" not in vars(logger)


def test_module_and_callbacks_see_the_steps_of_the_stages_shard(tmp_path):
    heard = []

    class Hearing(library.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            heard.append((trainer.global_step, pl_module.global_step))

    case = Case(epochs=3)
    trainer = trainer_for(case, tmp_path, logger=CSVLogger(tmp_path / "logs"), callbacks=[Hearing()])
    trainer.fit(Net(), **data_for(case))
    steps = steps_of(tmp_path)
    shards = [steps[shard, 0] + steps[shard, 1] for shard in (0, 1)]
    assert heard == [(step, step) for shard in shards for step in range(shard)]


def test_tensorboard_has_each_step_once_with_its_place(tmp_path):
    loggers = [TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "logs")]
    trainer = trainer_for(CASE, tmp_path, logger=loggers, log_every_n_steps=1)
    trainer.fit(Net(scheduler="step"), **data_for(CASE))
    events = EventAccumulator(loggers[0].log_dir).Reload()
    steps = steps_of(tmp_path)
    assert [event.step for event in events.Scalars("loss")] == list(range(sum(steps.values())))
    told = {
        name: {event.step: event.value for event in events.Scalars(f"pybrush/{name}")} for name in ("shard", "slice")
    }
    assert Counter(zip(told["shard"].values(), told["slice"].values(), strict=True)) == steps
    assert [row["step"] for row in rows_of(loggers[1]) if "loss" in row] == sorted(told["shard"])


def test_the_same_logger_given_twice_is_left_as_it_was(tmp_path):
    logger = CSVLogger(tmp_path / "logs")
    trainer = trainer_for(CASE, tmp_path, logger=[logger, logger], log_every_n_steps=1)
    trainer.fit(Net(scheduler="step"), **data_for(CASE))
    assert "log_metrics" not in vars(logger) and {place(row) for row in rows_of(logger)} == set(PLACES)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_learning_rates_are_logged_under_the_steps_of_their_rows(interval, tmp_path):
    logger = CSVLogger(tmp_path / "logs")
    monitor = library.LearningRateMonitor(interval)
    trainer = trainer_for(CASE, tmp_path, logger=logger, log_every_n_steps=1, callbacks=[monitor])
    trainer.fit(Net(scheduler="step"), **data_for(CASE))
    rows, steps = rows_of(logger), steps_of(tmp_path)
    rates = [(row["step"], place(row), row["lr-SGD"]) for row in rows if "lr-SGD" in row]
    begins, expected = 0, []
    for where, count in steps.items():
        for step in range(count):
            epoch = 2 * where[1] + step // (count // 2)
            if interval == "step" or step % (count // 2) == 0:
                expected.append((begins + step, where, pytest.approx(0.1 * 0.5**epoch)))
        begins += count
    assert rates == expected


def test_device_statistics_go_to_rows_with_a_place(tmp_path, monkeypatch):
    monkeypatch.setattr(
        lightning.pytorch.accelerators.CPUAccelerator, "get_device_stats", lambda self, device: {"load": 1.0}
    )
    monkeypatch.setattr("lightning.pytorch.callbacks.device_stats_monitor._PSUTIL_AVAILABLE", True)
    logger = CSVLogger(tmp_path / "logs")
    monitor = library.DeviceStatsMonitor()
    trainer = trainer_for(CASE, tmp_path, logger=logger, log_every_n_steps=1, callbacks=[monitor])
    trainer.fit(Net(scheduler="step"), **data_for(CASE))
    name = "DeviceStatsMonitor.on_train_batch_start/load"
    assert Counter(place(row) for row in rows_of(logger) if name in row) == steps_of(tmp_path)


class Failing(Validated):
    """Fails in its second validation of the second slice, when told to."""

    fails = False

    def validation_step(self, batch, index):
        super().validation_step(batch, index)
        if self.current_epoch == 3 and Failing.fails:
            raise ArithmeticError


def test_after_an_error_the_logger_is_as_it_was_and_the_next_fit_logs_under_new_steps(tmp_path):
    logger = CSVLogger(tmp_path / "logs")
    case = Case(Failing, epochs=3, validation=True)
    trainer, Failing.fails = trainer_for(case, tmp_path, logger=logger, log_every_n_steps=1), True
    try:
        with pytest.raises(ArithmeticError):
            trainer.fit(Failing(), **data_for(case))
    finally:
        Failing.fails = False
    assert "log_metrics" not in vars(logger)
    trainer.fit(Failing(), **data_for(case))
    rows = rows_of(logger)
    trained = [row for row in rows if "loss" in row]
    assert len({row["step"] for row in trained}) == len(trained)
    assert {place(row) for row in rows if "val_loss" in row} == set(PLACES)


class PatchedLogger(CSVLogger):
    """A logger whose instance has a `log_metrics` of its own already."""

    def __init__(self, *args):
        super().__init__(*args)
        self.log_metrics = self.heard = lambda metrics, step=None: CSVLogger.log_metrics(self, metrics, step)


def test_what_the_logger_itself_held_is_put_back(tmp_path):
    logger = PatchedLogger(tmp_path / "logs")
    trainer_for(CASE, tmp_path, logger=logger, log_every_n_steps=1).fit(Net(scheduler="step"), **data_for(CASE))
    assert logger.log_metrics is logger.heard
    assert {place(row) for row in rows_of(logger)} == set(PLACES)


SHOWN = {
    "learning rates": lambda: library.LearningRateMonitor("step"),
    "tqdm": library.TQDMProgressBar,
    "rich": library.RichProgressBar,
    "summary": library.ModelSummary,
    "rich summary": library.RichModelSummary,
    "timer": library.Timer,
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A record of a training that shows and logs nothing."""
    return shown(tmp_path_factory.mktemp("bare"))


def shown(folder, **changes):
    case = CASES["plateau"]
    torch.manual_seed(0)
    trainer = trainer_for(case, folder, **changes)
    trainer.fit(Validated(scheduler="plateau"), **data_for(case))
    trainer.unlearn(rows=[3])
    return folder


def test_the_step_that_loggers_get_changes_no_bit(tmp_path, bare):
    """A trainer that has logged a million steps trains as one that has logged none."""
    case = CASES["plateau"]
    torch.manual_seed(0)
    trainer = trainer_for(case, tmp_path, logger=CSVLogger(tmp_path / "logs"), log_every_n_steps=7)
    trainer.callbacks[0]._steps.next = 10**6
    trainer.fit(Validated(scheduler="plateau"), **data_for(case))
    trainer.unlearn(rows=[3])
    assert_same_record(bare, tmp_path)


@pytest.mark.parametrize("name", SHOWN)
def test_what_only_shows_or_logs_changes_no_bit(name, tmp_path, bare, capsys):
    loggers = [CSVLogger(tmp_path / "logs"), TensorBoardLogger(tmp_path / "tb")]
    bars = {"enable_progress_bar": name in ("tqdm", "rich"), "enable_model_summary": "summary" in name}
    callback = SHOWN[name]()
    assert_same_record(bare, shown(tmp_path, logger=loggers, log_every_n_steps=2, callbacks=[callback], **bars))
