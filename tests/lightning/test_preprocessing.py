"""What learned from all rows before training is named in every guarantee: fitted objects, changing closures."""

from contextlib import closing

import lightning
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from pybrush.preprocessing import assumptions
from pybrush.record import Record
from pybrush_lightning.kinds import KINDS, reading
from tests.lightning.models import Data, Net, Rows
from tests.lightning.twin import CASES, KEY, trainer_for

TABLE = np.random.default_rng(3).normal(size=(44, 6)).astype("float32")


class Compose:
    """As in torchvision."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, x):
        for transform in self.transforms:
            x = transform(x)
        return x


class Normalize(torch.nn.Module):
    """As in torchvision: constants."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x):
        return (x - torch.tensor(self.mean)) / torch.tensor(self.std)


class Prepared(Rows):
    """Rows behind a transform."""

    def __init__(self, transform=None, **more):
        super().__init__()
        self.transform = transform
        vars(self).update(more)

    def __getitem__(self, row):
        x, y = super().__getitem__(row)
        return (x if self.transform is None else self.transform(x)), y


def names(dataset, *owners, **loader):
    found = assumptions(reading(DataLoader(dataset, batch_size=5, shuffle=True, **loader)), owners, KINDS)
    return [one["name"].removeprefix("preprocessing:") for one in found]


def scaler():
    return StandardScaler().fit(TABLE)


FITTED = {
    "an attribute of rows that were cut": (lambda: Subset(Prepared(scaler=scaler()), range(9)), ["StandardScaler"]),
    "rows that were joined": (lambda: ConcatDataset([Rows(), Prepared(scaler=PCA(2).fit(TABLE))]), ["PCA"]),
    "a sequential of modules": (
        lambda: Prepared(torch.nn.Sequential(Normalize([0.0], [1.0]), torch.nn.Identity()), by=[{"a": (scaler(),)}]),
        ["StandardScaler"],
    ),
    "rows that were cut and joined": (
        lambda: ConcatDataset([Rows(), Subset(Prepared(scaler=scaler()), range(9))]), ["StandardScaler"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), FITTED.values(), ids=FITTED.keys())
def test_a_fitted_object_is_found_in(make, expected):
    assert names(make()) == expected


def test_a_fitted_object_is_found_in_the_collate_function_the_module_and_the_data_module():
    held = scaler()

    def collate(rows):
        return held.transform(np.stack([x.numpy() for x, _ in rows]))

    module, data = Net(), lightning.LightningDataModule()
    assert names(Rows(), collate_fn=collate) == ["StandardScaler"]
    module.net.prepare, data.prepare = PCA(2).fit(TABLE), MinMaxScaler().fit(TABLE)
    assert names(Rows(), module, data) == ["MinMaxScaler", "PCA"]
    assert names(Rows(), module, None) == ["PCA"]


def closure_over(value):
    def shifted(x):
        return x - value[0]

    return shifted


CHANGING = {
    "tensor": lambda: torch.as_tensor(TABLE).mean(0),
    "tuple of tensors": lambda: (torch.ones(1),),
}


@pytest.mark.parametrize("make", CHANGING.values(), ids=CHANGING.keys())
def test_a_closure_over_something_that_may_change_or_came_from_data_is_found(make):
    assert names(Prepared(closure_over(make()))) == ["closure_over.<locals>.shifted"]


HARMLESS = {
    "plain tensors": lambda: TensorDataset(torch.randn(5, 2), torch.zeros(5)),
    "rows with lists of their own": Rows,
    "constants in transforms": lambda: Prepared(Compose([Normalize([0.5] * 6, [0.5] * 6), Normalize((0.1,), (0.3,))])),
    "functions of installed packages": lambda: Prepared(Compose([torch.relu, np.abs, torch.nn.functional.gelu])),
}


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS.keys())
def test_nothing_is_found_in(make):
    assert names(make(), Net(), lightning.LightningDataModule()) == []


def test_a_trainer_that_a_data_module_holds_is_not_looked_through(tmp_path):
    data = lightning.LightningDataModule()
    data.trainer = trainer_for(CASES["momentum"], tmp_path)
    data.trainer.callbacks[0].held = scaler()
    assert names(Rows(), data) == []


class Scaled(Rows):
    """Scaled by statistics of all rows that were there when the training began."""

    def __init__(self, scaler=None):
        super().__init__()
        self.scaler = scaler


def loader(dataset):
    return DataLoader(dataset, batch_size=5, shuffle=True)


def told(result):
    return {a.name: a for a in result.guarantee.assumptions}


def test_what_was_found_at_the_fit_is_in_the_guarantee_of_every_later_request(tmp_path, caplog):
    case, module = CASES["momentum"], Net()
    trainer = trainer_for(case, tmp_path)
    trainer.fit(module, loader(Scaled(scaler())))
    assert [line for line in caplog.messages if "StandardScaler" in line]
    here = told(trainer.unlearn(rows=[3]))
    elsewhere = trainer_for(case, tmp_path, sisa={"shards": None, "slices": None, "seed": None})
    later = told(elsewhere.unlearn(rows=[20], model=Net(), train_dataloaders=loader(Scaled())))
    name = "preprocessing:StandardScaler"
    assert here[name] == later[name]
    assert (here[name].how, here[name].holds) == ("declared", "unknown")
    assert "dataset.scaler" in here[name].statement and "refit" in here[name].statement


def test_where_nothing_was_found_the_guarantee_names_no_find_and_nobody_is_warned(tmp_path, caplog):
    trainer = trainer_for(CASES["momentum"], tmp_path)
    trainer.fit(Net(), loader(Rows()))
    assert not [name for name in told(trainer.unlearn(rows=[3])) if name.startswith("preprocessing:")]
    assert not [line for line in caplog.messages if "preprocessing" in line]


def test_fits_look_through_module_and_data_module(tmp_path):
    module, data = Net(), Data(Rows, {"batch_size": 5, "shuffle": True})
    module.reduce, data.scaler = PCA(2).fit(TABLE), scaler()
    trainer_for(CASES["momentum"], tmp_path).fit(module, datamodule=data)
    with closing(Record.open(tmp_path / "record", KEY)) as record:
        found = {one["name"]: one["statement"] for one in record.plan.settings["assumptions"]}
    assert found.keys() == {"preprocessing:PCA", "preprocessing:StandardScaler"}
    assert "(Net.reduce)" in found["preprocessing:PCA"] and "(Data.scaler)" in found["preprocessing:StandardScaler"]


def test_a_find_that_the_user_declares_holds_from_then_on(tmp_path):
    trainer = trainer_for(CASES["momentum"], tmp_path)
    trainer.fit(Net(), loader(Scaled(scaler())))
    with closing(Record.open(tmp_path / "record", KEY)) as record:
        assert record.plan.settings["assumptions"] == assumptions(reading(loader(Scaled(scaler()))), (), KINDS)
        record.declare("preprocessing:StandardScaler", "fitted on public rows")
        record.verify()
    found = told(trainer.unlearn(rows=[3]))["preprocessing:StandardScaler"]
    assert found.holds == "yes" and found.statement.endswith("; declared: fitted on public rows")
