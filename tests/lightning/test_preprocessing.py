"""What learned from all rows before training is named in every guarantee: fitted objects, changing closures."""

from collections import deque
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial, wraps
from reprlib import recursive_repr

import lightning
import numpy as np
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
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


class Scaling:
    """Applies a fitted object to one row."""

    def __init__(self, fitted):
        self.fitted = fitted

    def __call__(self, x):
        return torch.as_tensor(self.fitted.transform(x[None].numpy())[0], dtype=torch.float32)


class Settings:
    """Neither called nor fitted."""

    def __init__(self, fitted):
        self.fitted = fitted


def with_attribute(value):
    def function(x):
        return function.value.transform(x)

    function.value = value
    return function


class Centred:
    """Not of scikit-learn, but of its convention."""

    def fit(self, x):
        self.mean_ = x.mean(0)
        return self


def names(dataset, *owners, **loader):
    found = assumptions(reading(DataLoader(dataset, batch_size=5, shuffle=True, **loader)), owners, KINDS)
    return [one["name"].removeprefix("preprocessing:") for one in found]


def scaler():
    return StandardScaler().fit(TABLE)


def by_column():
    kinds = [("a", StandardScaler(), [0, 1]), ("b", MinMaxScaler(), [2, 3])]
    return ColumnTransformer(kinds).fit(TABLE)


def searched():
    pipeline = make_pipeline(StandardScaler(), PCA())
    return GridSearchCV(pipeline, {"pca__n_components": [1, 2]}, cv=2).fit(TABLE)


FITTED_ONCE = scaler()

FITTED = {
    "an attribute": (lambda: Prepared(scaler=scaler()), ["StandardScaler"]),
    "an attribute of rows that were cut": (lambda: Subset(Prepared(scaler=scaler()), range(9)), ["StandardScaler"]),
    "rows that were joined": (lambda: ConcatDataset([Rows(), Prepared(scaler=PCA(2).fit(TABLE))]), ["PCA"]),
    "a transform": (lambda: Prepared(Scaling(scaler())), ["StandardScaler"]),
    "the transform of a target": (lambda: Prepared(target_transform=Scaling(scaler())), ["StandardScaler"]),
    "a transform inside others": (lambda: Prepared(Compose([abs, Scaling(scaler())])), ["StandardScaler"]),
    "a sequential of modules": (
        lambda: Prepared(torch.nn.Sequential(Normalize([0.0], [1.0]), torch.nn.Identity()), by=[{"a": (scaler(),)}]),
        ["StandardScaler"],
    ),
    "a pipeline": (lambda: Prepared(Scaling(make_pipeline(StandardScaler(), PCA(2)).fit(TABLE))),
                   ["PCA", "StandardScaler"]),
    "a union in a pipeline": (
        lambda: Prepared(Scaling(make_pipeline(make_union(StandardScaler(), PCA(2)), MinMaxScaler()).fit(TABLE))),
        ["MinMaxScaler", "PCA", "StandardScaler"],
    ),
    "a search over pipelines": (
        lambda: Prepared(Scaling(searched())),
        ["GridSearchCV", "PCA", "StandardScaler"],
    ),
    "a partial of a bound method": (
        lambda: Prepared(Compose([Compose([partial(scaler().transform, copy=True)])])), ["StandardScaler"]
    ),
    "columns": (lambda: Prepared(columns=by_column()), ["ColumnTransformer", "MinMaxScaler", "StandardScaler"]),
    "a vocabulary": (lambda: Prepared(words=CountVectorizer().fit(["a text", "another"])), ["CountVectorizer"]),
    "a class of the user's": (lambda: Prepared(centre=Centred().fit(TABLE)), ["Centred"]),
    "a partial": (lambda: Prepared(partial(np.add, scaler())), ["StandardScaler"]),
    "a bound method": (lambda: Prepared(scaler().transform), ["StandardScaler"]),
    "rows that were cut and joined": (
        lambda: ConcatDataset([Rows(), Subset(Prepared(scaler=scaler()), range(9))]), ["StandardScaler"]
    ),
    "an object of the user's": (lambda: Prepared(settings=Settings(scaler())), ["StandardScaler"]),
    "a function's attribute": (lambda: Prepared(with_attribute(scaler())), ["StandardScaler"]),
    "a default value by name": (lambda: Prepared(lambda x, *, by=FITTED_ONCE: by.transform(x)), ["StandardScaler"]),
    "a default value": (lambda: Prepared(lambda x, by=FITTED_ONCE: by.transform(x)), ["StandardScaler"]),
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


fitted_in_a_global = scaler()


class Reading(Rows):
    """Reads a global; so does a property of it, by a function."""

    def __getitem__(self, row):
        return self.scaled[row], self.y[row]

    @cached_property
    def scaled(self):
        return scaled_by_global(self.x)


def scaled_by_global(x):
    return torch.as_tensor(fitted_in_a_global.transform(x), dtype=torch.float32)


def test_a_fitted_object_is_found_in_globals_that_methods_and_the_functions_they_call_read():
    assert names(Reading()) == ["StandardScaler"]


class WithClassAttribute(Rows):
    """All instances share a scaler."""

    scaler = scaler()


def test_a_fitted_object_is_found_in_a_class_attribute():
    assert names(WithClassAttribute()) == ["StandardScaler"]


def closure_over(value):
    def shifted(x):
        return x - value[0]

    return shifted


CHANGING = {
    "list": lambda: [0.5],
    "dict": lambda: {0: 0.5},
    "deque": lambda: deque([0.5]),
    "bytearray": lambda: bytearray(b"1"),
    "array": lambda: TABLE.mean(0),
    "tensor": lambda: torch.as_tensor(TABLE).mean(0),
    "tuple of tensors": lambda: (torch.ones(1),),
}


@pytest.mark.parametrize("make", CHANGING.values(), ids=CHANGING.keys())
def test_a_closure_over_something_that_may_change_or_came_from_data_is_found(make):
    assert names(Prepared(closure_over(make()))) == ["closure_over.<locals>.shifted"]


running = []


def reads_a_global(x):
    return [x + len(running) for _ in range(2)][0]  # noqa: RUF015 (a scope inside the function)


def keeps_a_default(x, kept={}):  # noqa: B006 (the trap)
    return kept.setdefault("first", x)


@pytest.mark.parametrize("function", [reads_a_global, keeps_a_default])
def test_a_function_that_reads_a_changing_global_or_default_value_is_found(function):
    assert names(Prepared(Compose([function]))) == [function.__qualname__]
    assert names(Rows(), collate_fn=function) == [function.__qualname__]


@dataclass(repr=True, eq=False)
class AsDataclass(Rows):
    """Its generated methods have closures over containers."""

    transform: object = None
    levels: list = field(default_factory=list)

    def __post_init__(self):
        super().__init__()


@contextmanager
def counted():
    yield


def decorated(function):
    calls = []

    @wraps(function)
    def wrapper(*arguments):
        calls.append(1)
        return function(*arguments)

    return wrapper


class Decorated(Rows):
    """Reads through decorators of packages and of its own."""

    @counted()
    def __getitem__(self, row):
        return scaled_by_global(self.x[row : row + 1])[0], self.y[row]

    @lru_cache  # noqa: B019
    def again(self, row):
        return running[row]

    @recursive_repr()
    def described(self):
        return "rows"

    @staticmethod
    @decorated
    def other(row):
        return row


def test_behind_decorators_of_packages_the_users_functions_are_looked_at_and_theirs_are_not():
    assert names(Decorated()) == ["Decorated.again", "Decorated.other", "StandardScaler"]


class Made(Rows):
    """Only its constructor reads a global list."""

    def __init__(self):
        super().__init__()
        self.before = len(running)


LEVELS = [0.1, 0.5]
a_tuple = (0.5, "a")


def reads_constants(x):
    return np.float32(x) * LEVELS[0] + a_tuple[0]


def generator_of(value):
    def drawn(x):
        return x + value

    return drawn


HARMLESS = {
    "plain tensors": lambda: TensorDataset(torch.randn(5, 2), torch.zeros(5)),
    "rows with lists of their own": Rows,
    "constants in transforms": lambda: Prepared(Compose([Normalize([0.5] * 6, [0.5] * 6), Normalize((0.1,), (0.3,))])),
    "a function of constants": lambda: Prepared(reads_constants),
    "a closure over a number": lambda: Prepared(generator_of(0.5)),
    "a closure over a NumPy number": lambda: Prepared(generator_of(np.float32(0.5))),
    "a closure over a tuple": lambda: Prepared(closure_over((0.5, 0.5))),
    "a scaler that is not fitted": lambda: Prepared(scaler=StandardScaler(), other=Pipeline([("a", PCA())])),
    "what scales each row by itself": lambda: Prepared(by=Normalizer().fit(TABLE)),
    "functions of installed packages": lambda: Prepared(Compose([torch.relu, np.abs, torch.nn.functional.gelu])),
    "a class that can be fitted": lambda: Prepared(kind=StandardScaler),
    "a dataclass": AsDataclass,
    "a long list of data": lambda: Prepared(samples=[FITTED_ONCE] * 1001),
    "what only a constructor reads": Made,
}


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS.keys())
def test_nothing_is_found_in(make):
    assert names(make(), Net(), lightning.LightningDataModule()) == []


def test_a_trainer_that_a_data_module_holds_is_not_looked_through(tmp_path):
    data = lightning.LightningDataModule()
    data.trainer = trainer_for(CASES["momentum"], tmp_path)
    data.trainer.callbacks[0].held = scaler()
    assert names(Rows(), data) == []


def test_objects_that_hold_each_other_are_looked_through_once():
    one, other = Prepared(), Prepared(scaler=scaler())
    one.other, other.other, one.own = other, one, [one]
    one.own.append(one.own)
    assert names(one) == ["StandardScaler"]


def test_a_statement_says_where_and_never_by_which_key():
    dataset = Prepared(by_person={"anna-smith": scaler()}, transform=closure_over([0.5]))
    by_name = {one["name"]: one["statement"] for one in assumptions(reading(DataLoader(dataset)), (), KINDS)}
    assert "dataset.by_person[...]" in by_name["preprocessing:StandardScaler"]
    assert "value (list)" in by_name["preprocessing:closure_over.<locals>.shifted"]
    assert "anna" not in str(by_name)


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
