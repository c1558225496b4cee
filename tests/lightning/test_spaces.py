"""What a module returns, and what its aggregate is: closed forms of the constituents, in every loop."""

import lightning
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pybrush.errors import ConfigurationError
from pybrush.record import Record
from tests.lightning.models import Body, Net, Rows
from tests.lightning.twin import KEY, Case, trainer_for

FOUR = "'logits', 'log_probs', 'probs' or 'values'"
TESTED = Rows(seed=2, rows=21)


def fit(module, folder, data=None, package=lightning, **sisa):
    """Train three constituents; return the trainer."""
    case = Case(shards=3, slices=1, epochs=1, sisa=sisa, package=package)
    trainer = trainer_for(case, folder)
    validation = DataLoader(data or Rows(), batch_size=20) if isinstance(module, Spaced) else None
    trainer.fit(module, DataLoader(data or Rows(), batch_size=5, shuffle=True), validation)
    return trainer


def outputs(folder, make, *inputs, **named):
    """Return what every constituent answers by itself, shape (constituents, ...)."""
    record, found = Record.open(folder / "record", KEY), []
    for key in record.constituents().values():
        stored = record.store.load(key)[0]["module"]
        member = make().eval()
        member.load_state_dict({n: (stored["parameters"] | stored["buffers"])[n] for n in member.state_dict()})
        with torch.no_grad():
            found.append(member(*inputs, **named).double())
    assert len(found) == 3 and not torch.equal(found[0], found[1])
    return torch.stack(found)


def evaluated(loop, trainer, module, data=TESTED, name="loss", size=8):
    """Return a logged number of a loop."""
    return getattr(trainer, loop)(module, DataLoader(data, batch_size=size), verbose=False)[0][name]


def picked(probabilities, labels):
    """Return the mean cross-entropy of probabilities, shape (rows, classes)."""
    return float(-probabilities[torch.arange(len(labels)), labels].log().mean())


class Spaced(Body):
    """Returns what the class says, and logs the loss that belongs to it in every loop."""

    space = "logits"

    def forward(self, x):
        logits = super().forward(x)
        return {
            "logits": lambda: logits, "log_probs": lambda: logits.log_softmax(-1), "probs": lambda: logits.softmax(-1),
            "values": lambda: logits,
        }[self.space]()  # fmt: skip

    def loss(self, batch):
        x, y = batch
        if self.space == "values":
            return nn.functional.mse_loss(self(x), y)
        if self.space == "logits":
            return nn.functional.cross_entropy(self(x), y)
        return nn.functional.nll_loss(self(x) if self.space == "log_probs" else self(x).log(), y)

    def training_step(self, batch, index):
        return self.loss(batch)

    def validation_step(self, batch, index):
        self.log("loss", self.loss(batch), batch_size=len(batch[0]))

    test_step = validation_step


SPACES = {
    f"{space}-{package}": type(f"{space}_{base.__module__}", (Spaced, base), {"space": space})
    for space in ("logits", "log_probs", "probs", "values")
    for package, base in (("lightning", lightning.LightningModule), ("pytorch_lightning", pl.LightningModule))
}


@pytest.mark.parametrize("name", SPACES)
def test_every_loop_of_both_packages_answers_in_the_modules_own_space(name, tmp_path):
    make, package = SPACES[name], lightning if name.endswith("-lightning") else pl
    space = make.space
    targets = torch.randn(44, 3, generator=torch.Generator().manual_seed(4))
    data = TensorDataset(Rows().x, targets) if space == "values" else None
    tested = TensorDataset(TESTED.x, targets[:21]) if space == "values" else TESTED
    module = make()
    trainer = fit(module, tmp_path, data, package, outputs=space)
    own = outputs(tmp_path, make, TESTED.x)
    if space == "values":
        mean = own.mean(0)
        expected = float(((mean - targets[:21]) ** 2).mean())
    else:
        probabilities = {"logits": lambda: own.softmax(-1), "log_probs": own.exp, "probs": lambda: own}[space]()
        mean = probabilities.mean(0)
        expected = picked(mean, TESTED.y)
    for loop in ("validate", "test"):
        assert evaluated(loop, trainer, module, tested) == pytest.approx(expected, rel=1e-5)
    predicted = torch.cat(trainer.predict(module, DataLoader(TESTED, batch_size=8))).double()
    found = predicted.exp() if space in ("logits", "log_probs") else predicted
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-6)


def test_perfect_logits_have_a_loss_near_zero_through_the_trainer(tmp_path):
    class Perfect(Spaced, lightning.LightningModule):
        def forward(self, x):
            return super().forward(x) + 100 * nn.functional.one_hot(x[:, 0].long(), 3)

    x, y = TESTED.x.clone(), TESTED.y
    x[:, 0] = y
    module = Perfect()
    trainer = fit(module, tmp_path, TensorDataset(x, y))
    assert evaluated("test", trainer, module, TensorDataset(x, y)) < 1e-6


def test_a_vote_counts_the_constituents_through_the_trainer(tmp_path):
    module = SPACES["logits-lightning"]()
    trainer = fit(module, tmp_path, aggregate="vote")
    chosen = outputs(tmp_path, type(module), TESTED.x).argmax(-1)
    shares = torch.tensor([[((row == c).sum() + 1 / 3) / 4 for c in range(3)] for row in chosen.T], dtype=torch.float64)
    assert evaluated("test", trainer, module) == pytest.approx(picked(shares, TESTED.y), rel=1e-5)


class Measured(Net):
    """Measures by a torchmetrics object that the module holds."""

    def __init__(self):
        super().__init__()
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)

    def training_step(self, batch, index):
        self.accuracy(self(batch[0]), batch[1])
        self.log("accuracy", self.accuracy, on_epoch=True, on_step=False)
        return super().training_step(batch, index)

    def test_step(self, batch, index):
        self.accuracy(self(batch[0]), batch[1])
        self.log("accuracy", self.accuracy, batch_size=len(batch[0]))


def test_torchmetrics_measure_the_aggregate_over_all_batches(tmp_path):
    module = Measured()
    trainer = fit(module, tmp_path)
    chosen = outputs(tmp_path, Measured, TESTED.x).softmax(-1).mean(0).argmax(-1)
    expected = float((chosen == TESTED.y).double().mean())
    for _ in range(2):
        assert evaluated("test", trainer, module, name="accuracy") == pytest.approx(expected)


class Named(torch.utils.data.Dataset):
    """Rows that are dictionaries."""

    def __len__(self):
        return 44

    def __getitem__(self, row):
        return {"x": Rows().x[row], "scale": torch.tensor(1.0 + row % 3), "y": Rows().y[row]}


class Mapped(Net):
    """Takes its inputs by name."""

    def forward(self, x, scale):
        return self.net(x) * scale[:, None]

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch["x"], scale=batch["scale"]), batch["y"])

    def test_step(self, batch, index):
        y = batch.pop("y")
        self.log("loss", nn.functional.cross_entropy(self(**batch), y), batch_size=len(y))


def test_batches_may_be_dictionaries(tmp_path):
    module = Mapped()
    trainer = fit(module, tmp_path, Named())
    whole = torch.utils.data.default_collate([Named()[row] for row in range(44)])
    y = whole.pop("y")
    own = outputs(tmp_path, Mapped, **whole)
    assert evaluated("test", trainer, module, Named()) == pytest.approx(picked(own.softmax(-1).mean(0), y), rel=1e-5)


class Sequential(Net):
    """Says a class for each step in time."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten())

    def test_step(self, batch, index):
        self.log("loss", self.training_step(batch, index), batch_size=len(batch[0]))


def test_classes_are_the_last_axis_of_as_many_as_there_are(tmp_path):
    generator = torch.Generator().manual_seed(6)
    x, y = torch.randn(20, 4, 6, generator=generator), torch.randint(0, 3, (20, 4), generator=generator)
    module = Sequential()
    trainer = fit(module, tmp_path, TensorDataset(x, y))
    mean = outputs(tmp_path, Sequential, x).softmax(-1).mean(0)
    found = evaluated("test", trainer, module, TensorDataset(x, y))
    assert found == pytest.approx(picked(mean.flatten(0, 1), y.flatten()), rel=1e-5)
    predicted = torch.cat(trainer.predict(module, DataLoader(TensorDataset(x), batch_size=8)))
    assert predicted.shape == (20, 4, 3)
    torch.testing.assert_close(predicted.double().exp(), mean, rtol=1e-5, atol=1e-6)


# What is refused


class Returning(Net):
    """Evaluates what a function makes of the logits."""

    def __init__(self, make=None):
        super().__init__()
        self.make = make

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def forward(self, x):
        return self.make(self.net(x))


@pytest.mark.parametrize(
    ("make", "space"),
    [
        pytest.param(lambda logits: {"logits": logits}, "logits", id="a dictionary"),
        pytest.param(lambda logits: (logits, logits), "logits", id="a tuple"),
        pytest.param(lambda logits: logits[:, :1], "log_probs", id="one column"),
        pytest.param(lambda logits: logits.softmax(-1), "logits", id="probabilities"),
        pytest.param(lambda logits: logits.argmax(-1, keepdim=True).expand(-1, 3), "logits", id="integers"),
        pytest.param(lambda logits: logits, "probs", id="logits as probabilities"),
        pytest.param(lambda logits: [logits], "values", id="a list of values"),
    ],
)
def test_what_no_space_means_is_refused_in_every_loop_and_in_the_deployed_module(make, space, tmp_path):
    module = Returning(make)
    trainer = fit(module, tmp_path, outputs=space)
    with pytest.raises(ConfigurationError, match=FOUR):
        trainer.predict(module, DataLoader(TESTED, batch_size=8))
    with pytest.raises(ConfigurationError, match=FOUR):
        Record.open(tmp_path / "record", KEY).aggregate(module)(TESTED.x)


@pytest.mark.parametrize("loop", ["validate", "test"])
@pytest.mark.parametrize("shape", [(21,), (21, 1), (21, 3)], ids=str)
def test_floating_targets_are_no_classes(shape, loop, tmp_path):
    module = SPACES["logits-lightning"]()
    trainer = fit(module, tmp_path)
    data = TensorDataset(TESTED.x, torch.randn(shape))
    with pytest.raises(ConfigurationError, match=f"the target is floating(.|\n)*{FOUR}"):
        evaluated(loop, trainer, module, data)


def test_floating_targets_are_refused_before_there_is_a_record(tmp_path):
    data = TensorDataset(Rows().x, torch.randn(44, 3))
    with pytest.raises(ConfigurationError, match=f"the target is floating(.|\n)*{FOUR}"):
        fit(SPACES["values-lightning"](), tmp_path, data)
    assert not (tmp_path / "record").exists()


def test_one_model_alone_may_have_any_targets(tmp_path):
    data = TensorDataset(Rows().x, torch.randn(44, 3))
    trainer = trainer_for(Case(shards=1, slices=1, epochs=1), tmp_path)
    module = SPACES["values-lightning"]()
    trainer.fit(module, DataLoader(data, batch_size=5), DataLoader(data, batch_size=20))
    assert evaluated("test", trainer, module, data) > 0


def test_targets_that_are_probabilities_are_classes(tmp_path):
    soft = nn.functional.one_hot(TESTED.y, 3) * 0.7 + 0.1
    data = TensorDataset(TESTED.x, soft)
    module = SPACES["logits-lightning"]()
    trainer = fit(module, tmp_path, data)
    mean = outputs(tmp_path, type(module), TESTED.x).softmax(-1).mean(0)
    assert evaluated("test", trainer, module, data) == pytest.approx(
        float(-(soft * mean.log()).sum(-1).mean()), rel=1e-5
    )


def test_a_pair_of_inputs_is_no_target_where_only_predictions_are_made(tmp_path):
    module = SPACES["logits-lightning"]()
    trainer = fit(module, tmp_path)
    pairs = DataLoader(TensorDataset(TESTED.x, torch.randn(21, 2)), batch_size=8)
    assert torch.cat(trainer.predict(module, pairs)).shape == (21, 3)
