"""State outside of parameters and buffers: what is stored, what is refused, and what never mixes."""

import random

import lightning
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch import callbacks as library
from torch import nn
from torch.utils.data import DataLoader

from pybrush.errors import ConfigurationError, TrainingError, UnsupportedError
from pybrush.record import Record, states
from pybrush_lightning import state
from tests.lightning.models import Net, Rows, Validated
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.twin import CASES, KEY, data_for, trainer_for


class Stream:
    """Something that is no plain value, and can be pickled."""

    def __init__(self):
        self.position = 0


class Hiding(Net):
    """Keeps state where no stage can store it."""

    def __init__(self):
        super().__init__()
        self.stream, self.unused = Stream(), Stream()

    def training_step(self, batch, index):
        self.stream.position += 1
        return super().training_step(batch, index)


class ChangesHyperparameters(Net):
    def __init__(self, strength=1.0):
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch, index):
        self.hparams.strength *= 0.9
        return super().training_step(batch, index) * self.hparams.strength


class Averaging(library.Callback):
    """Keeps a second module, as hand-made averages do."""

    def on_fit_start(self, trainer, pl_module):
        self.average = nn.Linear(6, 12)

    def on_train_batch_end(self, trainer, pl_module, *_):
        with torch.no_grad():
            self.average.weight.lerp_(pl_module.net[0].weight, 0.5)


class AveragingInState(Averaging):
    """The same, answered for by its own state_dict."""

    def state_dict(self):
        return {"weight": self.average.weight.detach().clone()}

    def load_state_dict(self, state):
        with torch.no_grad():
            self.average.weight.copy_(state["weight"])


@pytest.mark.parametrize(
    ("module", "callback", "name"),
    [
        (Hiding, None, r"module\.stream,"),
        (ChangesHyperparameters, None, r"module\.hparams\.strength"),
        (Net, Averaging, r"Averaging\.0\.average"),
    ],
    ids=["an object", "a hyperparameter", "a callback's module"],
)
def test_state_that_changes_and_that_no_stage_can_store_is_refused_by_name(module, callback, name, tmp_path):
    trainer = trainer_for(CASES["momentum"], tmp_path, callbacks=[callback()] if callback else [])
    with pytest.raises(TrainingError, match=name):
        trainer.fit(module(), **data_for(CASES["momentum"]))


def test_a_callback_that_answers_for_its_module_itself_is_rewound_with_the_stages(tmp_path):
    trainer = trainer_for(CASES["momentum"], tmp_path, callbacks=[AveragingInState()])
    torch.manual_seed(0)
    trainer.fit(Net(), **data_for(CASES["momentum"]))
    record = Record.open(tmp_path / "record", KEY)
    trees = [record.store.load(key)[0]["callbacks"] for key in record.constituents().values()]
    first, second = (tree["AveragingInState.0"]["state"]["weight"] for tree in trees)
    assert not torch.equal(first, second)


class Preparing(library.Callback):
    """Makes its attributes when the fit starts."""

    def on_fit_start(self, trainer, pl_module):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(float(outputs["loss"]))


class PreparingModule(Net):
    """Makes its attributes when the fit starts."""

    def on_fit_start(self):
        self.count = 0

    def training_step(self, batch, index):
        self.count += 1
        return super().training_step(batch, index)


def test_attributes_that_are_made_when_the_fit_starts_are_there_in_every_stage(tmp_path):
    trainer, module = trainer_for(CASES["momentum"], tmp_path, callbacks=[Preparing()]), PreparingModule()
    trainer.fit(module, **data_for(CASES["momentum"]))
    trainer.unlearn(rows=[3])
    assert len(trainer.callbacks[1].losses) == module.count > 0


class Harmless(Net):
    """Holds much that is not plain and none of which changes."""

    def __init__(self):
        super().__init__()
        self.lock, self.action, self.cycle = Stream(), lambda x: x, []
        self.cycle.append(self.cycle)
        self.parts = [self.net[0], self.net[4]]
        self.by_name = {"first": self.net[0].weight}
        self.generator = np.random.default_rng(0)

    def configure_optimizers(self):
        self.optimizer_now = super().configure_optimizers()
        return self.optimizer_now


def test_what_does_not_change_is_not_refused_and_references_stay_references(tmp_path):
    trainer, module = trainer_for(CASES["momentum"], tmp_path), Harmless()
    trainer.fit(module, **data_for(CASES["momentum"]))
    trainer.unlearn(rows=[3])
    assert module.parts[0] is module.net[0]
    assert module.by_name["first"] is module.net[0].weight


class Listed(Net):
    """Gives the optimizer a plain list of its parameters."""

    def __init__(self):
        super().__init__()
        self.trained = list(self.parameters())

    def configure_optimizers(self):
        return torch.optim.SGD(self.trained, lr=0.1)


def test_a_plain_list_of_parameters_is_trained(tmp_path):
    trainer, module = trainer_for(CASES["momentum"], tmp_path), Listed()
    before = module.net[0].weight.detach().clone()
    trainer.fit(module, **data_for(CASES["momentum"]))
    assert not torch.equal(module.net[0].weight, before)
    assert module.trained[0] is module.net[0].weight


def test_the_seeds_of_the_script_do_not_reach_the_stages_and_come_back_as_they_were(tmp_path):
    found = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        torch.manual_seed(0)
        trainer, module = trainer_for(CASES["momentum"], folder), Net()
        lightning.seed_everything(seed, verbose=False)
        before = (random.getstate(), torch.get_rng_state())
        trainer.fit(module, **data_for(CASES["momentum"]))
        trainer.unlearn(rows=[3])
        assert before[0] == random.getstate() and torch.equal(before[1], torch.get_rng_state())
        found.append(folder)
    assert_same_record(*found)


def test_a_module_with_more_parts_than_the_record_is_refused_as_another_module(tmp_path):
    trainer, module = trainer_for(CASES["momentum"], tmp_path), Net()
    trainer.fit(module, **data_for(CASES["momentum"]))
    tree = state.read_module(module)
    for part in (nn.Linear(2, 2), nn.Dropout()):
        module.extra = part
        with pytest.raises(ValueError, match="extra"):
            state.write_module(module, tree)
        del module.extra
    state.write_module(module, tree)


def test_a_validation_set_is_never_trained_on_and_draws_nothing_from_training(tmp_path):
    """The same training with and without validation has the same weights."""
    weights = []
    validation = {"val_dataloaders": DataLoader(Rows(seed=9), batch_size=7)}
    for share in (0.0, 1.0):
        folder = tmp_path / str(share)
        torch.manual_seed(0)
        module = Validated()
        trainer = trainer_for(CASES["momentum"], folder, val_check_interval=0.5, limit_val_batches=share)
        trainer.fit(module, **data_for(CASES["momentum"]), **validation)
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_sparse_attributes_and_the_like_are_no_plain_values(tmp_path):
    class Sparse(Net):
        def __init__(self):
            super().__init__()
            self.adjacency = torch.eye(3).to_sparse()

    trainer = trainer_for(CASES["momentum"], tmp_path)
    trainer.fit(Sparse(), **data_for(CASES["momentum"]))
    with pytest.raises(UnsupportedError):
        states.pack(Sparse().adjacency)


class CountsItsOptimizers(Net):
    """Changes an attribute and draws where it makes its optimizer."""

    made = 0

    def configure_optimizers(self):
        self.made += 1
        torch.rand(1)
        return super().configure_optimizers()


def test_looking_at_the_optimizer_before_training_changes_nothing(tmp_path):
    trainer, module = trainer_for(CASES["momentum"], tmp_path), CountsItsOptimizers()
    trainer.fit(module, **data_for(CASES["momentum"]))
    made, before = module.made, torch.get_rng_state()
    trainer.unlearn(rows=[3], dry_run=True)
    assert module.made == made
    assert torch.equal(before, torch.get_rng_state())


class Frozen(Net):
    """Its first layer is frozen from the start, its last one from the third step on."""

    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)
        self.steps = 0

    def training_step(self, batch, index):
        self.steps += 1
        if self.steps == 3:
            self.net[4].bias.requires_grad_(False)
        STEPS.append((self.steps, self.net[0].weight.requires_grad, self.net[4].bias.requires_grad))
        return super().training_step(batch, index)


STEPS = []


def test_what_is_frozen_stays_frozen_and_what_a_shard_freezes_is_free_in_the_next(tmp_path):
    STEPS.clear()
    trainer, module = trainer_for(CASES["momentum"], tmp_path), Frozen()
    before = module.net[0].weight.detach().clone()
    trainer.fit(module, **data_for(CASES["momentum"]))
    assert torch.equal(module.net[0].weight, before)
    assert all((first, last) == (False, steps < 3) for steps, first, last in STEPS)
    assert len([steps for steps, *_ in STEPS if steps == 1]) == 2


class KeepsGraphs(Net):
    """Keeps what is still part of a graph, as logging code does."""

    def training_step(self, batch, index):
        self.last_logits = self(batch[0])
        self.last_losses = [super().training_step(batch, index)]
        return self.last_losses[0]


def test_tensors_of_a_graph_may_be_kept(tmp_path):
    trainer, module = trainer_for(CASES["momentum"], tmp_path), KeepsGraphs()
    trainer.fit(module, **data_for(CASES["momentum"]))
    assert trainer.unlearn(rows=[3]).forgotten == 1
    assert module.last_logits.shape[1] == 3 and not module.last_logits.requires_grad


class TrainsATensor(Net):
    """Trains a tensor that is no parameter."""

    def __init__(self):
        super().__init__()
        self.temperature = torch.ones((), requires_grad=True)

    def forward(self, x):
        return super().forward(x) * self.temperature

    def configure_optimizers(self):
        return torch.optim.SGD([*self.parameters(), self.temperature], lr=0.1)


def test_a_tensor_that_is_trained_without_being_a_parameter_is_refused_by_name(tmp_path):
    with pytest.raises(TrainingError, match=r"module\.temperature"):
        trainer_for(CASES["momentum"], tmp_path).fit(TrainsATensor(), **data_for(CASES["momentum"]))


@pytest.mark.parametrize("kind", ["tensor", "view", "array", "list", "callback"])
def test_a_module_that_holds_the_training_data_is_refused_before_a_record_is_made(kind, tmp_path):
    rows, module, callback = Rows(), Net(), library.Callback()
    held = {"tensor": rows.x, "view": {"first": rows.x[:3]}, "array": rows.x.numpy(), "list": rows.names}
    if kind == "callback":
        callback.images = [rows.x]
    else:
        module.images = held[kind]
    trainer = trainer_for(CASES["momentum"], tmp_path, callbacks=[callback])
    with pytest.raises(ConfigurationError, match=r"\.images is training data"):
        trainer.fit(module, DataLoader(rows, batch_size=5, shuffle=True))
    assert not (tmp_path / "record").exists()


def test_metrics_that_share_their_state_are_rewound_with_the_stages(tmp_path):
    class Measured(Net):
        def __init__(self):
            super().__init__()
            metrics = {"p": torchmetrics.Precision, "r": torchmetrics.Recall, "a": torchmetrics.Accuracy}
            kinds = {name: kind(task="multiclass", num_classes=3) for name, kind in metrics.items()}
            self.metrics = torchmetrics.MetricCollection(kinds)

        def training_step(self, batch, index):
            logits = self(batch[0])
            self.metrics.update(logits, batch[1])
            loss = nn.functional.cross_entropy(logits, batch[1])
            return loss * (1 + sum(self.metrics.compute().values()))

    folders = []
    for gone in ([], [3, 20]):
        folder = tmp_path / str(len(gone))
        folder.mkdir()
        torch.manual_seed(0)
        trainer = trainer_for(CASES["momentum"], folder)
        trainer.fit(Measured(), **data_for(CASES["momentum"], gone))
        folders.append(folder)
        if not gone:
            trainer.unlearn(rows=[3, 20])
    assert_same_record(*folders)


def test_the_sanity_check_leaves_no_trace_in_any_stage(tmp_path):
    class Moved(Validated):
        moved = 0

        def validation_step(self, batch, index):
            self.moved = self.moved + 1
            with torch.no_grad():
                self.net[1].running_mean += 1
            super().validation_step(batch, index)

    folders = []
    for steps in (0, 2):
        folder = tmp_path / str(steps)
        folder.mkdir()
        torch.manual_seed(0)
        trainer = trainer_for(CASES["momentum"], folder, num_sanity_val_steps=steps)
        validation = DataLoader(Rows(seed=9), batch_size=7)
        trainer.fit(Moved(), **data_for(CASES["momentum"]), val_dataloaders=validation)
        trainer.unlearn(rows=[3])
        folders.append(folder)
    assert_same_record(*folders)
