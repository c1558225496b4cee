"""A training that differs from the recorded one is refused, and every field that differs is named."""

import re
import shutil
from functools import partial

import pytest
import torch
from lightning.pytorch import callbacks as library
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import lr_scheduler as rates
from torch.utils.data import DataLoader

from pybrush.errors import FingerprintError
from pybrush.record import Record
from tests.lightning.models import Net, Rows, Validated
from tests.lightning.test_bitwise import fitted
from tests.lightning.test_refusals import loader
from tests.lightning.twin import CASES, KEY, Case, data_for, trainer_for
from tests.lightning.untouched import by_fit, by_request


class Base(Net):
    """The module that was fitted."""

    def __init__(self, rate=0.1, activation=None, loss=nn.functional.cross_entropy):
        super().__init__()
        self.save_hyperparameters("rate")
        self.net[2] = activation or nn.ReLU()
        self.loss, self.rate = loss, rate

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate, momentum=FIXED["momentum"])
        return {"optimizer": optimizer, "lr_scheduler": rates.StepLR(optimizer, FIXED["every"])}


FIXED = {"momentum": 0.9, "every": 3}


class Other(Base):
    """Another class."""


def halves(batch):
    return torch.utils.data.default_collate([(x / 2, y) for x, y in batch])


class OtherRows(Rows):
    """The same rows from another class."""


def seeded(worker):
    """Does nothing, under another name than Lightning's."""


CHANGES = {
    "hyperparameters.rate": {"module": lambda: Base(rate=0.2)},
    "parts.net.2": {"module": lambda: Base(activation=nn.Tanh())},
    "parts.loss": {"module": lambda: Base(loss=nn.functional.nll_loss)},
    "source.Other": {"module": Other},
    "source.collate_fn": {"loader": {"collate_fn": halves}},
    "source.OtherRows": {"rows": OtherRows},
    "optimization.optimizers": {"fixed": {"momentum": 0.8}},
    "optimization.schedulers": {"fixed": {"every": 2}},
    "loader.drop_last": {"loader": {"drop_last": True}},
    "plan.order": {"loader": {"shuffle": False}},
    "callbacks": {"trainer": {"callbacks": [library.LambdaCallback()]}},
    "trainer.precision": {"trainer": {"precision": "bf16-mixed"}},
    "plan.seed": {"sisa": {"seed": 6}},
    "plan.shards": {"sisa": {"shards": 3}},
    "plan.slices": {"sisa": {"slices": 1}},
    "plan.naming": {"sisa": {"ids": "names"}},
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a record of Base."""
    folder = tmp_path_factory.mktemp("recorded")
    trainer_for(CASES["momentum"], folder).fit(Base(), loader())
    return folder


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("call", ["fit", "unlearn"])
def test_a_training_that_differs_is_refused_and_the_field_is_named(field, call, recorded, tmp_path, monkeypatch):
    change = CHANGES[field]
    shutil.copytree(recorded / "record", tmp_path / "record")
    for name, value in change.get("fixed", {}).items():
        monkeypatch.setitem(FIXED, name, value)
    trainer = trainer_for(CASES["momentum"], tmp_path, sisa=change.get("sisa", {}), **change.get("trainer", {}))
    module = change.get("module", Base)()
    data = loader(change.get("rows", Rows)(), **change.get("loader", {}))
    run = trainer.fit if call == "fit" else partial(trainer.unlearn, None, rows=[3])
    kept = by_fit if call == "fit" else by_request
    with kept(trainer, module, tmp_path), pytest.raises(FingerprintError, match=rf"\n  {re.escape(field)}"):
        run(model=module, train_dataloaders=data)


@pytest.mark.parametrize(
    "field", ["loader.batch_size", "plan.epochs_per_slice", "trainer.accumulate_grad_batches", "workers"]
)
def test_a_fit_with_other_numbers_is_refused_where_a_request_takes_the_records(field, recorded, tmp_path):
    shutil.copytree(recorded / "record", tmp_path / "record")
    changes = {
        "loader.batch_size": ({}, {"batch_size": 7}),
        "workers": ({}, {"worker_init_fn": seeded, "num_workers": 1}),
        "plan.epochs_per_slice": ({"max_epochs": 9}, {}),
        "trainer.accumulate_grad_batches": ({"accumulate_grad_batches": 3}, {}),
    }
    trainer_settings, loader_settings = changes[field]
    trainer = trainer_for(CASES["momentum"], tmp_path, **trainer_settings)
    module = Base()
    refused = pytest.raises(FingerprintError, match=rf"\n  {re.escape(field)}")
    with by_fit(trainer, module, tmp_path), refused:
        trainer.fit(module, loader(**loader_settings))
    result = trainer.unlearn(rows=[3], model=Base(), train_dataloaders=loader(**loader_settings))
    assert result.forgotten == 1


def test_validation_data_counts_where_something_monitors_it(tmp_path):
    trainer, _ = fitted("plateau", tmp_path)
    case = CASES["plateau"]
    later, data = trainer_for(case, tmp_path), data_for(case)
    changed = {**data, "val_dataloaders": DataLoader(Rows(rows=12, seed=8), batch_size=5)}
    module = Validated(scheduler="plateau")
    with by_request(later, module, tmp_path), pytest.raises(FingerprintError, match=r"validation\.data"):
        later.unlearn(rows=[3], model=module, **changed)
    more_often = trainer_for(case, tmp_path, val_check_interval=0.5)
    with by_fit(more_often, module, tmp_path), pytest.raises(FingerprintError, match=r"trainer\.val_check_interval"):
        more_often.fit(module, **data)
    assert trainer.unlearn(rows=[3]).forgotten == 1


def test_an_early_stop_of_another_name_still_makes_validation_data_count(tmp_path):
    class Stops(library.EarlyStopping):
        """By another name."""

    case = Case(Validated, slices=1, validation=True, callbacks=(lambda: Stops("val_loss"),))
    trainer = trainer_for(case, tmp_path)
    trainer.fit(Validated(), **data_for(case))
    assert "validation" in Record.open(tmp_path / "record", KEY).plan.semantic


def test_callbacks_that_only_look_on_may_come_and_go(recorded, tmp_path):
    shutil.copytree(recorded / "record", tmp_path / "record")
    watching = [library.LearningRateMonitor(), library.DeviceStatsMonitor(cpu_stats=False)]
    trainer = trainer_for(CASES["momentum"], tmp_path, callbacks=watching, logger=CSVLogger(tmp_path))
    assert trainer.unlearn(rows=[3], model=Base(), train_dataloaders=loader()).forgotten == 1
    without = trainer_for(CASES["momentum"], tmp_path)
    assert without.unlearn(rows=[5], model=Base(), train_dataloaders=loader()).forgotten == 1
