"""What learned from all rows before training is found: fitted objects, and functions that read what may change."""

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial, wraps
from reprlib import recursive_repr
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler

from pybrush.preprocessing import assumptions, noted, say_found
from pybrush.reach import Kinds
from pybrush.record.create import PlanWish

TABLE = np.random.default_rng(3).normal(size=(44, 6)).astype("float32")


class Rows:
    """Rows of a table."""

    def __init__(self):
        self.x, self.names = TABLE, [str(row) for row in range(44)]

    def __getitem__(self, row):
        return self.x[row]


class Compose:
    """As in torchvision."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, x):
        for transform in self.transforms:
            x = transform(x)
        return x


class Prepared(Rows):
    """Rows behind a transform."""

    def __init__(self, transform=None, **more):
        super().__init__()
        self.transform = transform
        vars(self).update(more)

    def __getitem__(self, row):
        return self.x[row] if self.transform is None else self.transform(self.x[row])


class Scaling:
    """Applies a fitted object to one row."""

    def __init__(self, fitted):
        self.fitted = fitted

    def __call__(self, x):
        return self.fitted.transform(x[None])[0]


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


class Adapted:
    """Has learned from rows in a way of its framework."""


class Engine:
    """Holds everything, and prepares nothing."""

    def __init__(self, **held):
        vars(self).update(held)


KINDS = Kinds(tensors={}, generators={}, closed=(Engine,), is_fitted=lambda value: isinstance(value, Adapted))


def names(dataset, *owners, **more):
    found = assumptions([("dataset", dataset), *more.items()], owners, KINDS)
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
    "a transform": (lambda: Prepared(Scaling(scaler())), ["StandardScaler"]),
    "the transform of a target": (lambda: Prepared(target_transform=Scaling(scaler())), ["StandardScaler"]),
    "a transform inside others": (lambda: Prepared(Compose([abs, Scaling(scaler())])), ["StandardScaler"]),
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
    "an object of the user's": (lambda: Prepared(settings=Settings(scaler())), ["StandardScaler"]),
    "a function's attribute": (lambda: Prepared(with_attribute(scaler())), ["StandardScaler"]),
    "a default value by name": (lambda: Prepared(lambda x, *, by=FITTED_ONCE: by.transform(x)), ["StandardScaler"]),
    "containers in containers": (lambda: Prepared(by=[{"a": (scaler(),)}]), ["StandardScaler"]),
    "an object that has learned in the framework's way": (lambda: Prepared(words=[Adapted()]), ["Adapted"]),
    "a default value": (lambda: Prepared(lambda x, by=FITTED_ONCE: by.transform(x)), ["StandardScaler"]),
}  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), FITTED.values(), ids=FITTED.keys())
def test_a_fitted_object_is_found_in(make, expected):
    assert names(make()) == expected


def test_a_fitted_object_is_found_in_what_makes_batches_and_in_the_owners():
    held = scaler()

    def collate(rows):
        return held.transform(np.stack(rows))

    one, other = Settings(PCA(2).fit(TABLE)), Settings([MinMaxScaler().fit(TABLE)])
    assert names(Rows(), collate_fn=collate) == ["StandardScaler"]
    assert names(Rows(), one, other) == ["MinMaxScaler", "PCA"]
    assert names(Rows(), one, None) == ["PCA"]


def test_a_function_of_an_owner_that_reads_a_changing_object_is_no_find():
    assert names(Rows(), Settings(closure_over([0.5]))) == []


fitted_in_a_global = scaler()


class Reading(Rows):
    """Reads a global; so does a property of it, by a function."""

    def __getitem__(self, row):
        return self.scaled[row]

    @cached_property
    def scaled(self):
        return scaled_by_global(self.x)


def scaled_by_global(x):
    return fitted_in_a_global.transform(x)


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
    "tuple of arrays": lambda: (np.ones(1),),
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
        return scaled_by_global(self.x[row : row + 1])[0]

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
    "an array": lambda: TABLE,
    "rows with lists of their own": Rows,
    "a function of constants": lambda: Prepared(reads_constants),
    "a closure over a number": lambda: Prepared(generator_of(0.5)),
    "a closure over a NumPy number": lambda: Prepared(generator_of(np.float32(0.5))),
    "a closure over a tuple": lambda: Prepared(closure_over((0.5, 0.5))),
    "a scaler that is not fitted": lambda: Prepared(scaler=StandardScaler(), other=Pipeline([("a", PCA())])),
    "what scales each row by itself": lambda: Prepared(by=Normalizer().fit(TABLE)),
    "functions of installed packages": lambda: Prepared(Compose([np.abs, np.linalg.norm])),
    "a class that can be fitted": lambda: Prepared(kind=StandardScaler),
    "a dataclass": AsDataclass,
    "a long list of data": lambda: Prepared(samples=[FITTED_ONCE] * 1001),
    "what only a constructor reads": Made,
}


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS.keys())
def test_nothing_is_found_in(make):
    assert names(make(), Rows()) == []


def test_what_an_adapter_closes_is_not_looked_through_and_what_it_says_prepares_rows_is():
    assert names(Prepared(engine=Engine(held=scaler()))) == []
    installed = Prepared(by=[SimpleNamespace(held=scaler())])
    assert names(installed) == []
    assert len(assumptions([("dataset", installed)], (), Kinds({}, {}, preparing=(SimpleNamespace,)))) == 1


class Tensor:
    """Its memory belongs to the framework."""

    def __init__(self, **held):
        vars(self).update(held)


def test_tensors_are_not_looked_into():
    assert names(Prepared(mean=Tensor(held=scaler()))) == ["StandardScaler"]
    assert assumptions([("dataset", Prepared(mean=Tensor(held=scaler())))], (), Kinds({Tensor: repr}, {})) == []


def test_objects_that_hold_each_other_are_looked_through_once():
    one, other = Prepared(), Prepared(scaler=scaler())
    one.other, other.other, one.own = other, one, [one]
    one.own.append(one.own)
    assert names(one) == ["StandardScaler"]


def test_a_statement_says_where_and_never_by_which_key():
    dataset = Prepared(by_person={"anna-smith": scaler()}, transform=closure_over([0.5]))
    by_name = {one["name"]: one["statement"] for one in assumptions([("dataset", dataset)], (), KINDS)}
    assert "dataset.by_person[...]" in by_name["preprocessing:StandardScaler"]
    assert "value (list)" in by_name["preprocessing:closure_over.<locals>.shifted"]
    assert "anna" not in str(by_name)


def test_what_was_found_is_noted_beside_the_other_settings_and_said_once(caplog):
    wish = PlanWish(1, 1, 1, 0, "shuffled", "content", "digest", "numpy", settings={"own": 1})
    say_found(noted(wish, [("dataset", Rows())], (), KINDS))
    assert caplog.messages == []
    found = noted(wish, [("dataset", Prepared(scaler=scaler()))], [Settings(PCA(2).fit(TABLE))], KINDS)
    assert found.settings["own"] == 1 and wish.settings == {"own": 1}
    assert [one["name"] for one in found.settings["assumptions"]] == [
        "preprocessing:PCA",
        "preprocessing:StandardScaler",
    ]
    say_found(found)
    (line,) = caplog.messages
    assert "PCA, StandardScaler" in line
