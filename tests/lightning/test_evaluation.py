"""When the aggregate answers, from which weights, and what an evaluation leaves: nothing."""

import copy
import logging

import lightning
import pytest
import pytorch_lightning as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pytorch_lightning.callbacks import ModelCheckpoint as OtherModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pybrush.errors import UnsupportedError
from pybrush.record import Record
from pybrush_lightning.evaluation import _placed
from tests.lightning.models import Net, OtherNet, Rows
from tests.lightning.test_aggregate import patches
from tests.lightning.test_spaces import TESTED, outputs, picked
from tests.lightning.twin import KEY, Case, trainer_for

PACKAGES = {"lightning": (lightning, Net, ModelCheckpoint), "pytorch_lightning": (pl, OtherNet, OtherModelCheckpoint)}
ROWS = DataLoader(TESTED, batch_size=8)


def fitted(folder, module=None, package=lightning, epochs=1, **settings):
    """Return a trainer of three constituents and its module."""
    trainer = trainer_for(Case(shards=3, slices=1, epochs=epochs, package=package), folder, **settings)
    module = Net() if module is None else module
    trainer.fit(module, DataLoader(Rows(), batch_size=5, shuffle=True))
    return trainer, module


def loss(trainer, *module, loop="test", **more):
    return getattr(trainer, loop)(*module, dataloaders=ROWS, verbose=False, **more)[0]["test_loss"]


def loss_of(folder, make=Net):
    """Return the loss of the mean probability, from the record alone."""
    return pytest.approx(picked(outputs(folder, make, TESTED.x).softmax(-1).mean(0), TESTED.y), rel=1e-5)


# Checkpoints


@pytest.mark.filterwarnings("ignore:.*was called without a model:UserWarning")
@pytest.mark.parametrize("name", PACKAGES)
def test_without_a_monitor_the_best_file_is_a_constituent_and_the_aggregate_answers(name, tmp_path):
    package, make, checkpoint = PACKAGES[name]
    saving = {"enable_checkpointing": True, "callbacks": [checkpoint()]}
    trainer, module = fitted(tmp_path, make(), package, epochs=2, **saving)
    expected = loss_of(tmp_path, make)
    assert loss(trainer, ckpt_path="best") == expected
    assert loss(trainer) == expected
    assert loss(trainer, module, ckpt_path="best") == expected
    mean = outputs(tmp_path, make, TESTED.x).softmax(-1).mean(0)
    predicted = torch.cat(trainer.predict(dataloaders=ROWS, ckpt_path="best"))
    torch.testing.assert_close(predicted.double().exp(), mean, rtol=1e-5, atol=1e-6)
    trainer.unlearn(rows=[3])
    assert loss(trainer, ckpt_path="best") == loss_of(tmp_path, make)


@pytest.mark.filterwarnings("ignore:.*was called without a model:UserWarning")
@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
@pytest.mark.parametrize("name", PACKAGES)
def test_with_a_monitor_the_best_file_is_refused_in_every_loop(name, loop, tmp_path):
    package, make, checkpoint = PACKAGES[name]

    class Both(make):
        validation_step = make.test_step

    saving = {"enable_checkpointing": True, "callbacks": [checkpoint(monitor="loss")]}
    trainer = trainer_for(Case(shards=3, slices=1, epochs=2, package=package), tmp_path, **saving)
    module = Both()
    trainer.fit(module, DataLoader(Rows(), batch_size=5, shuffle=True), ROWS)
    held = copy.deepcopy(module.state_dict())
    for given in ({}, {"ckpt_path": "best"}, {"ckpt_path": trainer.checkpoint_callback.best_model_path}):
        with pytest.raises(UnsupportedError, match="Pass the model"):
            getattr(trainer, loop)(dataloaders=ROWS, **given)
    assert all(torch.equal(held[key], tensor) for key, tensor in module.state_dict().items())
    if loop != "predict":
        assert loss(trainer, module, loop=loop) == loss_of(tmp_path, Both)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_new_module_with_the_file_of_a_constituent_answers_with_all_of_them(name, tmp_path, caplog):
    package, make, checkpoint = PACKAGES[name]
    saving = {"enable_checkpointing": True, "callbacks": [checkpoint(save_top_k=-1)]}
    trainer, _ = fitted(tmp_path, make(), package, epochs=2, **saving)
    held = trainer.checkpoint_callback.best_model_path
    first = held.replace("epoch=1", "epoch=0").replace(
        f"step={trainer.global_step}", f"step={trainer.global_step // 2}"
    )
    assert first != held
    saving["callbacks"] = [checkpoint(save_top_k=-1)]
    later = trainer_for(Case(shards=3, slices=1, epochs=2, package=package), tmp_path, **saving)
    assert loss(later, make(), ckpt_path=held) == loss_of(tmp_path, make)
    early = make()
    with caplog.at_level(logging.WARNING, "pybrush_lightning"):
        found = loss(later, early, ckpt_path=first)
    assert len([message for message in caplog.messages if "none of the constituents" in message]) == 1
    with torch.no_grad():
        own = nn.functional.cross_entropy(early.eval()(TESTED.x), TESTED.y)
    assert found == pytest.approx(float(own), rel=1e-5) and found != loss_of(tmp_path, make)


# Again, afterwards, beside each other


def test_every_evaluation_says_the_same_and_a_request_changes_what_it_says(tmp_path):
    trainer, module = fitted(tmp_path)
    before = patches(module)
    first = loss_of(tmp_path)
    assert [loss(trainer, module) for _ in range(3)] == [first] * 3
    result = trainer.unlearn(rows=[3, 20, 21, 30])
    second = loss_of(tmp_path)
    assert second != first
    assert loss(trainer, module) == second
    with torch.no_grad():
        assert float(nn.functional.cross_entropy(result.model(TESTED.x), TESTED.y)) == second
    assert patches(module) == before


def test_two_trainers_answer_each_from_its_own_record(tmp_path, caplog):
    places = [tmp_path / "one", tmp_path / "two"]
    pairs = []
    for seed, place in enumerate(places):
        torch.manual_seed(seed)
        pairs.append(fitted(place))
    expected = [loss_of(place) for place in places]
    assert expected[0] != expected[1]
    for _ in range(2):
        for (trainer, module), own in zip(pairs, expected, strict=True):
            assert loss(trainer, module) == own
    assert not caplog.messages or all("constituents" not in message for message in caplog.messages)
    with caplog.at_level(logging.WARNING, "pybrush_lightning"):
        found = loss(pairs[0][0], pairs[1][1])
    with torch.no_grad():
        own = nn.functional.cross_entropy(pairs[1][1].eval()(TESTED.x), TESTED.y)
    assert found == pytest.approx(float(own), rel=1e-5)
    assert len([message for message in caplog.messages if "none of the constituents" in message]) == 1
    assert loss(pairs[1][0], pairs[1][1]) == expected[1]


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_evaluation_works_in_every_mode_of_torch_and_training_goes_on_afterwards(around, inference_mode, tmp_path):
    trainer, module = fitted(tmp_path, inference_mode=inference_mode)
    with around():
        assert loss(trainer, module) == loss_of(tmp_path)
    assert not any(tensor.is_inference() for tensor in [*module.parameters(), *module.buffers()])
    trainer.unlearn(rows=[3])
    assert loss(trainer, module) == loss_of(tmp_path)


def test_tensors_that_an_evaluation_moves_can_be_used_with_gradients():
    with torch.inference_mode():
        for own in (torch.zeros(3, device="meta"), nn.Parameter(torch.zeros(3, device="meta"))):
            moved = _placed(torch.ones(3), own)
            assert moved.device.type == "meta" and not moved.is_inference() and type(moved) is type(own)


# The user's own module runs


class Attacked(Net):
    """Asks in which direction the aggregate's answer changes."""

    def predict_step(self, batch, index):
        with torch.inference_mode(False), torch.enable_grad():
            inputs = batch[0].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self(inputs)[:, 1].sum(), inputs)
        return gradient


@pytest.mark.parametrize("inference_mode", [True, False])
def test_gradients_of_inputs_are_those_of_the_aggregate(inference_mode, tmp_path):
    trainer, module = fitted(tmp_path, Attacked(), inference_mode=inference_mode)
    found = torch.cat(trainer.predict(module, ROWS))
    step, expected = 1e-6, torch.zeros(21, 6, dtype=torch.float64)

    def answer(x):
        record, members = Record.open(tmp_path / "record", KEY), []
        for key in record.constituents().values():
            stored = record.store.load(key)[0]["module"]
            member = Net().eval()
            member.load_state_dict({n: (stored["parameters"] | stored["buffers"])[n] for n in member.state_dict()})
            members.append(member.double()(x).softmax(-1))
        return torch.stack(members).mean(0).log()[:, 1]

    for axis in range(6):
        shift = torch.zeros(6, dtype=torch.float64)
        shift[axis] = step
        with torch.no_grad():
            expected[:, axis] = (answer(TESTED.x + shift) - answer(TESTED.x - shift)) / (2 * step)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


class Steered(Net):
    """Steps and hooks tell forward what to do, and forward logs."""

    def forward(self, x):
        if not self.training:
            self.log("asked", 1.0)
        return super().forward(x) * getattr(self, "factor", 1.0) + getattr(self, "shift", 0.0)

    def on_test_start(self):
        self.shift = torch.tensor([0.5, 0.0, -0.5])

    def test_step(self, batch, index):
        self.factor = 2.0
        super().test_step(batch, index)


def test_what_steps_and_hooks_set_reaches_every_constituent(tmp_path):
    trainer, module = fitted(tmp_path, Steered())
    own = outputs(tmp_path, Net, TESTED.x) * 2 + torch.tensor([0.5, 0.0, -0.5])
    assert loss(trainer, module) == pytest.approx(picked(own.softmax(-1).mean(0), TESTED.y), rel=1e-5)
    assert trainer.callback_metrics["asked"] == 1.0


def test_methods_that_were_set_on_the_module_itself_are_run_and_put_back(tmp_path):
    trainer, module = fitted(tmp_path)
    own = module.forward
    module.forward = doubled = lambda x: 2 * own(x)
    module.test_step = step = lambda batch, batch_idx: Net.test_step(module, batch, batch_idx)
    mean = (2 * outputs(tmp_path, Net, TESTED.x)).softmax(-1).mean(0)
    for aggregate_step in (None, Net.test_step):
        sisa = {"aggregate_step": aggregate_step}
        later = trainer_for(Case(shards=3, slices=1, epochs=1, sisa=sisa), tmp_path)
        assert loss(later, module) == pytest.approx(picked(mean, TESTED.y), rel=1e-5)
        assert module.forward is doubled and module.test_step is step
    assert loss(trainer, module) == pytest.approx(picked(mean, TESTED.y), rel=1e-5)


class Pointing(Net):
    """Reaches a weight by other ways than its part: a list, a dictionary, an attribute."""

    def __init__(self):
        super().__init__()
        self.weights, self.named = [self.net[4].weight], {"bias": (self.net[4].bias,)}
        self.first = self.net[0].weight

    def forward(self, x):
        beside = nn.functional.linear(x @ self.first.T, self.weights[0], self.named["bias"][0])
        return super().forward(x) + beside


class Recurrent(Net):
    """torch's recurrent layers keep a list of their weights."""

    def __init__(self):
        super().__init__()
        self.before = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x):
        return super().forward(self.before(x[:, None])[0][:, 0])


class Attending(Net):
    """torch's transformer layers have a faster path in evaluation."""

    def __init__(self):
        super().__init__()
        self.before = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)

    def forward(self, x):
        return super().forward(self.before(x[:, None])[:, 0])


@pytest.mark.parametrize("make", [Pointing, Recurrent, Attending])
def test_every_way_to_a_weight_leads_to_that_of_the_constituent(make, tmp_path):
    trainer, module = fitted(tmp_path, make())
    before = {name: vars(part).copy() for name, part in module.named_modules()}
    assert loss(trainer, module) == loss_of(tmp_path, make)
    with torch.no_grad():
        deployed = Record.open(tmp_path / "record", KEY).aggregate(module)(TESTED.x)
    assert float(nn.functional.cross_entropy(deployed, TESTED.y)) == loss_of(tmp_path, make)
    for name, part in module.named_modules():
        own = [id(tensor) for tensor in [*module.parameters(), *module.buffers()]]
        for attribute, value in before[name].items():
            if isinstance(value, list) and value and isinstance(value[0], nn.Parameter):
                assert all(id(tensor) in own for tensor in vars(part)[attribute])
        assert vars(part).keys() == before[name].keys()
    trainer.unlearn(rows=[3])
    assert loss(trainer, module) == loss_of(tmp_path, make)


def test_a_data_set_without_rows_asks_nothing_and_raises_nothing(tmp_path):
    trainer, module = fitted(tmp_path)
    empty = TensorDataset(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    with pytest.warns(UserWarning, match="is zero"):
        assert trainer.test(module, DataLoader(empty), verbose=False) == []
