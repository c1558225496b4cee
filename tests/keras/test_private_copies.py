"""Canaries for Keras' private names with which models are copied and aggregated."""

import keras
from keras import layers

from pybrush_keras import _private


def dense():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dropout(0.5)])


def test_a_graph_of_layers_is_known_and_a_class_of_the_users_own_is_not():
    class Own(keras.Model):
        pass

    a = keras.Input((4,))
    assert _private.is_functional(keras.Model(a, layers.Dense(3)(a)))
    assert not _private.is_functional(dense()) and not _private.is_functional(Own())


def test_what_a_model_was_compiled_with_comes_as_it_was_given():
    model, metric = dense(), keras.metrics.Mean()

    def loss(true, predicted):
        return predicted

    assert _private.compile_arguments(model) == {}
    model.compile("sgd", loss, metrics=[metric], loss_weights=[2.0])
    found = _private.compile_arguments(model)
    assert found["loss"] is loss and found["metrics"][0] is metric and found["loss_weights"] == [2.0]
    assert {"weighted_metrics", "run_eagerly", "steps_per_execution", "jit_compile"} <= found.keys()


def test_an_object_that_a_config_names_twice_is_made_once():
    start = keras.initializers.Zeros()
    with _private.objects_shared():
        config = [keras.saving.serialize_keras_object(start) for _ in range(2)]
    with _private.objects_shared():
        one, other = (keras.saving.deserialize_keras_object(each) for each in config)
    assert one is other


def test_layers_lie_where_keras_saves_them_each_once_and_the_same_each_time():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [layers.Dense(2), [layers.Dense(3)]]
            self.net, self.again = dense(), self.blocks[0]

    model = Own()
    for _ in range(3):  # lists that Keras makes for each call must not be taken for one another
        found = _private.layers_by_path(model)
        assert found["/again"] is model.again and model.net in found.values()
        everything = [model, model.blocks[0], model.blocks[1][0], model.net, *model.net.layers]
        assert sorted(map(id, found.values())) == sorted(map(id, everything))
        assert list(found) == list(_private.layers_by_path(Own()))


def test_a_layers_own_variables_are_all_and_no_others():
    model = dense()
    own = [variable for layer in _private.layers_of(model) for variable in _private.own_variables(layer)]
    assert sorted(map(id, own)) == sorted(map(id, model.variables)) and len(own) == 3


def test_a_symbolic_tensor_knows_what_made_it():
    a = keras.Input((4,))
    assert isinstance(_private.made_by(a), layers.InputLayer)


def test_keras_hands_training_over_what_the_graph_says_and_can_be_kept_from_it():
    a = keras.Input((4,))
    inner = keras.Model(a, layers.Dropout(0.999, seed=1)(a, training=False))
    outer = keras.Model(a, inner(a))
    x = keras.ops.ones((2, 4))
    assert float(keras.ops.sum(outer(x, training=True))) != 8
    _private.ignore_training(inner)
    assert float(keras.ops.sum(outer(x, training=True))) == 8


def test_keras_records_the_arguments_of_layers_and_of_models_the_defaults():
    class OwnLayer(layers.Layer):
        def __init__(self, width=1):
            super().__init__()

    class OwnModel(keras.Model):
        def __init__(self, width=1):
            super().__init__()

    assert OwnLayer(7).get_config()["width"] == 7 and not _private.records_defaults_alone(OwnLayer(7))
    assert OwnModel(7).get_config()["width"] == 1 and _private.records_defaults_alone(OwnModel(7))
    assert not _private.records_defaults_alone(dense())
