"""What a model returns, as its loss tells: as a word, a function and an object alike."""

from functools import partial

import keras
import pytest
from keras import layers, losses

from pybrush.errors import ConfigurationError
from pybrush_keras.spaces import infer_space, space_of

WORDS = "'logits', 'log_probs', 'probs' or 'values'"

TELLING = {
    "logits": [
        losses.CategoricalCrossentropy(from_logits=True),
        losses.SparseCategoricalCrossentropy(from_logits=True),
        losses.CategoricalFocalCrossentropy(from_logits=True),
        partial(losses.sparse_categorical_crossentropy, from_logits=True),
        [losses.SparseCategoricalCrossentropy(from_logits=True)],
        {"out": losses.SparseCategoricalCrossentropy(from_logits=True)},
    ],
    "probs": [
        *("categorical_crossentropy", "sparse_categorical_crossentropy", "CategoricalCrossentropy"),
        *(losses.categorical_crossentropy, losses.CategoricalCrossentropy(label_smoothing=0.1)),
        *(losses.SparseCategoricalCrossentropy(), "categorical_focal_crossentropy"),
        *("kl_divergence", "kld", losses.KLDivergence(), losses.kl_divergence),
        *({"out": "categorical_crossentropy"}, ["sparse_categorical_crossentropy"]),
    ],
    "values": [
        *("mse", "MSE", "mean_squared_error", losses.MeanSquaredError(), losses.mean_squared_error),
        *("mae", "mape", "msle", "huber", "Huber", losses.Huber(0.5), "log_cosh", "poisson", "cosine_similarity"),
        *("hinge", "squared_hinge", losses.Hinge()),
        *("binary_crossentropy", "bce", losses.BinaryCrossentropy(), losses.binary_crossentropy),
        losses.BinaryFocalCrossentropy(),
    ],
    None: [
        *(None, losses.BinaryCrossentropy(from_logits=True), losses.BinaryFocalCrossentropy(from_logits=True)),
        *(partial(losses.binary_crossentropy, from_logits=True), losses.CategoricalCrossentropy(axis=1)),
        *(lambda true, predicted: keras.ops.mean(predicted), "categorical_hinge", losses.Dice(), losses.CTC()),
    ],
}


def compiled(loss, outputs=1):
    a = keras.Input((4,))
    heads = [layers.Dense(3, name="out" if n == 0 else f"out_{n}")(a) for n in range(outputs)]
    model = keras.Model(a, heads[0] if outputs == 1 else heads)
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize("space", TELLING)
def test_a_loss_tells_what_the_model_returns_or_nothing_is_guessed(space):
    found = {repr(loss): infer_space(compiled(loss)) for loss in TELLING[space]}
    assert found == dict.fromkeys(found, space)


def test_a_loss_of_the_users_own_that_derives_from_keras_is_known_by_it():
    class Own(losses.SparseCategoricalCrossentropy):
        pass

    assert infer_space(compiled(Own(from_logits=True))) == "logits"


def test_what_was_declared_counts_more_than_the_loss():
    assert space_of(compiled("mse"), "log_probs") == "log_probs"
    assert space_of(compiled("mse"), None) == "values"


def test_where_no_loss_tells_the_four_words_are_asked_for():
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    two = compiled(["mse", "mse"], outputs=2)
    for model in (plain, two, compiled(None), compiled(lambda true, predicted: keras.ops.mean(predicted))):
        assert infer_space(model) is None
        with pytest.raises(ConfigurationError, match=WORDS):
            space_of(model, None)
    with pytest.raises(ConfigurationError, match=f"sigmoid probabilities.*{WORDS}"):
        space_of(compiled(losses.BinaryCrossentropy(from_logits=True)), None)
    with pytest.raises(ConfigurationError, match=f"{WORDS}; got 'scores'"):
        space_of(plain, "scores")
