"""Evaluation steps that do not call self(...): the part they call answers, or a function takes their place."""

import lightning
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pybrush.errors import ConfigurationError, TrainingError, UnsupportedError
from pybrush.record import Record
from tests.lightning.models import Body, Net, Rows
from tests.lightning.test_aggregate import patches
from tests.lightning.test_spaces import evaluated, outputs, picked
from tests.lightning.twin import KEY, Case, trainer_for

TESTED = Rows(seed=2, rows=21)


class Around:
    """Its steps call a part; forward returns something else."""

    def forward(self, x):
        return 3 * super().forward(x)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), batch_size=len(batch[1]))

    test_step = validation_step

    def predict_step(self, batch, index):
        return self.net(batch[0])


class AroundNet(Around, Net):
    """For `lightning`."""


class AroundOther(Around, Body, pl.LightningModule):
    """For `pytorch_lightning`."""


def fit(module, folder, aggregate_step, package=lightning, shards=3, **sisa):
    """Train constituents; return the trainer."""
    sisa["aggregate_step"] = aggregate_step
    trainer = trainer_for(Case(shards=shards, slices=1, epochs=1, sisa=sisa, package=package), folder)
    validation = DataLoader(TESTED, batch_size=20) if isinstance(module, Around) else None
    trainer.fit(module, DataLoader(Rows(), batch_size=5, shuffle=True), validation)
    return trainer


def mean_of_the_part(folder, make=AroundNet):
    """Return the mean probability that the constituents' `net` gives, from forward, which returns 3 x net."""
    return (outputs(folder, make, TESTED.x) / 3).softmax(-1).mean(0)


@pytest.mark.parametrize(
    ("make", "package"), [(AroundNet, lightning), (AroundOther, pl)], ids=["lightning", "pytorch_lightning"]
)
def test_a_named_part_answers_in_every_loop_and_nothing_is_left(make, package, tmp_path):
    module = make()
    trainer = fit(module, tmp_path, "net", package)
    before = patches(module)
    mean = mean_of_the_part(tmp_path, make)
    for loop in ("validate", "test"):
        assert evaluated(loop, trainer, module) == pytest.approx(picked(mean, TESTED.y), rel=1e-5)
    predicted = torch.cat(trainer.predict(module, DataLoader(TESTED, batch_size=8)))
    torch.testing.assert_close(predicted.double().exp(), mean, rtol=1e-5, atol=1e-6)
    assert patches(module) == before
    assert "forward" not in vars(module.net)


def test_the_deployed_module_is_that_of_forward_whatever_the_steps_call(tmp_path):
    module = AroundNet()
    trainer = fit(module, tmp_path, "net")
    expected = outputs(tmp_path, AroundNet, TESTED.x).softmax(-1).mean(0)
    deployed = Record.open(tmp_path / "record", KEY).aggregate(module)
    torch.testing.assert_close(deployed(TESTED.x).double().exp(), expected, rtol=1e-5, atol=1e-6)
    result = trainer.unlearn(rows=[3])
    expected = outputs(tmp_path, AroundNet, TESTED.x).softmax(-1).mean(0)
    torch.testing.assert_close(result.model(TESTED.x).double().exp(), expected, rtol=1e-5, atol=1e-6)


def test_the_step_is_an_argument_of_the_trainer_at_hand(tmp_path):
    module = AroundNet()
    fit(module, tmp_path, None)
    later = trainer_for(Case(shards=3, slices=1, epochs=1, sisa={"aggregate_step": "net"}), tmp_path)
    found = evaluated("test", later, module)
    assert found == pytest.approx(picked(mean_of_the_part(tmp_path), TESTED.y), rel=1e-5)


class Deep(Net):
    """The part that answers lies two levels down; what comes after it has nothing to learn."""

    def __init__(self):
        super().__init__()
        self.outer = nn.ModuleDict({"inner": self.net, "after": nn.Flatten()})
        del self.net

    def forward(self, x):
        return self.outer["after"](self.outer["inner"](x))

    def test_step(self, batch, index):
        found = self.outer["after"](self.outer["inner"](batch[0]))
        self.log("loss", nn.functional.cross_entropy(found, batch[1]), batch_size=len(batch[1]))


def test_a_part_may_lie_deeper(tmp_path):
    module = Deep()
    trainer = fit(module, tmp_path, "outer.inner")
    mean = outputs(tmp_path, Deep, TESTED.x).softmax(-1).mean(0)
    assert evaluated("test", trainer, module) == pytest.approx(picked(mean, TESTED.y), rel=1e-5)


class Wrapped(nn.Module):
    """Holds the part that answers, and calls it."""

    def __init__(self, inner, learns):
        super().__init__()
        self.inner = inner
        self.factor = nn.Parameter(torch.ones(()), requires_grad=learns)

    def forward(self, x):
        return self.inner(x) * self.factor


class Within(Net):
    """Its steps call what holds the part that answers."""

    def __init__(self, learns=False):
        super().__init__()
        self.outer = Wrapped(self.net, learns)
        del self.net

    def forward(self, x):
        return self.outer(x)

    def test_step(self, batch, index):
        self.log("loss", nn.functional.cross_entropy(self.outer(batch[0]), batch[1]), batch_size=len(batch[1]))


def test_the_part_may_be_called_by_what_holds_it(tmp_path):
    module = Within()
    trainer = fit(module, tmp_path, "outer.inner")
    mean = outputs(tmp_path, Within, TESTED.x).softmax(-1).mean(0)
    assert evaluated("test", trainer, module) == pytest.approx(picked(mean, TESTED.y), rel=1e-5)


def test_a_parameter_of_what_holds_the_part_is_refused_where_it_learned(tmp_path):
    module = Within(learns=True)
    trainer = fit(module, tmp_path, "outer.inner")
    with pytest.raises(UnsupportedError, match=r"outer\.factor(.|\n)*outside of aggregate_step='outer\.inner'"):
        evaluated("test", trainer, module)


class TwoParts(Net):
    """A body, a head that learns, and a table that does not."""

    def __init__(self):
        super().__init__()
        self.table = nn.Linear(6, 6)
        self.table.requires_grad_(False)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.net(self.table(x)))

    def test_step(self, batch, index):
        found = self.head(self.net(self.table(batch[0])))
        self.log("loss", nn.functional.cross_entropy(found, batch[1]), batch_size=len(batch[1]))


@pytest.mark.parametrize(("part", "outside"), [("net", "head"), ("head", "net")])
def test_a_part_that_learned_may_not_be_called_beside_the_one_that_answers(part, outside, tmp_path):
    module = TwoParts()
    trainer = fit(module, tmp_path, part)
    before = patches(module)
    with pytest.raises(UnsupportedError, match=f"calls {outside}, which lies outside of aggregate_step='{part}'"):
        evaluated("test", trainer, module)
    assert patches(module) == before


class Frozen(TwoParts):
    """Prepares its inputs by a part that is the same in all constituents."""

    def test_step(self, batch, index):
        found = self.net(self.table(batch[0]))
        self.log("loss", nn.functional.cross_entropy(found, batch[1]), batch_size=len(batch[1]))


def test_a_part_that_is_the_same_in_all_constituents_may_be_called(tmp_path):
    class OfNet(Frozen):
        def forward(self, x):
            return self.net(self.table(x))

    module = OfNet()
    trainer = fit(module, tmp_path, "net")
    mean = outputs(tmp_path, OfNet, TESTED.x).softmax(-1).mean(0)
    assert evaluated("test", trainer, module) == pytest.approx(picked(mean, TESTED.y), rel=1e-5)


class Counting(nn.Module):
    """Shifts by what it has seen in training, which is a buffer and no parameter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        if self.training:
            self.mean += 0.1 * (x.mean(0) - self.mean)
        return x - self.mean


class Centred(Net):
    """Centres its inputs in the step."""

    def __init__(self):
        super().__init__()
        self.centre = Counting()

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(self.centre(batch[0])), batch[1])

    def predict_step(self, batch, index):
        return self(self.centre(batch[0]))


def test_a_part_whose_buffers_alone_differ_is_one_constituents_too(tmp_path):
    module = Centred()
    trainer = fit(module, tmp_path, None)
    with pytest.raises(UnsupportedError, match="calls centre directly"):
        trainer.predict(module, DataLoader(TESTED, batch_size=8))


class Tempered(AroundNet):
    """Holds a parameter beside its parts, which a step uses without a call."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]) / self.temperature, batch[1])


def test_a_parameter_beside_the_part_is_refused_since_its_use_cannot_be_seen(tmp_path):
    module = Tempered()
    trainer = fit(module, tmp_path, "net")
    before = patches(module)
    with pytest.raises(UnsupportedError, match=r"temperature(.|\n)*outside of aggregate_step='net'"):
        evaluated("test", trainer, module)
    assert patches(module) == before


@pytest.mark.parametrize(
    ("part", "problem"), [("nett", "is no submodule of AroundNet"), ("net.3", "holds no parameters")]
)
def test_a_name_that_cannot_answer_is_refused_before_training(part, problem, tmp_path):
    with pytest.raises(ConfigurationError, match=f"aggregate_step='{part}' {problem}. Name the one (.|\n)*: net"):
        fit(AroundNet(), tmp_path, part)
    assert not (tmp_path / "record").exists()


def test_a_loop_that_never_calls_the_part_is_refused(tmp_path):
    class Silent(AroundNet):
        def predict_step(self, batch, index):
            return 0

    module = Silent()
    trainer = fit(module, tmp_path, "net")
    with pytest.raises(TrainingError, match=r"no evaluation step called self\.net\(\.\.\.\)"):
        trainer.predict(module, DataLoader(TESTED, batch_size=8))


# A function in place of the steps

SEEN = []


def step(module, batch, batch_idx):
    """Ask the module itself, and log beside the answer."""
    SEEN.append(batch_idx)
    found = module(batch[0])
    module.log("instead", nn.functional.cross_entropy(found, batch[1]), batch_size=len(batch[1]))
    return found


def predict(module, batch, batch_idx):
    """Only ask."""
    return module(batch[0])


@pytest.mark.parametrize(
    ("make", "package"), [(AroundNet, lightning), (AroundOther, pl)], ids=["lightning", "pytorch_lightning"]
)
def test_a_function_takes_the_place_of_the_steps_and_asks_the_aggregate(make, package, tmp_path):
    module = make()
    trainer = fit(module, tmp_path, step, package)
    before = patches(module)
    mean = outputs(tmp_path, make, TESTED.x).softmax(-1).mean(0)
    for loop in ("validate", "test"):
        SEEN.clear()
        found = evaluated(loop, trainer, module, name="instead")
        assert found == pytest.approx(picked(mean, TESTED.y), rel=1e-5)
        assert SEEN == [0, 1, 2]
    assert patches(module) == before
    asking = trainer_for(
        Case(shards=3, slices=1, epochs=1, sisa={"aggregate_step": predict}, package=package), tmp_path
    )
    predicted = torch.cat(asking.predict(module, DataLoader(TESTED, batch_size=8)))
    torch.testing.assert_close(predicted.double().exp(), mean, rtol=1e-5, atol=1e-6)
    assert patches(module) == before


def test_a_function_serves_several_loaders(tmp_path):
    class Indexed(AroundNet):
        def test_step(self, batch, index, dataloader_idx=0):
            raise ArithmeticError("not this one")

    module = Indexed()
    trainer = fit(module, tmp_path, step)
    mean = outputs(tmp_path, Indexed, TESTED.x).softmax(-1).mean(0)
    halves = [TensorDataset(TESTED.x[rows], TESTED.y[rows]) for rows in (slice(0, 9), slice(9, 21))]
    found = trainer.test(module, [DataLoader(half, batch_size=4) for half in halves], verbose=False)
    assert found[0]["instead/dataloader_idx_0"] == pytest.approx(picked(mean[:9], TESTED.y[:9]), rel=1e-5)
    assert found[1]["instead/dataloader_idx_1"] == pytest.approx(picked(mean[9:], TESTED.y[9:]), rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        pytest.param(
            lambda module, batch, _: module.net(batch[0]), UnsupportedError, "calls net directly", id="around"
        ),
        pytest.param(lambda module, batch, _: 0, TrainingError, "no evaluation step called self", id="silent"),
        pytest.param(lambda module, batch, _: 1 / 0, ZeroDivisionError, "division", id="raising"),
    ],
)
def test_a_function_that_does_not_ask_is_refused_and_the_steps_come_back(wrong, error, message, tmp_path):
    module = AroundNet()
    trainer = fit(module, tmp_path, wrong)
    before = patches(module)
    with pytest.raises(error, match=message):
        trainer.predict(module, DataLoader(TESTED, batch_size=8))
    assert patches(module) == before


def test_one_constituent_evaluates_by_its_own_steps(tmp_path):
    module = AroundNet()
    trainer = fit(module, tmp_path, step, shards=1)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(module.eval().net(TESTED.x), TESTED.y)
    assert evaluated("test", trainer, module) == pytest.approx(float(expected), rel=1e-5)


def test_the_shards_of_a_fit_are_validated_by_their_own_steps(tmp_path):
    module = AroundNet()
    SEEN.clear()
    trainer = fit(module, tmp_path, step)
    assert SEEN == []
    assert "loss" in trainer.callback_metrics
