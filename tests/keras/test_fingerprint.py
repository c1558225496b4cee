"""What a training depends on is told of every form in which Keras takes it."""

import keras
import pytest
from keras import losses

from pybrush_keras import _private
from pybrush_keras.fingerprint import loss, sources
from tests.keras import nets


def absolute(target, output):
    return keras.ops.mean(keras.ops.abs(target - output))


@pytest.mark.parametrize(
    "given", ["mse", ["mse"], {"dense_1": "mse"}, losses.Huber()], ids=["word", "list", "by name", "object"]
)
def test_a_loss_of_keras_is_told_in_every_form(given):
    model = nets.plain(loss=given, metrics=None)
    assert "Huber" in str(loss(model)) or "mse" in str(loss(model))
    assert sources(model, []) == {}


def test_a_loss_of_the_users_own_is_told_by_its_source():
    model = nets.plain(loss=absolute, metrics=None)
    assert list(sources(model, [])) == ["absolute"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (losses.Huber(1.0), losses.Huber(2.0)),
        (losses.CosineSimilarity(-1), losses.CosineSimilarity(0)),
        (losses.CategoricalCrossentropy(label_smoothing=0.1), losses.CategoricalCrossentropy()),
        (losses.Huber(reduction="sum"), losses.Huber()),
    ],
)
def test_losses_with_other_settings_are_other_losses(one, other):
    assert loss(nets.plain(loss=one, metrics=None)) != loss(nets.plain(loss=other, metrics=None))


def test_keras_keeps_the_settings_of_a_loss_where_we_look():
    assert _private.loss_settings(losses.Huber(3.0)) == {"delta": 3.0}
