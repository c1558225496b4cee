"""Each private name of Keras that PyBrush uses still means what PyBrush takes it for."""

import keras
import numpy as np
import pytest

from pybrush_keras import _private, state
from pybrush_keras.attributes import known_parts
from tests.keras import nets


def lazy():
    layers = keras.layers
    return nets.compiled(
        keras.Sequential([layers.Dense(4), layers.Dropout(0.5, name="drops"), layers.Dense(3)]), "adam"
    )


def test_a_model_is_built_with_its_optimizer_from_one_batch():
    model, data = lazy(), nets.table(8)
    assert not model.built
    _private.build(model, (data["x"], data["y"]))
    assert [tuple(v.shape) for v in model.trainable_variables] == [(6, 4), (4,), (4, 3), (3,)]
    assert model.optimizer.built and len(model.optimizer.variables) == 2 + 2 * 4


def test_all_layers_are_found_once_in_the_same_order():
    shared = keras.layers.Dense(4)
    model = keras.Sequential([keras.layers.Input((4,)), shared, keras.Sequential([shared, keras.layers.Dense(2)])])
    found = _private.layers_of(model)
    assert found[0] is model and len(set(map(id, found))) == len(found)
    assert sum(isinstance(layer, keras.layers.Dense) for layer in found) == 2


def test_attributes_that_keras_sets_are_known_and_a_user_s_are_not():
    model, data = lazy(), nets.table(8)
    model.fit(**data, verbose=0)
    model.evaluate(**data, verbose=0)
    model.predict(data["x"], verbose=0)
    assert vars(model).keys() <= _private.internal_attributes()
    assert "mine" not in _private.internal_attributes()
    callback = keras.callbacks.Callback()
    callback.set_model(model)
    callback.set_params({})
    assert vars(callback).keys() <= _private.attributes_of_keras(callback)
    for owner in (model, model.optimizer, model.loss):
        assert "mine" not in _private.attributes_of_keras(owner)


@pytest.mark.parametrize("kind", [keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau])
def test_a_callback_takes_the_state_of_one_that_has_compared_an_epoch_with_another(kind):
    model, data = lazy(), nets.table(8)
    old, new = kind("loss"), kind("loss")
    model.fit(**data, callbacks=[old], verbose=0)
    known = known_parts(model)
    held = state.read_attributes([("it", old)], known)
    assert held["it"].keys() >= {"patience", "best", "wait"} and held["it"]["monitor_op"] == "less"
    state.write_attributes_of([("it", new)], held, known)
    model.fit(**data, callbacks=[new], verbose=0)
    assert state.read_attributes([("it", new)], known).keys() == held.keys()


def test_the_first_epoch_is_as_said_also_after_a_backup():
    model, data = lazy(), nets.table(8)
    model._initial_epoch = 3
    _private.begin_at_given_epoch(model)
    assert model.fit(**data, epochs=2, initial_epoch=1, verbose=0).epoch == [1]


def test_a_scaled_optimizer_holds_the_user_s():
    own = keras.optimizers.SGD(0.1)
    assert _private.own_optimizer(keras.optimizers.LossScaleOptimizer(own)) is own
    assert _private.own_optimizer(own) is own


def test_the_arguments_of_a_loss_are_known():
    assert _private.loss_settings(keras.losses.Huber(2.0)) == {"delta": 2.0}
    assert _private.loss_settings(keras.losses.Loss()) == {}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_callback_that_monitors_is_put_where_it_was(mode):
    callback = keras.callbacks.EarlyStopping("loss", min_delta=0.1, mode=mode)
    callback.set_model(lazy())
    assert _private.monitored(callback) == {"monitor_op": "none yet"}
    callback.on_train_begin()
    callback.on_epoch_end(0, {"loss": 1.0})
    word = _private.monitored(callback)["monitor_op"]
    assert word == {"min": "less", "max": "greater"}[mode]
    other = keras.callbacks.EarlyStopping("loss", min_delta=0.1, mode=mode)
    _private.monitor(other, word)
    assert other.monitor_op is callback.monitor_op
    _private.monitor(other, "none yet")
    assert other.monitor_op is None
    assert _private.monitored(keras.callbacks.Callback()) == {}


def test_a_schedule_is_told_from_a_rate():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    assert _private.schedule_of(keras.optimizers.SGD(schedule)) is schedule
    assert _private.schedule_of(keras.optimizers.SGD(0.1)) is None


def test_an_optimizer_knows_what_it_trains():
    model, data = lazy(), nets.table(8)
    model.fit(**data, verbose=0)
    assert [id(v) for v in _private.trained_by(model.optimizer)] == [id(v) for v in model.trainable_variables]


def test_tracked_containers_are_read_as_plain_ones():
    class Holds(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.held = {"list": [1, [2]], "set": {3}}

    held = Holds().held
    assert type(held) is not dict  # else this name is needed no more
    plain = _private.untracked(held)
    assert plain == {"list": [1, [2]], "set": {3}}
    assert [type(plain), type(plain["list"]), type(plain["list"][1]), type(plain["set"])] == [dict, list, list, set]


def test_adapted_layers_are_told_from_given_statistics():
    adapted, given = keras.layers.Normalization(), keras.layers.Normalization(mean=0.0, variance=1.0)
    adapted.adapt(nets.table()["x"])
    assert _private.was_adapted(adapted)
    assert not _private.was_adapted(given) and not _private.was_adapted(keras.layers.Dense(1))


def test_seed_generators_of_layers_are_found():
    model, data = lazy(), nets.table(8)
    _private.build(model, (data["x"], data["y"]))
    assert _private.seed_generators(model) == [model.get_layer("drops").seed_generator]


def test_unseeded_draws_come_from_the_global_generator():
    generator = _private.global_generator()
    generator.state.assign(np.array([5, 0]))
    first = keras.ops.convert_to_numpy(keras.random.normal((3,)))
    generator.state.assign(np.array([5, 0]))
    assert np.array_equal(first, keras.ops.convert_to_numpy(keras.random.normal((3,))))


def test_the_seed_of_a_user_is_known():
    keras.utils.set_random_seed(1234)
    assert _private.user_seed() == 1234


def _draws():
    if nets.BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.random.normal((3,)).numpy().tolist()
    import torch

    return torch.randn(3).tolist()


def test_the_backend_draws_the_same_from_the_same_seed_and_state():
    _private.seed_backend(7)
    state = _private.backend_randomness()
    first = _draws()
    second = _draws()
    assert first != second
    _private.restore_backend_randomness(state)
    assert [_draws(), _draws()] == [first, second]
    _private.seed_backend(7)
    assert _draws() == first


def test_a_changed_tensor_of_the_backend_shows():
    (kind, digest), *_ = _private.backend_tensors().items()
    if nets.BACKEND == "tensorflow":
        value = kind(np.zeros(3))
        before = digest(value)
        value.assign_add(np.ones(3))
    else:
        import torch

        value = torch.zeros(3)
        before = digest(value)
        value.add_(1)
    assert isinstance(value, kind) and digest(value) != before


def test_a_generator_of_the_backend_shows_its_draws():
    ((kind, state),) = _private.backend_generators().items()
    if nets.BACKEND == "tensorflow":
        own = kind.from_seed(1)
        before = state(own)
        own.normal((2,))
    else:
        import torch

        own = kind()
        before = state(own)
        torch.randn(2, generator=own)
    assert state(own) != before


def test_limits_of_keras_are_read():
    assert _private.limits() == (None, None)
    keras.config.set_max_epochs(2)
    keras.config.set_max_steps_per_epoch(3)
    try:
        assert _private.limits() == (2, 3)
    finally:
        keras.config.set_max_epochs(None)
        keras.config.set_max_steps_per_epoch(None)


def test_a_model_on_one_device_is_not_distributed():
    assert not _private.is_distributed(lazy())


def test_the_environment_names_the_backend_and_its_threads():
    found = _private.backend_environment()
    assert nets.BACKEND in found and found["device"] == "cpu" and found["threads"]


def test_a_line_is_shown_where_the_bar_is(capsys):
    _private.show("stage 1")
    assert capsys.readouterr().out == "stage 1\n"


@pytest.mark.parametrize("name", ["fit", "evaluate", "predict", "save", "save_weights", "export"])
def test_the_methods_that_are_wrapped_are_keras_own_ones(name):
    assert getattr(keras.Model, name).__wrapped__.__module__.startswith("keras.src.")
