"""State that no stage stores: generators that went on are refused by name, variables that changed are named."""

import random

import numpy as np
import pytest

from pybrush.errors import TrainingError
from pybrush.hidden import Hidden, array_digest, check_generators, found_changed
from pybrush.randomness import Randomness
from pybrush.reach import Kinds

RANDOMNESS = Randomness("third", lambda seed: None, lambda: None, lambda state: None)


class Tensor:
    """A number that may change in place, as tensors do."""

    def __init__(self, value):
        self.value = value


class Counter:
    """A generator of a framework: its draws are counted."""

    def __init__(self):
        self.drawn = 0

    def draw(self):
        self.drawn += 1


the_frameworks = Counter()
KINDS = Kinds({Tensor: lambda t: str(t.value)}, {Counter: lambda c: bytes([c.drawn])}, seeded=(the_frameworks,))

a_generator, an_old_generator, a_python_generator = np.random.default_rng(0), np.random.RandomState(0), random.Random(0)
a_counter = Counter()


def hidden_below(root):
    return Hidden([("root", root)], KINDS)


count, history = 0, []


def counting():
    global count
    count += 1


def listing():
    history.append(1)


def by_default(kept=[]):  # noqa: B006
    kept.append(1)


def closed_over():
    held = {"calls": np.zeros(3)}

    def function():
        held["calls"][1] += 1

    return function


a_tensor = Tensor(0)


def of_a_tensor():
    a_tensor.value += 1


class WithClass:
    """Counts for all of its kind."""

    seen = 0

    def step(self):
        type(self).seen += 1


VARIABLES = {
    f"global count of {__name__}": (counting, counting),
    f"global history of {__name__}": (listing, listing),
    "a default value of by_default": (by_default, by_default),
    f"global a_tensor of {__name__}": (of_a_tensor, of_a_tensor),
    "held of closed_over.<locals>.function": (closure := closed_over(), closure),
    "WithClass.seen": (one := WithClass(), one.step),
}


@pytest.mark.parametrize("place", VARIABLES)
def test_a_variable_that_changes_is_found_by_its_name(place):
    root, change = VARIABLES[place]
    hidden = hidden_below(root)
    before = hidden.values()
    assert found_changed(before, hidden.values()) == []
    change()
    (found,) = found_changed(before, hidden.values())
    assert found["name"] == f"hidden-state:{place}" and "no influence" in found["statement"]


def test_what_a_stage_stores_is_neither_named_nor_refused():
    def function():
        return a_tensor, a_counter

    watched, hidden = hidden_below(function), Hidden([("root", function)], KINDS, stored=[a_tensor, a_counter])
    before, known = (watched.values(), watched.generators()), (hidden.values(), hidden.generators())
    of_a_tensor(), a_counter.draw()
    assert len(found_changed(before[0], watched.values())) == 1
    assert found_changed(known[0], hidden.values()) == []
    check_generators(known[1], hidden.generators(), RANDOMNESS)
    with pytest.raises(TrainingError):
        check_generators(before[1], watched.generators(), RANDOMNESS)


GENERATORS = {
    "a_generator": lambda: a_generator.normal(),
    "an_old_generator": lambda: an_old_generator.rand(),
    "a_python_generator": lambda: a_python_generator.random(),
    "a_counter": lambda: a_counter.draw(),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_that_went_on_is_refused_by_name(name):
    hidden = hidden_below(GENERATORS[name])
    before = hidden.generators()
    check_generators(before, hidden.generators(), RANDOMNESS)
    GENERATORS[name]()
    said = f"drew from global {name} of .* global generators of random, numpy and third"
    with pytest.raises(TrainingError, match=said):
        check_generators(before, hidden.generators(), RANDOMNESS)


class Holder:
    """An object of the user's."""

    def __init__(self, generator):
        self.generator = generator


def test_a_generator_that_is_an_attribute_is_refused_by_its_place():
    held = Holder({"own": np.random.default_rng(0)})
    hidden = hidden_below(held)
    before = hidden.generators()
    held.generator["own"].normal()
    with pytest.raises(TrainingError, match=r"drew from root\.generator\[\.\.\.\], which"):
        check_generators(before, hidden.generators(), RANDOMNESS)


def test_the_global_generators_are_no_find():
    root = [lambda: random.random(), lambda: the_frameworks.draw(), np.random.rand]
    hidden = Hidden([("root", root), ("other", the_frameworks)], KINDS)
    before = hidden.generators()
    random.random(), np.random.rand(), the_frameworks.draw()  # noqa: NPY002
    check_generators(before, hidden.generators(), RANDOMNESS)


TABLE = np.zeros(10**7)


def reads_a_table():
    return TABLE


def test_a_large_array_is_looked_at_in_few_places_and_another_one_is_noticed(monkeypatch):
    hidden = hidden_below(reads_a_table)
    before = hidden.values()
    assert found_changed(before, hidden.values()) == []
    monkeypatch.setitem(globals(), "TABLE", np.ones(10**7))
    assert len(found_changed(before, hidden.values())) == 1


@pytest.mark.parametrize(
    "other",
    [np.arange(4.0), np.arange(5), np.arange(4).reshape(2, 2), np.array([0, 1, 2, 4]), np.arange(3)],
    ids=["type", "length", "shape", "values", "shorter"],
)
def test_arrays_that_differ_in_any_way_have_other_digests(other):
    assert array_digest(np.arange(4)) == array_digest(np.arange(8)[:4]) != array_digest(other)


def test_empty_arrays_and_arrays_of_objects_have_a_digest():
    objects = np.array([object()])
    assert array_digest(np.zeros(0)) == array_digest(np.zeros(0)) != array_digest(np.zeros((0, 1)))
    assert array_digest(objects) == array_digest(objects)
