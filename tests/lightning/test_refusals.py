"""What SISA in Lightning does not train exactly is refused, all at once and before anything is touched."""

import re
import shutil
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch import callbacks as library
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, WeightedRandomSampler

from pybrush.errors import (
    ConfigurationError,
    ForgetError,
    PyBrushError,
    RecordError,
    UnknownSamplesError,
    UnsupportedError,
)
from pybrush.record import Record
from pybrush_lightning import SISA, unlearn
from tests.lightning.models import Net, Rows, WithLoader
from tests.lightning.test_bitwise import fitted
from tests.lightning.twin import CASES, KEY, Case, trainer_for
from tests.lightning.untouched import Listening, by_fit, by_request, module_state
from tests.untouched import untouched

ROWS = Rows()


def loader(rows=ROWS, **settings):
    return DataLoader(rows, **({"batch_size": 5, "shuffle": True} | settings))


def leftovers(trainer):
    """Return the names of everything that is patched onto a trainer for the length of a fit."""
    loop = trainer.fit_loop
    patched = {"run"} & (vars(loop).keys() | vars(loop.epoch_loop.val_loop).keys())
    return patched | ({"resume_start"} & vars(trainer._checkpoint_connector).keys())


# Settings


class BringsCallbacks(Net):
    def configure_callbacks(self):
        return [library.LambdaCallback()]


class Sized(WithLoader):
    """Has what the batch size finder looks for."""

    batch_size = 5


SETTINGS = {
    "max_steps=0": {"max_steps": 0},
    "max_epochs=0": {"max_epochs": 0},
    "max_epochs=-1": {"max_epochs": -1},
    "max_time": {"max_time": {"hours": 1}},
    "limit_train_batches=0": {"limit_train_batches": 0},
    "limit_train_batches=0.0": {"limit_train_batches": 0.0},
    "val_check_interval as a time": {"val_check_interval": "00:00:10:00"},
    "16-true": {"precision": "16-true"},
    "StochasticWeightAveraging": {"callbacks": [library.StochasticWeightAveraging(0.1)]},
    "EMAWeightAveraging": {"callbacks": [library.EMAWeightAveraging()]},
    "BackboneFinetuning": {"callbacks": [library.BackboneFinetuning()]},
    "ModelPruning": {"callbacks": [library.ModelPruning("l1_unstructured")]},
    "LearningRateFinder": {"callbacks": [library.LearningRateFinder()]},
    "BatchSizeFinder": {"callbacks": [library.BatchSizeFinder()]},
    "OnExceptionCheckpoint": {
        "callbacks": [library.OnExceptionCheckpoint("nowhere")],
        "enable_checkpointing": True,
    },
    "two SISA": {"callbacks": [SISA(1, 2, record="elsewhere", key=KEY)]},
}
"""Every setting does what its name says, in a trainer with two slices."""


@pytest.mark.filterwarnings("ignore:.*was called without a model", "ignore:.*there is no last checkpoint")
@pytest.mark.filterwarnings("ignore:You are using `LearningRateFinder`", "ignore:.*overfit_batches")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_cannot_be_trained_exactly_is_refused_before_a_record_is_made(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Lightning writes a checkpoint at the refusal
    trainer, module = trainer_for(CASES["momentum"], tmp_path, **SETTINGS[name]), Sized(Rows)
    with by_fit(trainer, module, tmp_path / "record"), pytest.raises(UnsupportedError, match=name):
        trainer.fit(module)
    assert leftovers(trainer) == set()


def test_a_module_that_brings_callbacks_is_refused(tmp_path):
    with untouched(tmp_path), pytest.raises(UnsupportedError, match="configure_callbacks"):
        trainer_for(CASES["momentum"], tmp_path).fit(BringsCallbacks(), loader())


class Endless(IterableDataset):
    def __iter__(self):
        return iter(ROWS)


class OwnLoader(DataLoader):
    pass


LOADERS = {
    "OwnLoader": lambda: OwnLoader(ROWS, batch_size=5),
    "list": lambda: [loader(), loader()],
    "dict": lambda: {"a": loader()},
    "CombinedLoader": lambda: lightning.pytorch.utilities.CombinedLoader([loader()]),
    "IterableDataset": lambda: DataLoader(Endless(), batch_size=5),
    "batch_size=None": lambda: DataLoader(ROWS, batch_size=None),
    "batch_sampler": lambda: DataLoader(ROWS, batch_sampler=OwnBatches(SequentialSampler(ROWS), 5, False)),
    "RandomSampler": lambda: DataLoader(ROWS, batch_size=5, sampler=RandomSampler(ROWS, replacement=True)),
    "RandomSampler: pass": lambda: DataLoader(ROWS, batch_size=5, sampler=RandomSampler(ROWS, num_samples=10)),
    "WeightedRandomSampler": lambda: DataLoader(ROWS, batch_size=5, sampler=WeightedRandomSampler([1.0] * 44, 44)),
    "SequentialSampler": lambda: DataLoader(ROWS, batch_size=5, sampler=SequentialSampler(range(10))),
}


class OwnBatches(torch.utils.data.BatchSampler):
    pass


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("given_by", ["hand", "the module"])
def test_a_loader_whose_rows_cannot_be_picked_is_refused(kind, given_by, tmp_path):
    class Bringing(Net):
        def train_dataloader(self):
            return LOADERS[kind]()

    trainer, module = trainer_for(CASES["momentum"], tmp_path), Net() if given_by == "hand" else Bringing()
    with by_fit(trainer, module, tmp_path), pytest.raises(UnsupportedError, match=re.escape(kind)):
        trainer.fit(module, *([LOADERS[kind]()] if given_by == "hand" else []))
    assert leftovers(trainer) == set()


def test_all_refusals_come_in_one_message(tmp_path):
    trainer = trainer_for(
        CASES["momentum"], tmp_path, max_steps=0, limit_train_batches=0, callbacks=[library.BackboneFinetuning()]
    )
    with pytest.raises(UnsupportedError) as caught:
        trainer.fit(BringsCallbacks(), OwnLoader(ROWS, batch_size=5))
    text = str(caught.value)
    assert text.startswith("SISA cannot train this exactly; change 5 settings:")
    named = ("max_steps", "limit_train_batches", "BackboneFinetuning", "configure_callbacks", "OwnLoader")
    assert all(f"\n  - {name}" in text for name in named)


def test_a_request_refuses_the_same_before_it_is_accepted(tmp_path):
    fitted("momentum", tmp_path)
    trainer = trainer_for(CASES["momentum"], tmp_path, val_check_interval="00:00:10:00")
    module = Net()
    with by_request(trainer, module, tmp_path), pytest.raises(UnsupportedError, match="change 2 settings"):
        trainer.unlearn(rows=[3], model=module, train_dataloaders=OwnLoader(ROWS, batch_size=5))


def test_a_parameter_without_a_shape_is_refused(tmp_path):
    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.LazyLinear(3)

    with untouched(tmp_path), pytest.raises(UnsupportedError, match=r"net\.weight has no shape"):
        trainer_for(CASES["momentum"], tmp_path).fit(Lazy(), loader())


# Checkpoints and trial runs


def test_a_fit_from_a_checkpoint_is_refused_before_it_is_read(tmp_path):
    module = Net()
    plain = lightning.Trainer(max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", logger=False)
    plain.fit(module, loader())
    saved = plain.checkpoint_callback.best_model_path
    stop = library.EarlyStopping("loss", patience=5)
    trainer = trainer_for(CASES["whole"], tmp_path, callbacks=[stop])
    fresh = Net()
    kept = untouched(tmp_path, read=lambda: module_state(fresh))  # EarlyStopping takes note of the trainer
    with kept, pytest.raises(UnsupportedError, match="ckpt_path"):
        trainer.fit(fresh, loader(), ckpt_path=saved)
    assert leftovers(trainer) == set()


def test_a_checkpoint_that_an_interrupted_call_left_in_the_trainer_is_not_loaded(tmp_path):
    trainer = trainer_for(CASES["momentum"], tmp_path)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in Net().state_dict().items()}
    trainer._checkpoint_connector._loaded_checkpoint = {"state_dict": zeros, "pytorch-lightning_version": "2.6.0"}
    module = Net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer.fit(module, loader())
    record = Record.open(tmp_path / "record", KEY)
    initial = record.store.load("initial")[0]["module"]["parameters"]
    assert all(torch.equal(before[name], tensor) for name, tensor in initial.items())


def test_fast_dev_run_touches_no_record(tmp_path):
    trainer = trainer_for(CASES["momentum"], tmp_path, fast_dev_run=True)
    module = Net()
    trainer.fit(module, loader())
    trainer.test(module, loader(shuffle=False), verbose=False)
    assert not (tmp_path / "record").exists()
    fitted("momentum", tmp_path)
    with by_request(trainer, module, tmp_path), pytest.raises(UnsupportedError, match="fast_dev_run"):
        trainer.unlearn(rows=[3], model=module, train_dataloaders=loader())


# The call itself


def test_unlearn_needs_one_sisa_callback_a_record_a_module_and_data(tmp_path):
    plain = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigurationError, match="one SISA callback"):
        plain.unlearn(rows=[1])
    trainer = trainer_for(CASES["momentum"], tmp_path)
    with pytest.raises(ConfigurationError, match="model="):
        trainer.unlearn(rows=[1])
    with pytest.raises(RecordError, match="no record"):
        trainer.unlearn(rows=[1], model=Net(), train_dataloaders=loader())
    fitted("momentum", tmp_path)
    with pytest.raises(ConfigurationError, match="train_dataloaders="):
        trainer.unlearn(rows=[1], model=Net())
    with pytest.raises(ConfigurationError, match="not both"):
        trainer.unlearn(rows=[1], model=Net(), train_dataloaders=loader(), datamodule=object())
    assert unlearn(trainer, rows=[1], model=Net(), train_dataloaders=loader()).forgotten == 1


@pytest.mark.parametrize(
    "arguments",
    [{"outputs": "logit"}, {"aggregate_step": 3}, {"aggregate_step": ""}],
    ids=str,
)
def test_arguments_of_sisa_that_cannot_work_are_refused(arguments, tmp_path):
    with untouched(tmp_path), pytest.raises(PyBrushError):
        trainer_for(CASES["momentum"], tmp_path, sisa=arguments).fit(Net(), loader())


# Before acceptance nothing of Lightning runs


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        ({"ids": ["nobody-knows-this-one"]}, UnknownSamplesError),
        ({"rows": [99]}, ForgetError),
        ({"forget": Rows(range(44))}, ForgetError),
        ({"rows": range(44)}, ForgetError),
    ],
    ids=["an unknown id", "a row too far", "an empty set", "all rows"],
)
def test_before_a_request_is_accepted_no_hook_no_logger_and_no_checkpoint_fires(ask, error, tmp_path):
    listening = Listening()
    saving = library.ModelCheckpoint(tmp_path / "saved", save_on_exception=True)
    logger = CSVLogger(tmp_path / "logs")
    case = Case(sisa={"ids": "names"}, callbacks=(lambda: listening,))
    first = trainer_for(case, tmp_path, enable_checkpointing=True, callbacks=[saving])
    first.fit(Net(), loader())
    listening.heard.clear()
    shutil.rmtree(tmp_path / "saved")
    trainer = trainer_for(case, tmp_path, enable_checkpointing=True, callbacks=[saving], logger=logger)
    with pytest.raises(error):
        trainer.unlearn(model=Net(), train_dataloaders=loader(), **ask)
    assert listening.heard == []
    assert not (tmp_path / "saved").exists() and not Path(logger.log_dir).exists()
    assert Record.open(tmp_path / "record", KEY).requests == ()


def test_checkpoints_that_no_request_could_erase_are_refused(tmp_path):
    remote = library.ModelCheckpoint("memory://somewhere")
    trainer = trainer_for(CASES["momentum"], tmp_path, enable_checkpointing=True, callbacks=[remote])
    with pytest.raises(UnsupportedError, match="memory://somewhere"):
        trainer.fit(Net(), loader())
    trainer, _ = fitted("momentum", tmp_path)
    with pytest.raises(UnsupportedError, match="memory://by-hand"):
        trainer.save_checkpoint("memory://by-hand.ckpt")


class Late(Net):
    """Builds its network in a hook of Lightning's."""

    def __init__(self):
        lightning.LightningModule.__init__(self)
        self.optimizer, self.scheduler, self.net = "momentum", None, None

    def build(self):
        if self.net is None:
            self.net = Net().net


class InConfigureModel(Late):
    def configure_model(self):
        self.build()


class InSetup(Late):
    def setup(self, stage):
        self.build()


def test_a_module_that_builds_itself_late_is_built_for_a_request_or_the_user_is_told_how(tmp_path):
    for number, kind in enumerate([InConfigureModel, InSetup]):
        folder = tmp_path / str(number)
        trainer_for(CASES["momentum"], folder).fit(kind(), loader())
        later, module = trainer_for(CASES["momentum"], folder), kind()
        if kind is InSetup:
            with pytest.raises(ConfigurationError, match=r"model\.setup\('fit'\)"):
                later.unlearn(rows=[3], model=module, train_dataloaders=loader())
            module.setup("fit")
        assert later.unlearn(rows=[3], model=module, train_dataloaders=loader()).forgotten == 1


@pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer")
def test_a_module_without_an_optimizer_is_recorded_as_it_is(tmp_path):
    class Untrained(Net):
        def configure_optimizers(self):
            return None

    trainer = trainer_for(CASES["momentum"], tmp_path)
    trainer.fit(Untrained(), loader())
    assert trainer.unlearn(rows=[3]).forgotten == 1
