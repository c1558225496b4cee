"""After any error the user's objects are as they were, and the next call ends in the bits of a calm one."""

import random
import signal

import numpy as np
import pytest
import torch
from lightning.pytorch import callbacks as library

from pybrush.record import Record, states
from pybrush_lightning import state
from pybrush_lightning._private import INTERNAL_ATTRIBUTES
from pybrush_lightning.stage_loop import installed
from tests.lightning.models import Pushing, Remembering
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.twin import KEY, Case, data_for, trainer_for


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


@pytest.mark.parametrize(
    ("begun", "torn_down", "told"),
    [
        (None, KeyboardInterrupt, KeyboardInterrupt),
        (KeyboardInterrupt, RuntimeError, KeyboardInterrupt),
    ],
)
def test_the_trainer_has_its_own_loop_back_whatever_ends_a_stage(begun, torn_down, told, tmp_path):
    """Ctrl-C while a stage's loop is torn down, and before it can be: the next fit read its epochs."""

    class Loop:
        def teardown(self):
            raise torn_down

    def stop():
        if begun is not None:
            raise begun

    trainer = trainer_for(Case(), tmp_path)
    own = trainer.fit_loop
    with pytest.raises(told), installed(trainer, Loop()):
        stop()
    assert trainer.fit_loop is own
