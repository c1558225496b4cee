"""Attributes beside variables: what a state holds comes back, what it cannot hold must stay, data is refused."""

from dataclasses import dataclass

import numpy as np
import pytest

from pybrush.attributes import check_no_data, check_opaque, opaque_digests, plain_attributes, write_attributes
from pybrush.errors import ConfigurationError, TrainingError


class Handle:
    """A tensor whose memory only the framework knows."""

    def __init__(self, memory):
        self.memory = memory


class Layer:
    """Is called, and holds state; its pickle differs each time."""

    pickles = 0

    def __init__(self, **held):
        self.built = True
        vars(self).update(held)

    def __call__(self):
        return 0

    def __reduce__(self):
        Layer.pickles += 1
        return Layer, (), {"pickles": Layer.pickles}


class Listing(list):
    """The framework's own kind of list, which cannot be pickled."""

    def __reduce__(self):
        raise TypeError


@dataclass(frozen=True)
class Known:
    """A framework of NumPy arrays."""

    parts: tuple = ()

    def is_internal(self, owner, name):
        return isinstance(owner, Layer) and name == "built"

    def is_part(self, value):
        return any(value is part for part in self.parts)

    def holds_state(self, value):
        return isinstance(value, Layer)

    def is_trainable(self, value):
        return isinstance(value, np.ndarray) and value.dtype == np.float16

    def address(self, value):
        return id(value.memory) if isinstance(value, Handle) else None

    def read(self, value):
        if isinstance(value, Handle):
            return value.memory.copy()
        return [self.read(item) for item in value] if isinstance(value, list) else value

    def compared(self, value):
        return vars(value) if isinstance(value, Layer) else value

    def placed(self, value, present):
        return Listing(value) if isinstance(present, list) else value


class Own:
    """Any object of the user's."""

    def __init__(self, **held):
        vars(self).update(held)


PART = Layer()
KNOWN = Known(parts=(PART,))

STORED = {
    "a number": 3,
    "a text": "a",
    "nothing": None,
    "a container": {"a": [1, (2.5, b"x")]},
    "an array": np.arange(3),
    "an empty list": [],
}


@pytest.mark.parametrize("value", STORED.values(), ids=STORED.keys())
def test_a_plain_value_is_stored_as_a_copy(value):
    owner = Own(held=value)
    stored = plain_attributes(owner, KNOWN)
    assert repr(stored) == repr({"held": value})
    assert opaque_digests([("own", owner)], KNOWN) == {}


def test_what_is_done_to_a_value_later_does_not_reach_what_was_stored():
    owner = Own(counts={"a": [0]}, sums=np.zeros(2))
    stored = plain_attributes(owner, KNOWN)
    owner.counts["a"][0], owner.sums[:] = 1, 1
    assert stored["counts"] == {"a": [0]} and stored["sums"].tolist() == [0, 0]


NEITHER = {
    "internal": lambda: Layer(built=False),
    "a function": lambda: Own(held=lambda: 0),
    "a bound method": lambda: Own(held=Own.__init__),
    "a part": lambda: Own(held=PART),
    "parts in containers": lambda: Own(held={"a": [PART, (PART,)]}),
}


@pytest.mark.parametrize("make", NEITHER.values(), ids=NEITHER.keys())
def test_no_state_of_its_own_is(make):
    owner = make()
    assert plain_attributes(owner, KNOWN) == {}
    assert opaque_digests([("own", owner)], KNOWN) == {}


def test_the_name_of_an_internal_attribute_is_free_on_other_objects():
    assert plain_attributes(Own(built=1), KNOWN) == {"built": 1}


def holding_itself():
    held = []
    held.append(held)
    return held


OPAQUE = {
    "an object": lambda: Own(count=0),
    "what is trained": lambda: np.zeros(2, np.float16),
    "what is trained, in a container": lambda: {"a": [np.zeros(2, np.float16)]},
    "a container of a part and a number": lambda: [PART, 1],
    "a layer that is no part": lambda: Layer(),
    "a class": lambda: Own,
    "a set": lambda: {1},
    "what cannot be pickled": lambda: [lambda: 0],
    "a list that holds itself": holding_itself,
}


@pytest.mark.parametrize("make", OPAQUE.values(), ids=OPAQUE.keys())
def test_what_a_state_cannot_hold_is_compared_and_equal_while_nothing_changes(make):
    owner = Own(held=make())
    assert plain_attributes(owner, KNOWN) == {}
    before = opaque_digests([("own", owner)], KNOWN)
    assert before.keys() == {"own.held"}
    check_opaque(before, opaque_digests([("own", owner)], KNOWN), "Keep it elsewhere.")


def grown(owner):
    owner.held.count += 1


def trained(owner):
    owner.held[0] += 1


def in_a_layer(owner):
    owner.held.seen = [1]


CHANGES = {
    "an object": (lambda: Own(count=0), grown),
    "an object in the framework's own list": (
        lambda: Listing([Own(count=0)]),
        lambda owner: grown(Own(held=owner.held[0])),
    ),
    "what is trained": (lambda: np.zeros(2, np.float16), trained),
    "a layer that is no part": (Layer, in_a_layer),
    "another object that cannot be pickled": (lambda: [lambda: 0], lambda owner: setattr(owner, "held", [lambda: 0])),
    "an attribute that is new": (lambda: 1, lambda owner: setattr(owner, "held", {1})),
    "an attribute that is gone": (lambda: {1}, lambda owner: delattr(owner, "held")),
}


@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_what_a_state_cannot_hold_is_refused_by_name_with_the_adapters_remedy(make, change):
    owner = Own(held=make())
    before = opaque_digests([("own", owner)], KNOWN)
    kept = vars(owner).copy()  # so that no new object takes its place in memory
    change(owner)
    with pytest.raises(TrainingError, match=r"training changed own\.held, of types .* Keep it elsewhere\.$"):
        check_opaque(before, opaque_digests([("own", owner)], KNOWN), "Keep it elsewhere.")
    assert kept


def test_writing_puts_back_what_was_stored_and_takes_away_what_came_later():
    owner = Own(count=1, gone=2, part=PART, odd={1})
    stored = plain_attributes(owner, KNOWN)
    owner.count, owner.later = 5, 6
    del owner.gone
    write_attributes(owner, stored, KNOWN)
    assert vars(owner) == {"count": 1, "gone": 2, "part": PART, "odd": {1}}


def test_the_frameworks_own_containers_and_tensors_are_stored_as_plain_ones_and_written_as_it_places_them():
    owner = Own(history=Listing([1, 2]), mean=Handle(np.arange(2)))
    stored = plain_attributes(owner, KNOWN)
    assert type(stored["history"]) is list and stored["mean"].tolist() == [0, 1]
    owner.history = Listing()
    write_attributes(owner, stored, KNOWN)
    assert type(owner.history) is Listing and owner.history == [1, 2]


IMAGES, NAMES, TENSOR = np.zeros((4, 3)), ["anna", "bert"], Handle(np.ones(3))
DATA = Own(x=IMAGES, names=NAMES, tensor=TENSOR)

HELD = {
    "the array": IMAGES,
    "a view": {"first": IMAGES[1:][:, 1:]},
    "the list": NAMES,
    "the list in others": [(NAMES,)],
    "a tensor": TENSOR,
    "another tensor of the same memory": [Handle(TENSOR.memory)],
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD.keys())
def test_the_training_data_as_an_attribute_is_refused_by_name(held):
    with pytest.raises(ConfigurationError, match=r"own\.images is training data"):
        check_no_data([("own", Own(images=held, rate=0.1))], KNOWN, [DATA])


def test_what_is_no_training_data_passes():
    owner = Own(table=np.zeros((4, 3)), names=["anna", "bert"], number=3, part=PART, odd={1})
    check_no_data([("own", owner)], KNOWN, [DATA, Own(number=3)])
