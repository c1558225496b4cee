"""After a request no state that saw the forgotten rows can be loaded from anywhere below the trainer's folder."""

import logging
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from pybrush.record import Record
from tests import reference
from tests.lightning.models import Net, Rows
from tests.lightning.test_bitwise import fitted
from tests.lightning.twin import CASES, KEY, data_for, trainer_for

pytestmark = pytest.mark.filterwarnings("ignore:.*was called without a model:UserWarning")


def in_shard(shard):
    """Return a row of a shard's first slice."""
    cells = [reference.cell(reference.pseudonym(KEY, b"s:" + name.encode()), 2, 2) for name in Rows().names]
    return cells.index((shard, 0))


ROW = in_shard(1)
"""A row that the constituent in the module has seen."""


class Tainted(Net):
    """Row ROW is marked by a huge input: its trace is what the state of every stage that saw it shows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))

    def training_step(self, batch, index):
        self.largest = torch.maximum(self.largest, batch[0].abs().max())
        return super().training_step(batch, index)


def tainted_rows():
    rows = Rows()
    rows.x[ROW] = 1000.0
    return rows


def loader(rows):
    return DataLoader(rows, batch_size=5, shuffle=True)


def loadable_states(folder):
    """Return every file that torch can load, with what it loads."""
    found = {}
    for path in folder.rglob("*"):
        if path.suffix in (".ckpt", ".pt") and path.is_file():
            found[path] = torch.load(path, weights_only=False)
    return found


def saw_the_row(state):
    if "state_dict" not in state:
        return False
    return float(state["state_dict"]["largest"]) == 1000.0


def stages_that_saw(record):
    keys = record.store.keys()
    return [k for k in keys if float(record.store.load(k)[0]["module"]["buffers"]["largest"]) == 1000.0]


CHECKPOINTS = {
    "the default one": {},
    "every epoch": {"save_top_k": -1},
    "the best and the last": {"monitor": "loss", "save_top_k": 2, "save_last": True},
    "a link to the last": {"save_last": "link"},
    "always the same file": {"filename": "model", "enable_version_counter": False, "save_last": True},
    "weights only": {"save_weights_only": True, "save_on_train_epoch_end": True},
    "every two steps": {"every_n_train_steps": 2, "save_top_k": -1},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_no_loadable_state_that_saw_the_row_is_left_anywhere(kind, tmp_path):
    own = [ModelCheckpoint(**CHECKPOINTS[kind])] if CHECKPOINTS[kind] else []
    trainer = trainer_for(CASES["ids"], tmp_path, enable_checkpointing=True, callbacks=own)
    module = Tainted()
    trainer.fit(module, loader(tainted_rows()))
    trainer.save_checkpoint(tmp_path / "by-hand" / "final.ckpt")
    record = Record.open(tmp_path / "record", KEY)
    assert any(saw_the_row(state) for state in loadable_states(tmp_path).values())
    assert stages_that_saw(record)
    assert float(module.largest) == 1000.0
    result = trainer.unlearn(rows=[ROW])
    assert result.audit["artefacts_unlinked"]
    left = loadable_states(tmp_path)
    assert left
    assert not [path for path, state in left.items() if saw_the_row(state)]
    assert not stages_that_saw(record)
    assert float(module.largest) < 1000.0
    assert record.verify()


def test_the_checkpoint_callback_points_to_the_constituent_that_the_module_holds(tmp_path):
    trainer = trainer_for(CASES["momentum"], tmp_path, enable_checkpointing=True)
    module = Tainted()
    for forgotten in (None, [ROW], [20]):
        if forgotten is None:
            trainer.fit(module, loader(tainted_rows()))
        else:
            trainer.unlearn(rows=forgotten)
        held = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=False)["state_dict"]
        assert all(torch.equal(held[name], tensor) for name, tensor in module.state_dict().items())
        assert len(trainer.test(dataloaders=DataLoader(Rows(seed=2), batch_size=8), verbose=False)) == 1


def test_without_checkpoints_no_path_is_pointed_to(tmp_path):
    own = ModelCheckpoint(every_n_epochs=0)
    trainer = trainer_for(CASES["momentum"], tmp_path, enable_checkpointing=True, callbacks=[own])
    trainer.fit(Net(), loader(Rows()))
    assert own.best_model_path == own.last_model_path == ""


def test_in_another_process_the_callback_points_to_the_file_of_the_first(tmp_path):
    first = trainer_for(CASES["momentum"], tmp_path, enable_checkpointing=True)
    first.fit(Net(), loader(Rows()))
    later = trainer_for(CASES["momentum"], tmp_path, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="exists and is not empty"):
        later.fit(Net(), loader(Rows()))
    assert later.checkpoint_callback.best_model_path == first.checkpoint_callback.best_model_path != ""


def test_a_checkpoint_saved_after_a_request_holds_nothing_of_the_other_shards_optimizer(tmp_path):
    trainer, _ = fitted("momentum", tmp_path)
    record = Record.open(tmp_path / "record", KEY)
    placed = record.samples()
    names = trainer.callbacks[0].naming.roster(Rows(), record.names).names
    row = next(r for r in range(len(names)) if placed.shards[placed.find(names[[r]])[0]] == 0)
    trainer.unlearn(rows=[row])
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=False)["optimizer_states"][0]["state"]
    stored = record.store.load(record.constituents()[1])[0]["optimization"]["optimizers"][0]["state"]
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[n]["momentum_buffer"], stored[n]["momentum_buffer"]) for n in stored)


def test_saving_a_lone_constituent_warns_once_and_is_registered(tmp_path, caplog):
    trainer, _ = fitted("momentum", tmp_path)
    with caplog.at_level(logging.WARNING, "pybrush_lightning"):
        for name in ("one.ckpt", "two.ckpt"):
            trainer.save_checkpoint(tmp_path / name)
    warned = [message for message in caplog.messages if "one constituent of 2" in message]
    assert len(warned) == 1 and "aggregate(module)" in warned[0]
    held = Record.open(tmp_path / "record", KEY)
    assert held.artefacts() == {str(tmp_path / n): held.constituents()[1] for n in ("one.ckpt", "two.ckpt")}


def test_saving_the_only_constituent_does_not_warn(tmp_path, caplog):
    trainer, _ = fitted("one shard", tmp_path)
    with caplog.at_level(logging.WARNING, "pybrush_lightning"):
        trainer.save_checkpoint(tmp_path / "whole.ckpt")
    assert not [name for name, *_ in caplog.record_tuples if name.startswith("pybrush")]


class Failing(Net):
    """Fails in a stage, when told to."""

    fail_at = None

    def training_step(self, batch, index):
        if (self.trainer.current_epoch, index) == Failing.fail_at:
            raise ArithmeticError("on purpose")
        return super().training_step(batch, index)


class SavesOnException(lightning.Callback):
    """Saves after an error."""

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "failed" / "by-hand.ckpt")


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_is_saved_when_a_request_fails_is_registered(by_hand, tmp_path):
    """It is saved after the error, when the module is as it was before: with the row still in it."""
    own = ModelCheckpoint(tmp_path / "failed", save_on_exception=not by_hand)
    case = replace(CASES["ids"], callbacks=(SavesOnException,) if by_hand else ())
    trainer = trainer_for(case, tmp_path, enable_checkpointing=True, callbacks=[own])
    module = Failing()
    trainer.fit(module, loader(Rows()))
    Failing.fail_at = (3, 1)
    try:
        with pytest.raises(ArithmeticError):
            trainer.unlearn(rows=[ROW])
    finally:
        Failing.fail_at = None
    record = Record.open(tmp_path / "record", KEY)
    saved = loadable_states(tmp_path / "failed")
    by_error = [path for path, state in saved.items() if same(state["state_dict"], module.state_dict())]
    assert by_error
    assert {record.artefacts()[str(path)] for path in saved} <= record.ledger.wanted()
    assert {record.artefacts()[str(path)] for path in by_error} == {record.constituents()[1]}
    trainer.unlearn(rows=[ROW])
    assert not [path for path in by_error if path.exists()]


class SavesAtTheEnd(lightning.Callback):
    """Saves when the whole fit has ended."""

    def on_fit_end(self, trainer, pl_module):
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "end.ckpt")


def test_what_is_saved_when_a_fit_has_ended_is_registered_with_the_stage_that_ran_last(tmp_path):
    trainer = trainer_for(replace(CASES["ids"], callbacks=(SavesAtTheEnd,)), tmp_path)
    trainer.fit(Net(), loader(Rows()))
    path, record = str(tmp_path / "end.ckpt"), Record.open(tmp_path / "record", KEY)
    assert record.artefacts()[path] == record.constituents()[1]
    trainer.unlearn(rows=[in_shard(0)])
    weights = torch.load(path, weights_only=False)["state_dict"]
    stored = record.store.load(record.artefacts()[path])[0]["module"]
    assert record.artefacts()[path] == record.constituents()[0]
    assert same(weights, stored["parameters"] | stored["buffers"])


def same(weights, others):
    return all(torch.equal(others[name], tensor) for name, tensor in weights.items())


def test_a_callback_of_the_users_with_a_like_named_method_is_left_alone(tmp_path):
    class Own(lightning.Callback):
        def before_save(self):
            raise AssertionError

    trainer = trainer_for(CASES["one shard"], tmp_path, callbacks=[Own()])
    trainer.fit(Net(), **data_for(CASES["one shard"]))
    trainer.save_checkpoint(tmp_path / "one.ckpt")


def test_a_trainer_without_sisa_saves_as_ever(tmp_path):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=1, default_root_dir=tmp_path, **quiet)
    trainer.fit(Net(), loader(Rows()))
    assert trainer.checkpoint_callback.best_model_path
