"""After any error the user's objects are as they were, and the next call ends in the bits of a calm one."""

import random
import signal

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch import callbacks as library
from torch import nn
from torch.utils.data import DataLoader

from pybrush.errors import TrainingError, UnsupportedError
from pybrush.record import Record, states
from pybrush_lightning import state
from pybrush_lightning._private import INTERNAL_ATTRIBUTES
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.twin import CASES, KEY, Case, Net, Pushing, Remembering, Rows, Validated, data_for, trainer_for


class TroubleError(Exception):
    """Raised on purpose."""


class Switch:
    """Raises at a named place, the n-th time it is passed."""

    def __init__(self):
        self.set(None, 0)

    def set(self, at, left, error=TroubleError):
        self.at, self.left, self.error = at, left, error

    def passing(self, place):
        if place == self.at:
            self.left -= 1
            if self.left == 0:
                raise self.error(place)


SWITCH = Switch()


@pytest.fixture(autouse=True)
def switched_off():
    yield
    SWITCH.set(None, 0)


class Fragile(Remembering):
    """May raise in every hook."""

    def setup(self, stage):
        SWITCH.passing("module.setup")

    def training_step(self, batch, index):
        SWITCH.passing("training_step")
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        SWITCH.passing("validation_step")
        self.seen += 1
        self.log("val_loss", self(batch[0]).sum(), batch_size=len(batch[1]))

    def configure_optimizers(self):
        SWITCH.passing("configure_optimizers")
        return super().configure_optimizers()

    def on_save_checkpoint(self, checkpoint):
        SWITCH.passing("on_save_checkpoint")


class FragileCallback(Pushing):
    """May raise in its hooks."""

    def setup(self, trainer, pl_module, stage):
        SWITCH.passing("callback.setup")

    def on_fit_start(self, trainer, pl_module):
        SWITCH.passing("callback.on_fit_start")

    def on_train_start(self, trainer, pl_module):
        SWITCH.passing("callback.on_train_start")

    def on_train_end(self, trainer, pl_module):
        SWITCH.passing("callback.on_train_end")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        SWITCH.passing("callback.on_before_optimizer_step")


PLACES = [
    ("callback.setup", 1), ("module.setup", 1), ("callback.on_fit_start", 1), ("validation_step", 1),
    ("configure_optimizers", 1), ("configure_optimizers", 2), ("configure_optimizers", 3), ("training_step", 1),
    ("training_step", 8), ("validation_step", 5), ("callback.on_before_optimizer_step", 6),
    ("callback.on_train_start", 1), ("callback.on_train_end", 2), ("on_save_checkpoint", 2),
]  # fmt: skip
CASE = Case(Fragile, validation=True, callbacks=(FragileCallback,))


def make(folder, **changes):
    saving = library.ModelCheckpoint(folder / "saved", monitor="val_loss", save_top_k=2, save_last=True)
    trainer = trainer_for(CASE, folder, enable_checkpointing=True, callbacks=[saving], **changes)
    torch.manual_seed(3)
    return trainer, Fragile()


def everything(trainer, module):
    """Return all that an error must leave as it was, as bytes and identities."""
    loop, callbacks = trainer.fit_loop, trainer.callbacks
    tree = [state.read_module(module), state.read_callbacks(trainer, module)]
    settings = ["accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "max_epochs", "precision"]
    kept = ["best_k_models", "best_model_path", "last_model_path", "kth_best_model_path", "_last_global_step_saved"]
    random_state = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    return {
        "state": states.init_digest(tree),
        "settings": [getattr(trainer, name) for name in settings],
        "checkpoints": [{name: getattr(c, name) for name in kept} for c in trainer.checkpoint_callbacks],
        "random": random_state,
        "loop": (id(loop), loop.max_epochs, sorted(vars(loop)), sorted(vars(loop.epoch_loop.val_loop))),
        "connector": sorted(vars(trainer._checkpoint_connector)),
        "module": (
            sorted(vars(module).keys() - INTERNAL_ATTRIBUTES),
            [list(part._forward_pre_hooks) for part in module.modules()],
        ),
        "callbacks": sorted(map(id, callbacks)),
        "optimizers": list(map(id, trainer.optimizers)),
        "progress": (trainer.current_epoch, trainer.global_step),
    }


def differences(before, after):
    return [name for name in before if before[name] != after[name]]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(("place", "time"), PLACES)
def test_a_failed_fit_leaves_everything_as_it_was_and_the_next_one_is_right(place, time, tmp_path):
    trainer, module = make(tmp_path)
    before = everything(trainer, module)
    SWITCH.set(place, time)
    with pytest.raises(TroubleError):
        trainer.fit(module, **data_for(CASE))
    assert differences(before, everything(trainer, module)) == []
    SWITCH.set(None, 0)
    trainer.fit(module, **data_for(CASE))
    calm = tmp_path / "calm"
    calm.mkdir()
    other, same = make(calm)
    other.fit(same, **data_for(CASE))
    assert_same_record(tmp_path, calm)
    assert states.init_digest(state.read_module(module)) == states.init_digest(state.read_module(same))


@pytest.mark.parametrize(("place", "time"), PLACES)
def test_a_failed_request_leaves_everything_as_it_was_and_the_next_one_finishes_it(place, time, tmp_path, calm):
    trainer, module = make(tmp_path)
    trainer.fit(module, **data_for(CASE))
    before = everything(trainer, module)
    SWITCH.set(place, time)
    with pytest.raises(TroubleError):
        trainer.unlearn(rows=[3, 20])
    assert differences(before, everything(trainer, module)) == []
    SWITCH.set(None, 0)
    trainer.unlearn(rows=[3, 20])
    assert_same_record(tmp_path, calm)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A record in which the rows were forgotten without an error."""
    folder = tmp_path_factory.mktemp("calm")
    trainer, module = make(folder)
    trainer.fit(module, **data_for(CASE))
    trainer.unlearn(rows=[3, 20])
    return folder


def test_an_error_after_a_request_was_committed_goes_only_forward(tmp_path, monkeypatch):
    trainer, module = make(tmp_path)
    trainer.fit(module, **data_for(CASE))
    record = Record.open(tmp_path / "record", KEY)

    def failing(*_):
        raise TroubleError

    with monkeypatch.context() as patched:
        patched.setattr("pybrush.forget.collect", failing)
        with pytest.raises(TroubleError):
            trainer.unlearn(rows=[3, 20])
    assert record.requests[0].state == "committed"
    held = record.store.load(record.constituents()[1])[0]["module"]["parameters"]
    assert all(torch.equal(held[name], value) for name, value in module.named_parameters())
    pointed = torch.load(trainer.checkpoint_callback.last_model_path, weights_only=False)["state_dict"]
    assert all(torch.equal(pointed[name], value) for name, value in module.state_dict().items())
    assert trainer.unlearn(rows=[3, 20]).request == 1


def test_an_interrupt_by_the_user_puts_everything_back_too(tmp_path):
    trainer, module = make(tmp_path)
    trainer.fit(module, **data_for(CASE))
    before = everything(trainer, module)
    handler = signal.getsignal(signal.SIGINT)
    SWITCH.set("training_step", 5, KeyboardInterrupt)
    try:
        with pytest.raises(SystemExit):
            trainer.unlearn(rows=[3])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert differences(before, everything(trainer, module)) == []


# State that no stage can hold


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
