"""What a training depends on is told of every form in which Keras takes it."""

import keras
import pytest

from pybrush_keras.fingerprint import loss, sources
from tests.keras import nets


def absolute(target, output):
    return keras.ops.mean(keras.ops.abs(target - output))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("mse", "mse"),
        (["mse"], ["mse"]),
        (keras.losses.Huber(2.0), ["Huber", {"delta": 2.0}]),
    ],
    ids=["a text", "a list", "an object"],
)
def test_a_loss_is_told_in_every_form(given, told):
    model = nets.plain(loss=given, metrics=None)
    found = loss(model)["loss"]
    assert found == told or (found[0] == told[0] and found[1].items() >= told[1].items())
    assert sources(model, []) == {}


def test_a_loss_of_the_users_own_is_told_by_its_source():
    model = nets.plain(loss=absolute, metrics=None)
    assert list(sources(model, [])) == ["absolute"]
