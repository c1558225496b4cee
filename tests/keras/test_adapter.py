"""The core finds the adapter of Keras' models, on either backend, and no other adapter on the way."""

import sys

import keras
import pytest

from pybrush.adapters import adapter_named, adapter_of
from pybrush_keras.adapter import KerasAdapter


class Subclassed(keras.Model):
    """A model of the user's own class."""


MODELS = {
    "sequential": lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]),
    "functional": lambda: keras.Model(inputs := keras.Input((2,)), keras.layers.Dense(1)(inputs)),
    "subclassed": Subclassed,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_finds_it_and_lightning_is_not_imported(make):
    assert type(adapter_of(make())) is KerasAdapter
    assert "pybrush_lightning" not in sys.modules


def test_the_name_in_records_finds_it():
    assert type(adapter_named("keras")) is KerasAdapter
