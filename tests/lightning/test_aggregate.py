"""What predicts after a SISA fit: all constituents, in the module's own output space, and nothing left behind."""

import copy
import logging
import math

import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pybrush.errors import ConfigurationError, TrainingError, UnsupportedError
from pybrush.plan import aggregate as plain_aggregate
from pybrush.record import Record
from pybrush_lightning.aggregate import Constituent, answer, combine
from pybrush_lightning.evaluation import held_shard
from tests.lightning.models import Net, Remembering, Rows
from tests.lightning.test_bitwise import fitted
from tests.lightning.twin import CASES, KEY, Case, answers, data_for, trainer_for

INPUTS = Rows(seed=3).x


def loader(rows=None, size=8):
    return DataLoader(rows or Rows(seed=2), batch_size=size)


def patches(module):
    """Return what an evaluation could leave on a module."""
    hooks = [(name, list(part._forward_pre_hooks), list(part._forward_hooks)) for name, part in module.named_modules()]
    return hooks, sorted(vars(module)), module.forward.__func__


def open_record(folder):
    return Record.open(folder / "record", KEY)


# The arithmetic


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 7), st.integers(2, 6))
def test_logits_log_probabilities_and_probabilities_agree_with_the_plain_mean(seed, members, rows, classes):
    logits = 5 * torch.randn(members, rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mean = torch.from_numpy(plain_aggregate(logits.softmax(-1).numpy(), "mean"))
    torch.testing.assert_close(combine(list(logits), "logits", "mean").exp(), mean)
    torch.testing.assert_close(combine(list(logits.log_softmax(-1)), "log_probs", "mean").exp(), mean)
    torch.testing.assert_close(combine(list(logits.softmax(-1)), "probs", "mean"), mean)
    torch.testing.assert_close(combine(list(logits), "values", "mean"), logits.mean(0))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 6))
def test_a_vote_counts_and_its_ties_go_to_the_lowest_class(seed, members, classes):
    logits = torch.randn(members, 3, classes, generator=torch.Generator().manual_seed(seed))
    voted = combine(list(logits), "logits", "vote")
    plain = torch.from_numpy(plain_aggregate(logits.double().softmax(-1).numpy(), "vote"))
    torch.testing.assert_close(combine(list(logits.double()), "logits", "vote").exp(), plain, rtol=1e-12, atol=0)
    for row in range(3):
        votes = [int(max(range(classes), key=lambda c: (float(logits[m, row, c]), -c))) for m in range(members)]
        expected = [math.log((votes.count(c) + 1 / classes) / (members + 1)) for c in range(classes)]
        torch.testing.assert_close(voted[row], torch.tensor(expected))
        assert int(voted[row].argmax()) == max(range(classes), key=lambda c: (votes.count(c), -c))
    torch.testing.assert_close(voted.exp().sum(-1), torch.ones(3))
    torch.testing.assert_close(combine(list(logits.softmax(-1)), "probs", "vote"), voted.exp())


def test_perfect_logits_have_a_loss_near_zero():
    labels = torch.arange(4)
    perfect = [100.0 * nn.functional.one_hot(labels).float() for _ in range(3)]
    for space in ("logits", "log_probs"):
        assert nn.functional.cross_entropy(combine(perfect, space, "mean"), labels) < 1e-6
    huge = combine([torch.tensor([[1e30, -1e30]]), torch.tensor([[-1e30, 1e30]])], "logits", "mean")
    torch.testing.assert_close(huge.exp(), torch.tensor([[0.5, 0.5]]))


def test_logits_may_be_masked_and_far_from_zero():
    masked = [torch.tensor([[0.0, -torch.inf, 1.0]]), torch.tensor([[2.0, -torch.inf, 0.5]])]
    found = combine(masked, "logits", "mean")
    torch.testing.assert_close(found.exp(), torch.stack(masked).softmax(-1).mean(0))
    logits = [torch.randn(5, 3, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    far = [1e4 + tensor.double().round(decimals=2) for tensor in logits]
    expected = torch.stack(far).softmax(-1).mean(0).log()
    torch.testing.assert_close(
        combine([tensor.float() for tensor in far], "logits", "mean").double(), expected, atol=2e-3, rtol=0
    )
    near = combine([(tensor - 1e4).float() for tensor in far], "logits", "mean")
    torch.testing.assert_close(near.double(), expected, atol=1e-5, rtol=0)


def test_half_precision_goes_in_and_comes_out_and_is_not_lost_between():
    logits = [torch.randn(5, 4, generator=torch.Generator().manual_seed(s)).bfloat16() for s in range(3)]
    combined = combine(logits, "logits", "mean")
    assert combined.dtype is torch.bfloat16
    assert torch.equal(combined, combine([tensor.float() for tensor in logits], "logits", "mean").bfloat16())


@pytest.mark.parametrize(
    ("output", "space"),
    [
        pytest.param(torch.rand(4, 3).softmax(-1), "logits", id="probabilities as logits"),
        pytest.param(torch.rand(4, 3), "probs", id="logits as probabilities"),
        pytest.param(torch.rand(4, 1), "logits", id="one column"),
        pytest.param(torch.rand(4), "log_probs", id="no classes"),
        pytest.param((torch.rand(4, 3),), "logits", id="a tuple"),
        pytest.param({"y": torch.rand(4, 3)}, "values", id="a dictionary"),
    ],
)
def test_outputs_that_the_space_cannot_mean_are_refused_with_the_four_words(output, space):
    with pytest.raises(ConfigurationError, match="'logits', 'log_probs', 'probs' or 'values'"):
        answer([output, output], space, "mean")


def test_values_may_have_any_shape():
    for shape in ((4,), (4, 1), (4, 3, 2)):
        assert answer([torch.rand(shape)], "values", "mean").shape == shape


# Through a trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A fitted record of three shards; tests leave trainer and module as they are."""
    folder = tmp_path_factory.mktemp("trained")
    case = Case(shards=3)
    trainer, module = trainer_for(case, folder), Net()
    trainer.fit(module, **data_for(case))
    return trainer, module, folder


def constituents(folder, make=Net):
    """Build every constituent by hand."""
    record, found = open_record(folder), []
    for key in record.constituents().values():
        stored = record.store.load(key)[0]["module"]
        member = make()
        member.load_state_dict({n: (stored["parameters"] | stored["buffers"])[n] for n in member.state_dict()})
        found.append(member.eval())
    return found


def test_predict_the_record_and_the_plain_mean_say_the_same(trained):
    trainer, module, folder = trained
    with torch.no_grad():
        expected = torch.stack([member(INPUTS).softmax(-1) for member in constituents(folder)]).mean(0).log()
        deployed = open_record(folder).aggregate(Net())(INPUTS)
    predicted = answers(trainer, module)
    torch.testing.assert_close(predicted, expected)
    torch.testing.assert_close(deployed, predicted)
    assert not torch.allclose(module.eval()(INPUTS).log_softmax(-1), predicted)


def test_test_and_validate_are_answered_by_the_aggregate(trained):
    trainer, module, folder = trained
    rows = Rows(seed=2)
    with torch.no_grad():
        logits = open_record(folder).aggregate(Net())(rows.x)
    expected = nn.functional.cross_entropy(logits, rows.y)
    found = trainer.test(module, loader(), verbose=False)[0]["test_loss"]
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_the_shards_are_validated_by_themselves_inside_a_fit(tmp_path):
    trainer, module = fitted("plateau", tmp_path)
    before = patches(module)
    metrics = trainer.validate(module, loader(), verbose=False)
    assert "val_loss" in metrics[0]
    assert patches(module) == before


def test_a_deployed_aggregate_is_free_of_trainer_and_record(trained, tmp_path):
    _, module, folder = trained
    deployed = open_record(folder).aggregate(module)
    torch.save(deployed, tmp_path / "deployed.pt")
    again = torch.load(tmp_path / "deployed.pt", weights_only=False)
    assert torch.equal(again(INPUTS), deployed(INPUTS))
    assert not deployed.training and not any(part.training for part in deployed.modules())
    assert module._trainer is not None
    assert all(vars(part).get("_trainer") is None for part in deployed.modules())


class Nested(Net):
    """A LightningModule inside of another one."""

    def __init__(self):
        super().__init__()
        self.inner = Net()


def test_a_nested_module_does_not_take_its_trainer_into_the_aggregate(tmp_path):
    case = CASES["momentum"]
    trainer, module = trainer_for(case, tmp_path), Nested()
    trainer.fit(module, **data_for(case))
    result = trainer.unlearn(rows=[3])
    assert all(vars(part).get("_trainer") is None for part in result.model.modules())
    assert module.inner._trainer is trainer


class Tied(Net):
    """One weight under two names."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))
        self.net[2].weight = self.net[0].weight


def test_tied_weights_stay_tied_and_are_aggregated(tmp_path):
    case = CASES["momentum"]
    trainer, module = trainer_for(case, tmp_path), Tied()
    trainer.fit(module, **data_for(case))
    deployed = open_record(tmp_path).aggregate(Tied())
    torch.testing.assert_close(answers(trainer, module), deployed(INPUTS))
    assert module.net[2].weight is module.net[0].weight
    assert all(member.net[2].weight is member.net[0].weight for member in deployed.members)


class Scaled(Net):
    """Predicts with a plain attribute that training changes."""

    def __init__(self):
        super().__init__()
        self.scale, self.steps, self.shift = 1.0, 0, torch.zeros(3)

    def forward(self, x):
        return self.scale * super().forward(x) + self.shift

    def training_step(self, batch, index):
        self.steps += 1
        self.scale, self.shift = 1.0 + 0.1 * self.steps, self.shift + batch[0].mean().detach()
        return super().training_step(batch, index)


def test_constituents_predict_with_their_own_plain_attributes(tmp_path):
    case = Case(shards=3)
    trainer, module = trainer_for(case, tmp_path), Scaled()
    trainer.fit(module, **data_for(case))
    before = copy.deepcopy((module.scale, module.shift))
    record = open_record(tmp_path)
    held = [record.store.load(key)[0]["module"]["attributes"][""] for key in record.constituents().values()]
    assert len({attributes["scale"] for attributes in held}) > 1
    with torch.no_grad():
        members = constituents(tmp_path, Scaled)
        for member, attributes in zip(members, held, strict=True):
            member.scale, member.shift = attributes["scale"], attributes["shift"]
        expected = torch.stack([member(INPUTS).softmax(-1) for member in members]).mean(0).log()
        torch.testing.assert_close(record.aggregate(Scaled())(INPUTS), expected)
    torch.testing.assert_close(answers(trainer, module), expected)
    assert module.scale == before[0] and torch.equal(module.shift, before[1])


@pytest.mark.parametrize("how", ["mean", "vote"])
def test_a_trainer_elsewhere_answers_as_the_record_was_made(how, tmp_path):
    class Probabilities(Net):
        def forward(self, x):
            return super().forward(x).softmax(-1)

    case = Case(shards=3, sisa={"outputs": "probs", "aggregate": how})
    trainer, module = trainer_for(case, tmp_path), Probabilities()
    trainer.fit(module, **data_for(case))
    later = trainer_for(Case(shards=3), tmp_path)
    result = later.unlearn(rows=[3], model=Probabilities(), **data_for(case))
    assert (result.model.space, result.model.how) == ("probs", how)
    torch.testing.assert_close(answers(later, later.lightning_module), result.model(INPUTS))
    rows = result.model(INPUTS).sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


# What is refused, and what is left alone


class Around(Net):
    """Evaluates around forward."""

    def test_step(self, batch, index):
        self.log("test_loss", self.net(batch[0]).sum())

    def predict_step(self, batch, index):
        return 0


def test_a_step_that_calls_a_submodule_is_refused_by_its_name_and_nothing_is_left(tmp_path):
    case = CASES["momentum"]
    trainer, module = trainer_for(case, tmp_path), Around()
    trainer.fit(module, **data_for(case))
    before = patches(module)
    with pytest.raises(UnsupportedError, match=r"calls net directly(.|\n)*aggregate_step="):
        trainer.test(module, loader(), verbose=False)
    assert patches(module) == before
    assert torch.isfinite(module(INPUTS)).all()


def test_a_loop_that_never_calls_the_module_is_refused(tmp_path):
    case = CASES["momentum"]
    trainer, module = trainer_for(case, tmp_path), Around()
    trainer.fit(module, **data_for(case))
    before = patches(module)
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"no evaluation step called self\(...\)(.|\n)*aggregate_step="):
            trainer.predict(module, DataLoader(TensorDataset(INPUTS), batch_size=8))
    assert patches(module) == before


class Raising(Net):
    """Raises in its test step."""

    def test_step(self, batch, index):
        raise ArithmeticError("on purpose")


def test_an_error_in_a_step_leaves_nothing_behind_and_the_next_loop_works(tmp_path):
    case = CASES["momentum"]
    trainer, module = trainer_for(case, tmp_path), Raising()
    trainer.fit(module, **data_for(case))
    before = patches(module)
    first = answers(trainer, module)
    assert patches(module) == before
    with pytest.raises(ArithmeticError):
        trainer.test(module, loader(), verbose=False)
    assert patches(module) == before
    stranger = DataLoader(TensorDataset(INPUTS), batch_size=8)
    assert trainer.predict(Around(), stranger) == [0] * 6
    assert torch.equal(answers(trainer, module), first)


@pytest.mark.parametrize("change", ["weight", "buffer"])
def test_a_module_that_is_no_constituent_is_evaluated_as_it_is_with_one_warning(change, trained, caplog):
    trainer, module, _ = trained
    other = copy.deepcopy(module)
    with torch.no_grad():
        if change == "weight":
            other.net[0].weight[0, 0] += 1e-6
        else:
            other.net[1].num_batches_tracked += 1
    with caplog.at_level(logging.WARNING, "pybrush_lightning"), torch.no_grad():
        found = answers(trainer, other)
        assert torch.equal(found, other.eval()(INPUTS))
    assert len([m for m in caplog.messages if "none of the constituents" in m]) == 1


@pytest.mark.parametrize(
    ("own", "stored", "is_held"),
    [
        pytest.param(torch.tensor([float("nan")]), torch.tensor([float("nan")]), True, id="nan is itself"),
        pytest.param(torch.tensor([0.0]), torch.tensor([-0.0]), False, id="zeros of two signs"),
        pytest.param(torch.tensor([0.0]), torch.tensor([0.0]).double(), False, id="two precisions"),
        pytest.param(torch.tensor([0.0]), torch.tensor([[0.0]]), False, id="two shapes"),
    ],
)
def test_a_constituent_is_known_by_its_bits(own, stored, is_held):
    module = nn.Module()
    module.register_buffer("value", own)
    assert (held_shard(module, {4: Constituent({"value": stored}, {})}) == 4) is is_held


def test_the_best_epoch_of_one_shard_is_not_taken_for_the_model(tmp_path):
    best = lightning.pytorch.callbacks.ModelCheckpoint(monitor="loss", save_top_k=1)
    case = CASES["momentum"]
    trainer = trainer_for(case, tmp_path, enable_checkpointing=True, callbacks=[best])
    module = Net()
    trainer.fit(module, **data_for(case))
    held = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with (
        pytest.warns(UserWarning, match="without a model"),
        pytest.raises(UnsupportedError, match="Pass the model"),
    ):
        trainer.test(dataloaders=loader(), verbose=False)
    assert all(torch.equal(held[name], tensor) for name, tensor in module.state_dict().items())
    assert len(trainer.test(module, loader(), verbose=False)) == 1


def test_with_one_constituent_the_module_answers_itself(tmp_path):
    trainer, module = fitted("one shard", tmp_path)
    result = trainer.unlearn(rows=[3])
    assert result.model is module
    with torch.no_grad():
        torch.testing.assert_close(answers(trainer, module), module.eval()(INPUTS))


def test_a_module_of_another_shape_cannot_be_the_aggregate(trained):
    with pytest.raises(ConfigurationError, match="build it as it was trained"):
        open_record(trained[2]).aggregate(Remembering())
