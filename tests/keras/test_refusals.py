"""What SISA in Keras does not train is refused before anything is made or changed, and the message says what to do."""

import keras
import numpy as np
import pytest

import pybrush_keras
from pybrush.errors import ConfigurationError, PyBrushError, UnsupportedError
from pybrush_keras import SISA
from tests.keras import nets

DATA = nets.table()


def generator():
    while True:
        yield DATA["x"][:4], DATA["y"][:4]


def small():
    return nets.compiled(keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(nets.KINDS)]), "sgd")


def regressing(loss):
    return nets.compiled(
        keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(1)]), "sgd", loss=loss, metrics=None
    )


ARGUMENTS = {
    "initial_epoch": ({"initial_epoch": 1}, "initial_epoch=1: leave it out"),
    "steps_per_epoch": ({"steps_per_epoch": 2}, "steps_per_epoch=2: leave it out"),
    "no epochs": ({"epochs": 0}, "epochs=0: give fit a whole number"),
    "half an epoch": ({"epochs": 1.5}, "epochs=1.5: give fit a whole number"),
    "both weights": (
        {"class_weight": {0: 1.0}, "sample_weight": np.ones(nets.N)},
        "class_weight with sample_weight: pass one",
    ),
    "far away": (
        {"callbacks": [keras.callbacks.ModelCheckpoint("gs://bucket/m.keras")]},
        "ModelCheckpoint saves to gs://bucket/m.keras",
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_stages_cannot_keep_are_refused(name, tmp_path):
    arguments, words = ARGUMENTS[name]
    model, sisa = small(), SISA(2, 1, record=tmp_path / "record")
    own = [*arguments.get("callbacks", []), sisa]
    with pytest.raises(UnsupportedError, match=words):
        model.fit(**DATA, **({"epochs": 1, "verbose": 0} | arguments | {"callbacks": own}))
    assert not (tmp_path / "record").exists()


def test_all_problems_stand_in_one_message(tmp_path):
    sisa = SISA(2, 1, record=tmp_path / "record")
    with pytest.raises(UnsupportedError, match=r"change 2 settings:\n  - initial_epoch=1.*\n  - steps_per_epoch=2"):
        small().fit(**DATA, callbacks=[sisa], initial_epoch=1, steps_per_epoch=2)


def test_generators_have_no_rows(tmp_path):
    with pytest.raises(UnsupportedError, match="Pass arrays"):
        small().fit(generator(), callbacks=[SISA(2, 1, record=tmp_path / "record")], epochs=1)


def test_a_model_must_be_compiled(tmp_path):
    model = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(2)])
    with pytest.raises(UnsupportedError, match=r"call model\.compile"):
        SISA(record=tmp_path / "record").fit(model, **DATA)


def test_a_backend_that_was_not_tried_is_refused(tmp_path, monkeypatch):
    model = small()
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(UnsupportedError, match="Keras on jax: set KERAS_BACKEND to tensorflow or torch"):
        SISA(record=tmp_path / "record").fit(model, **DATA)


def test_limits_for_debugging_are_refused(tmp_path):
    keras.config.set_max_epochs(1)
    try:
        with pytest.raises(UnsupportedError, match="KERAS_MAX_EPOCHS"):
            SISA(record=tmp_path / "record").fit(small(), **DATA)
    finally:
        keras.config.set_max_epochs(None)


@pytest.mark.skipif(nets.BACKEND != "tensorflow", reason="strategies are TensorFlow's")
def test_a_model_on_several_devices_is_refused(tmp_path):
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        model = small()
    with pytest.raises(UnsupportedError, match="a distribution strategy"):
        model.fit(**DATA, callbacks=[SISA(record=tmp_path / "record")])


def test_two_records_at_once_are_refused(tmp_path):
    both = [SISA(record=tmp_path / "one"), SISA(record=tmp_path / "two")]
    with pytest.raises(UnsupportedError, match="two SISA callbacks"):
        small().fit(**DATA, callbacks=both)


def test_a_callback_list_is_refused(tmp_path):
    listed = keras.callbacks.CallbackList([SISA(record=tmp_path / "record")])
    with pytest.raises(UnsupportedError, match="CallbackList"):
        small().fit(**DATA, callbacks=listed)


def test_a_callback_that_did_not_engage_raises(tmp_path):
    model, sisa = small(), SISA(record=tmp_path / "record")
    with pytest.raises(ConfigurationError, match=r"Call sisa\.fit\(model, x, y"):
        pybrush_keras.patches.original_fit(model)(**DATA, callbacks=[sisa], verbose=0)


def test_a_model_that_was_trained_begins_no_record(tmp_path):
    model = small()
    model.fit(**DATA, verbose=0)
    for again in (model, _with_steps()):
        with pytest.raises(ConfigurationError, match="was trained before"):
            again.fit(**DATA, verbose=0, callbacks=[SISA(record=tmp_path / "record")])
    model.compile("sgd", model.loss)  # compiling anew does not make it forget
    with pytest.raises(ConfigurationError, match="was trained before"):
        model.fit(**DATA, verbose=0, callbacks=[SISA(record=tmp_path / "record")])
    assert not (tmp_path / "record").exists()


def _with_steps():
    model = small()
    model.train_on_batch(DATA["x"][:8], DATA["y"][:8])
    return model


SPACES = {
    "logits of labels": (lambda: regressing(keras.losses.BinaryCrossentropy(from_logits=True)), {}, "sigmoid"),
    "a loss of one's own": (lambda: regressing(lambda y, p: keras.ops.mean((y - p) ** 2)), {}, "does not tell"),
    "one column of logits": (lambda: regressing("mse"), {"outputs": "logits"}, "classes on the last axis"),
    "no distribution": (small, {"outputs": "probs"}, "do not sum to 1"),
}


@pytest.mark.parametrize("name", SPACES)
def test_outputs_that_cannot_be_combined_are_refused_before_training(name, tmp_path):
    make, settings, words = SPACES[name]
    model = make()
    with pytest.raises(ConfigurationError, match=words):
        model.fit(**DATA, verbose=0, callbacks=[SISA(2, 1, record=tmp_path / "record", **settings)])
    assert not (tmp_path / "record").exists()


def test_one_shard_needs_no_word_for_what_is_returned(tmp_path):
    make, settings, _ = SPACES["a loss of one's own"]
    sisa = SISA(1, 2, record=tmp_path / "record", **settings)
    make().fit(**DATA, verbose=0, callbacks=[sisa])
    assert sisa.recorded().plan.settings["outputs"] is None


def test_arguments_of_later_versions_are_refused(tmp_path):
    for argument in ({"rebuild_all": True}, {"aggregate_step": "part"}):
        with pytest.raises(UnsupportedError, match=next(iter(argument))):
            SISA(record=tmp_path / "record", **argument)
    sisa = SISA(record=tmp_path / "record")
    for argument in ({"retain": DATA}, {"audit": "cheap"}, {"accept_changes": ["y"]}, {"rebuild_all": True}):
        with pytest.raises(UnsupportedError, match=next(iter(argument))):
            sisa.unlearn(rows=[1], **argument)


def test_a_request_needs_model_and_data(tmp_path):
    sisa = SISA(record=tmp_path / "record")
    with pytest.raises(ConfigurationError, match="pass model= and x="):
        sisa.unlearn(rows=[1])
    with pytest.raises(ConfigurationError, match="y came without x="):
        sisa.unlearn(rows=[1], y=DATA["y"])
    with pytest.raises(ConfigurationError, match="holds no constituent"):
        pybrush_keras.unlearn(small(), DATA["x"])


def test_a_refused_fit_leaves_the_model_as_it_was(tmp_path):
    model = small()
    model.fit(**DATA, verbose=0)
    weights, history, steps = model.get_weights(), model.history, int(model.optimizer.iterations)
    with pytest.raises(PyBrushError):
        model.fit(**DATA, verbose=0, callbacks=[SISA(record=tmp_path / "record")])
    assert all(map(np.array_equal, weights, model.get_weights()))
    assert model.history is history and int(model.optimizer.iterations) == steps


def test_an_error_in_training_leaves_the_model_as_it_was_and_the_fit_goes_on(tmp_path):
    class Stops(keras.callbacks.Callback):
        left = 3

        def on_epoch_end(self, epoch, logs=None):
            Stops.left -= 1
            if Stops.left == 0:
                raise RuntimeError("the cat stepped on the power switch")

    model, sisa = small(), SISA(2, 1, record=tmp_path / "record", seed=1)
    weights = model.get_weights()
    with pytest.raises(RuntimeError, match="cat"):
        model.fit(**DATA, epochs=2, verbose=0, callbacks=[Stops(), sisa])
    assert all(map(np.array_equal, weights, model.get_weights()))
    assert pybrush_keras.patches.mark_of(model) is None
    history = model.fit(**DATA, epochs=2, verbose=0, callbacks=[Stops(), sisa])
    assert history.history["shard"] == [1, 1]  # the first shard was kept
    assert not all(map(np.array_equal, weights, model.get_weights()))
